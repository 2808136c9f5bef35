"""Values of any kind in JSON, and back."""

import base64
import math
from typing import Any

import numpy as np

from fgd._checks import describe


def encoded(what: str, value: Any) -> Any:
    """`value` in JSON: of infinities, bytes, tuples and arrays, too, which loaders have in theirs.

    Args:
      what: this is, for the message of a TypeError.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"of": "float", "is": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encoded(what, x) for x in value]
    if isinstance(value, tuple):
        return {"of": "tuple", "is": [encoded(what, x) for x in value]}
    if isinstance(value, dict):
        return {
            "of": "dict",
            "is": [[encoded(what, k), encoded(what, x)] for k, x in value.items()],
        }
    if isinstance(value, bytes):
        return {"of": "bytes", "is": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "detach"):
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            kind = "tensor" if hasattr(value, "detach") else "array"
            text = base64.b64encode(array.tobytes()).decode()
            return {"of": kind, "is": text, "dtype": str(array.dtype), "shape": list(array.shape)}
    raise TypeError(
        f"train: {what} can't be kept in a checkpoint: it has {describe(value)}, "
        "expected numbers, words, bytes and arrays, in lists and dicts"
    )


def decoded(value: Any) -> Any:
    """What was `encoded`."""
    if isinstance(value, list):
        return [decoded(x) for x in value]
    if not isinstance(value, dict):
        return value
    kind, content = value["of"], value["is"]
    if kind == "tuple":
        return tuple(decoded(x) for x in content)
    if kind == "dict":
        return {decoded(k): decoded(x) for k, x in content}
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
