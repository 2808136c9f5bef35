"""Where a stream stands, kept with the state, so that both go on from there."""

import base64
from typing import Any

import jax
from jax.sharding import Mesh

from fgd._checks import PyTree
from fgd._run.data import Stream
from fgd.checkpoint._folder import About
from fgd.parallel._placement import participants

Position = dict[str, Any]  # what JSON can hold


def position(data: PyTree | Stream) -> Position | None:
    """Where this process's stream stands; None of arrays, and if it can't say."""
    get_state = getattr(data.source, "get_state", None) if isinstance(data, Stream) else None
    if get_state is None:
        return None
    value = get_state()
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return {"value": value}


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
    set_state = getattr(stream.source, "set_state", None)
    if place is not None and set_state is not None:
        set_state(base64.b64decode(place["bytes"]) if "bytes" in place else place["value"])
    elif about["step"] > first:
        raise ValueError(
            f"train: the run goes on from step {about['step']}, but the stream has no get_state "
            "and set_state that take it there; give the state of checkpoints.restore(state) and a "
            "stream that begins after that step"
        )
