"""Numbers of evaluations: found by name, and compared."""

import math
from typing import Any

import numpy as np


def is_better(value: float, best: float | None, maximize: bool) -> bool:
    """NaN is not."""
    if math.isnan(value):
        return False
    return best is None or (value > best if maximize else value < best)


def value_of(what: str, name: str, metrics: dict[str, Any]) -> float:
    """The number of that name, of an evaluation if there is one; ValueError if there is none.

    Args:
      what: what wants it, for the message: "Patience waits for".
    """
    where = metrics.get("evaluate", metrics)
    value = scalar(where.get(name))
    if value is None:
        known = [k for k, x in where.items() if scalar(x) is not None]
        raise ValueError(
            f"train: {what} {name!r}, which is not among the numbers that "
            f"{'evaluate' if 'evaluate' in metrics else 'a step'} gives: "
            f"{', '.join(map(repr, known)) or 'there are none'}"
        )
    return value


def scalar(value: Any) -> float | None:
    """A number that can be logged and compared; None if it is none."""
    is_real = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind != "c"
    return float(value) if is_real or isinstance(value, float) else None
