"""Numbers of evaluations: found by name, and compared."""

import math
from typing import Any

import numpy as np


def is_better(value: float, best: float | None, maximize: bool) -> bool:
    """NaN is not."""
    if math.isnan(value):
        return False
    return best is None or (value > best if maximize else value < best)


def value_of(caller: str, name: str, metrics: dict[str, Any]) -> float:
    """The number of that name, of an evaluation if there is one; ValueError if there is none."""
    where = metrics.get("evaluate", metrics)
    value = scalar(where.get(name))
    if value is None:
        known = [k for k, x in where.items() if scalar(x) is not None]
        raise ValueError(
            f"{caller}: there is no number {name!r} among what "
            + ("is evaluated" if "evaluate" in metrics else "a step gives")
            + f", which has {', '.join(map(repr, known)) or 'none'}"
        )
    return value


def scalar(value: Any) -> float | None:
    """A number that can be logged and compared; None if it is none."""
    is_real = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind != "c"
    return float(value) if is_real or isinstance(value, float) else None
