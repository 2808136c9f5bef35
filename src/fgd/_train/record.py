"""What a run has reached: its state, its history, its evaluations; and where they are shown."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import describe
from fgd._run.state import TrainState
from fgd._train.bar import Bar
from fgd._train.log import Log
from fgd._train.values import scalar
from fgd._trees import mismatch

Part = dict[str, np.ndarray]  # entries of a history, [records] each, on the host
Piece = dict[str, Any]  # what a checkpoint adds to those before: entries, and evaluations


class Record:
    """Collects what a run reaches, part by part, and passes it on to a bar and a log.

    Attributes:
      state: the state reached.
      done: steps taken.
      bar, log: where it is shown, or None.
    """

    def __init__(self, state: TrainState, first: int, every: int) -> None:
        self.state, self.done = state, 0
        self.bar: Bar | None = None
        self.log: Log | None = None
        self._first, self._every = first, every
        self._parts: list[Part] = []
        self._evaluations: list[dict[str, Any]] = []
        self._unseen = 0  # the first part of which `means` has not told
        self._kept = 0, 0  # parts and evaluations that checkpoints have

    def restore(
        self, state: TrainState, step: int, start: int, pieces: Sequence[Piece], unseen: int
    ) -> None:
        """Goes on from a checkpoint.

        Args:
          state, step: its own, and after how many steps.
          start: the step at which the pieces begin.
          pieces: what it and those before it kept.
          unseen: entries since the last look at the run.
        """
        self.state, self.done = state, step - self._first
        whole = _joined([x["history"] for x in pieces if len(x["history"]["loss"])])
        skipped, entries = (self._first - start) // self._every, len(whole["loss"])
        middle = max(skipped, entries - unseen)
        cuts = (skipped, middle), (middle, entries)
        self._parts = [{k: x[i:j] for k, x in whole.items()} for i, j in cuts if entries]
        evaluations = [values for piece in pieces for values in piece["evaluations"]]
        self._evaluations = [x for x in evaluations if x["step"] > self._first]
        self._unseen = min(1, len(self._parts))
        self._kept = len(self._parts), len(self._evaluations)

    def take(self) -> tuple[Piece, int]:
        """What was added since the last call, and how many entries `means` has not told of."""
        parts, evaluations = self._kept
        self._kept = len(self._parts), len(self._evaluations)
        piece = {
            "history": _joined(self._parts[parts:]),
            "evaluations": self._evaluations[evaluations:],
        }
        return piece, len(_joined(self._parts[self._unseen :])["loss"])

    def add(self, state: TrainState, part: Part, steps: int) -> None:
        """Takes the state after `steps` more steps, and their entries of the history."""
        before, self.state, self.done = self.done, state, self.done + steps
        self._parts.append(part)
        if self.log is not None:
            for i in range(steps // self._every):
                step = self._first + before + (i + 1) * self._every
                self.log.write(step, {name: float(values[i]) for name, values in part.items()})
        if self.bar is not None:
            self.bar(steps, part.get("loss", np.zeros(0)))

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
        scalars = {f"evaluate/{name}": scalar(value) for name, value in values.items()}
        known = {name: x for name, x in scalars.items() if x is not None}
        if self.log is not None:
            self.log.write(step, known)
        if self.bar is not None:
            self.bar.evaluated(known)
        return values

    def history(self) -> dict[str, Any]:
        """`fit`'s history, and the evaluations if there were any; NumPy's arrays."""
        history: dict[str, Any] = _joined(self._parts)
        if self._evaluations:
            history["evaluate"] = jax.tree.map(lambda *x: np.stack(x), *self._evaluations)
        return history


def _joined(parts: Sequence[Part]) -> Part:
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
