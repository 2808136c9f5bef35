"""An average of the parameters over the steps of a run."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgd._checks import PyTree, require_fraction, require_optimizer, single
from fgd._run.per_example import PerExample
from fgd._run.state import TrainState, require_state
from fgd.optimizers._descent import average


class EmaState(NamedTuple):
    """Of an optimizer that `ema` wraps: its own state, and the average, in float32 at least."""

    inner: PyTree
    average: PyTree


def ema(
    optimizer: optax.GradientTransformation, decay: float | jax.Array
) -> optax.GradientTransformationExtraArgs:
    r"""`optimizer`, beside which an exponential moving average of the parameters is kept.

    After every step, a ← decay·a + (1 − decay)·θ, beginning with the initial parameters. Training
    is what it was; `fgd.averaged(state)` is the state with the average in place of the parameters.

    Args:
      optimizer: an optax transformation, fgd's own included, or `fgd.per_example` of one; its whole
        chain, so that θ are the parameters after the step.
      decay: in [0, 1]; the average is of about 1 / (1 − decay) steps.

    Raises:
      TypeError: no optax transformation, or a `decay` that is no number.
      ValueError: `decay` is not in [0, 1].

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> step = fgd.train_step(lambda w, x: jnp.mean((w - x) ** 2), fgd.ema(fgd.sgd(0.25), 0.5))
      >>> state, _ = step(step.init(0.0), jnp.array([1.0, 3.0]))
      >>> float(state.params), float(fgd.averaged(state).params)
      (1.0, 0.5)

    Source:
      Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on
      Control and Optimization 30 (1992).
    """
    require_optimizer("ema", optimizer)
    require_fraction("ema", decay=decay)
    extended = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> EmaState:
        wide = jax.tree.map(lambda x: single(jnp.asarray(x)), params)  # 1 − decay is small
        return EmaState(extended.init(params), wide)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        updates, inner = extended.update(updates, state.inner, params, **extra)
        after = _like(optax.apply_updates(params, updates), state.average)
        return updates, EmaState(inner, average(decay, state.average, after))

    kind = (
        PerExample if isinstance(optimizer, PerExample) else optax.GradientTransformationExtraArgs
    )
    return kind(init, update)


def averaged(state: TrainState) -> TrainState:
    """The state of a run with the average that `fgd.ema` keeps in place of its parameters.

    For predictions and evaluations, such as `evaluate=lambda state: fgd.evaluate(loss_fn,
    fgd.averaged(state), rows)`. To train on, take the state itself.

    Args:
      state: of a run whose optimizer is an `fgd.ema`.

    Raises:
      TypeError: no state of a run.
      ValueError: its optimizer keeps no average.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> step = fgd.train_step(lambda w, x: jnp.mean((w - x) ** 2), fgd.ema(fgd.sgd(0.25), 1.0))
      >>> float(fgd.averaged(step.init(7.0)).params)
      7.0
    """
    require_state("averaged", state)
    if not isinstance(state.opt_state, EmaState):
        raise ValueError(
            "averaged: the optimizer of this state keeps no average; make the step with "
            "fgd.ema(optimizer, decay) around the whole of it"
        )
    return dataclasses.replace(state, params=_like(state.opt_state.average, state.params))


def _like(tree: PyTree, types: PyTree) -> PyTree:
    return jax.tree.map(lambda x, like: x.astype(like.dtype), tree, types)
