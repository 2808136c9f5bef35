"""What a run has reached: its state, its history, its evaluations; and where they are shown."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import describe
from fgd._run.state import TrainState
from fgd._train.bar import Bar
from fgd._train.log import Writer
from fgd._trees import mismatch

Part = dict[str, np.ndarray]  # entries of a history, [records] each, on the host


class Record:
    """Collects what a run reaches, part by part, and passes it on to a bar and a log.

    Attributes:
      state: the state reached.
      done: steps taken.
    """

    def __init__(
        self, state: TrainState, first: int, every: int, bar: Bar, write: Writer | None
    ) -> None:
        self.state, self.done = state, 0
        self._first, self._every, self._bar, self._write = first, every, bar, write
        self._parts: list[Part] = []
        self._evaluations: list[dict[str, Any]] = []
        self._unseen = 0

    def add(self, state: TrainState, part: Part, steps: int) -> None:
        """Takes the state after `steps` more steps, and their entries of the history."""
        before, self.state, self.done = self.done, state, self.done + steps
        self._parts.append(part)
        if self._write is not None:
            for i in range(steps // self._every):
                step = self._first + before + (i + 1) * self._every
                self._write(step, {name: float(values[i]) for name, values in part.items()})
        self._bar(steps, part.get("loss", np.zeros(0)))

    def means(self) -> dict[str, float]:
        """The means of what was added since the last call."""
        parts, self._unseen = self._parts[self._unseen :], len(self._parts)
        return {k: float(x.mean()) if x.size else math.nan for k, x in _joined(parts).items()}

    def evaluated(self, values: Any) -> Part:
        """Takes what `evaluate` returned, and gives it back, off the device."""
        if not isinstance(values, dict) or "step" in values:
            raise TypeError(
                'train: evaluate must return a dict without the name "step", got '
                f"{describe(values)}"
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
        """`fit`'s history, and the evaluations if there were any; NumPy's arrays."""
        history: dict[str, Any] = _joined(self._parts)
        if self._evaluations:
            history["evaluate"] = jax.tree.map(lambda *x: np.stack(x), *self._evaluations)
        return history


def _joined(parts: list[Part]) -> Part:
    known = [part for part in parts if part]  # a stream's names are known when it has begun
    if not known:
        return {"loss": np.zeros(0, np.float32)}
    return {name: np.concatenate([part[name] for part in known]) for name in known[0]}


def _host(value: Any) -> np.ndarray:
    """`value` as NumPy has it; TypeError for what is no array of numbers."""
    try:
        return np.array(jnp.asarray(value))
    except (TypeError, OverflowError) as error:
        raise TypeError(
            f"train: evaluate returned {describe(value)}, expected arrays of numbers"
        ) from error
