"""Where a stream stands, kept with the state, so that both go on from there."""

import base64
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fgd._checks import PyTree, describe
from fgd._run.data import Mapped, Stream
from fgd.checkpoint._folder import About
from fgd.parallel._placement import participants

Position = dict[str, Any]  # what JSON can hold

WORDS = ("get_state", "set_state"), ("state_dict", "load_state_dict")  # Grain's; torch's, datasets'


def position(data: PyTree | Stream | Mapped) -> Position | None:
    """Where this process's stream stands; None of arrays, and if it can't say."""
    methods = _methods(data)
    return None if methods is None else {"value": _encoded(methods[0]())}


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
        methods[1](_decoded(place["value"]))
    elif about["step"] > first:
        raise ValueError(
            f"train: the run goes on from step {about['step']}, but the stream has no get_state "
            "and set_state, or state_dict and load_state_dict, that take it there; give the state "
            "of checkpoints.restore(state) and a stream that begins after that step"
        )


def _encoded(value: Any) -> Any:
    """`value` in JSON: of bytes, tuples and arrays, too, which loaders have in theirs."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"of": "float", "is": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encoded(x) for x in value]
    if isinstance(value, tuple):
        return {"of": "tuple", "is": [_encoded(x) for x in value]}
    if isinstance(value, dict):
        return {"of": "dict", "is": [[_encoded(k), _encoded(x)] for k, x in value.items()]}
    if isinstance(value, bytes):
        return {"of": "bytes", "is": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "detach"):
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            kind = "tensor" if hasattr(value, "detach") else "array"
            text = base64.b64encode(array.tobytes()).decode()
            return {"of": kind, "is": text, "dtype": str(array.dtype), "shape": list(array.shape)}
    raise TypeError(
        f"train: where the stream stands can't be kept in a checkpoint: it is {describe(value)}, "
        "expected numbers, words, bytes and arrays, in lists and dicts"
    )


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(x) for x in value]
    if not isinstance(value, dict):
        return value
    kind, content = value["of"], value["is"]
    if kind == "tuple":
        return tuple(_decoded(x) for x in content)
    if kind == "dict":
        return {_decoded(k): _decoded(x) for k, x in content}
    if kind == "float":
        return float(content)
    data = base64.b64decode(content)
    if kind == "bytes":
        return data
    array = np.frombuffer(data, value["dtype"]).reshape(value["shape"]).copy()
    if kind == "array":
        return array
    import torch

    return torch.from_numpy(array)
