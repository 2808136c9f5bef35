"""Where a stream stands, kept with the state, so that both go on from there."""

from typing import Any

import jax
from jax.sharding import Mesh

from fgd._checks import PyTree
from fgd._run.data import Mapped, Stream
from fgd.checkpoint._folder import About
from fgd.checkpoint._json import decoded, encoded
from fgd.parallel._placement import participants

Position = dict[str, Any]  # what JSON can hold

WORDS = ("get_state", "set_state"), ("state_dict", "load_state_dict")  # Grain's; torch's, datasets'


def position(data: PyTree | Stream | Mapped) -> Position | None:
    """Where this process's stream stands; None of arrays, and if it can't say."""
    methods = _methods(data)
    return None if methods is None else {"value": encoded("where the stream stands", methods[0]())}


def _methods(data: Any) -> tuple[Any, Any] | None:
    """What tells where a stream stands, and what takes it there."""
    source = data.source if isinstance(data, Stream) else None
    for names in WORDS:
        if all(callable(getattr(source, name, None)) for name in names):
            return getattr(source, names[0]), getattr(source, names[1])
    return None


def move(stream: Stream, about: About, first: int, mesh: Mesh | None) -> None:
    """Takes a stream to where it stood at a checkpoint.

    Args:
      stream: the data of this process.
      about: the checkpoint.
      first: the step of the state that was given, where a stream that can't be moved stands.
      mesh: of several processes, each of which has its own stream; or None.

    Raises:
      ValueError: it can't be moved, or there were as many streams as there are no processes now.
    """
    places = about["own"]
    processes = [jax.process_index()] if mesh is None else participants(mesh)
    if len(places) != len(processes):
        raise ValueError(
            f"train: the checkpoint has the places of {len(places)} processes' streams, and now "
            f"there are {len(processes)} processes; start as many as then"
        )
    place = places[processes.index(jax.process_index())]
    methods = _methods(stream)
    if place is not None and methods is not None:
        methods[1](decoded(place["value"]))
    elif about["step"] > first:
        raise ValueError(
            f"train: the run goes on from step {about['step']}, but the stream has no get_state "
            "and set_state, or state_dict and load_state_dict, that take it there; give the state "
            "of checkpoints.restore(state) and a stream that begins after that step"
        )
