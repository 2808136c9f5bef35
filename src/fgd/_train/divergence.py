"""Runs whose numbers are no longer finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import PyTree
from fgd._run.plan import Plan
from fgd._run.state import TrainState
from fgd._train.record import Part
from fgd.parallel._placement import within


class DivergedError(FloatingPointError):
    """A run whose loss or parameters are no longer finite; raised by `fgd.train`.

    Attributes:
      step: the step that first gave such a number; where the history has means of several steps,
        the last of them.
      state: the last state that is known to be finite.
      history: up to that state.
    """

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"train: {what} at step {step}; `state` and `history` of this error are what was "
            "reached before it. Try a smaller learning rate, or "
            "optax.chain(optax.clip_by_global_norm(1.0), …); jax.debug_nans(True) says where the "
            'first NaN arises; on_divergence="continue" goes on'
        )
        self.step = step
        self.state: Any = None
        self.history: Any = None


def fault(plan: Plan, state: TrainState, part: Part) -> str:
    """What is not finite of what was reached, in words; empty if all is."""
    finite = np.isfinite(part.get("loss", np.zeros(0)))
    if not finite.all():
        return f"the loss is {part['loss'][np.argmin(finite)]}"
    with within(plan.mesh):
        return "" if bool(_all_finite(state.params)) else "parameters are not finite"


@jax.jit
def _all_finite(params: PyTree) -> jax.Array:
    parts = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(parts)) if parts else jnp.bool_(True)
