"""The state of a run."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fgd._checks import PyTree, describe, is_concrete
from fgd._trees import summary

Metrics = dict[str, jax.Array]

RESERVED = {  # names that metrics can't have
    "loss": "the loss is",
    "step": "logs have the number of steps under it",
    "evaluate": "a history has evaluations under it",
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class TrainState:
    """Everything a run needs to go on from where it is. Arrays only, so it can be saved whole.

    Its leaves may be NumPy's as well as JAX's.

    Attributes:
      params: the model's parameters, a pytree of float arrays.
      opt_state: what the optimizer remembers.
      step: int32 scalar, the number of completed steps.
      key: typed PRNG key, constant for the run: all randomness is a function of (key, step).
      model_state: None, or a model's own arrays (BatchNorm's running statistics).
    """

    # Any, not Array: jax makes such trees of shapes, axes and flags too.
    params: PyTree
    opt_state: PyTree
    step: Any
    key: Any
    model_state: PyTree = None

    def __repr__(self) -> str:
        own = "" if self.model_state is None else f"\n  model_state: {summary(self.model_state)},"
        return (
            f"TrainState(\n  step: {_number(self.step)},\n  params: {summary(self.params)},\n"
            f"  opt_state: {summary(self.opt_state)},{own}\n  key: {summary(self.key)},\n)"
        )


def require_state(caller: str, state: Any) -> None:
    """TypeError for what `step.init` did not make."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"{caller}: expected the state of step.init(params), a TrainState, "
            f"got {describe(state)}"
        )


def _number(step: Any) -> str:
    known = isinstance(step, int | np.integer | np.ndarray | jax.Array) and is_concrete(step)
    return str(step) if known and np.ndim(step) == 0 else summary(step)
