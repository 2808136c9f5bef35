"""The state of a run."""

from dataclasses import dataclass
from typing import Any

import jax

from fgd._checks import PyTree as PyTree

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on from where it is. Arrays only, so it can be saved whole.

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
