"""What is known of a run so far: its history, its evaluations, and where both are shown."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import mismatch
from fgd._console import Bar
from fgd._log import Writer


class Record:
    """Collects the history of a run, part by part, and passes it on to a bar and a log.

    Attributes:
      done: steps that the history covers.
    """

    def __init__(self, first: int, every: int, bar: Bar, write: Writer | None) -> None:
        self.done = 0
        self._first, self._every, self._bar, self._write = first, every, bar, write
        self._parts: list[dict[str, np.ndarray]] = []
        self._evaluations: list[dict[str, Any]] = []
        self._unseen = 0

    def add(self, part: dict[str, np.ndarray]) -> None:
        """Takes the next entries of the history."""
        self._parts.append(part)
        entries = len(part["loss"])
        if self._write is not None:
            for i in range(entries):
                step = self._first + self.done + (i + 1) * self._every
                self._write(step, {name: float(values[i]) for name, values in part.items()})
        self.done += entries * self._every
        self._bar(entries * self._every, part["loss"])

    def means(self) -> dict[str, float]:
        """The means of what was added since the last call."""
        parts, self._unseen = self._parts[self._unseen :], len(self._parts)
        values = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        return {k: float(x.mean()) if x.size else math.nan for k, x in values.items()}

    def evaluated(self, values: Any) -> dict[str, Any]:
        """Takes what `evaluate` returned, and gives it back, off the device."""
        if not isinstance(values, dict) or "step" in values:
            raise TypeError(
                f'train: evaluate must return a dict without the name "step", got {values!r}'
            )
        values, step = jax.tree.map(_host, values), self._first + self.done
        evaluation = {"step": np.int32(step), **values}
        if self._evaluations and (problem := mismatch(self._evaluations[0], evaluation)):
            raise ValueError(
                f"train: evaluate must return arrays of the same shapes every time; value{problem}"
            )
        self._evaluations.append(evaluation)
        if self._write is not None:
            named = ((k, v) for k, v in values.items() if isinstance(v, np.ndarray))
            scalars = {k: float(v) for k, v in named if v.shape == () and v.dtype.kind != "c"}
            self._write(step, {f"evaluate/{name}": value for name, value in scalars.items()})
        return values

    def history(self) -> dict[str, Any]:
        """`fit`'s history, and the evaluations if there were any."""
        result: dict[str, Any] = {
            name: jax.device_put(np.concatenate([part[name] for part in self._parts]))
            for name in self._parts[0]
        }
        if self._evaluations:
            result["evaluate"] = jax.tree.map(lambda *x: jnp.stack(x), *self._evaluations)
        return result


def _host(value: Any) -> np.ndarray:
    """`value` as NumPy has it; TypeError for what is no array of numbers."""
    try:
        return np.array(jnp.asarray(value))
    except TypeError as error:
        raise TypeError(
            f"train: evaluate returned {value!r}, expected arrays of numbers"
        ) from error
