"""`train_step`: a loss and an optimizer become one compiled step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgd._checks import float_metrics, is_key, mismatch, require_floats, scalar, strong
from fgd._streams import LOSS, stream
from fgd._types import Metrics, PyTree, TrainState

Update = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]


@dataclass(frozen=True, eq=False)
class Step:
    """One training step, `step(state, batch) -> (state, metrics)`; made by `fgd.train_step`.

    A step owns the programs compiled from it, and they die with it.

    Attributes:
      update: the step as a plain function, not compiled, for use inside other transformations.
      optimizer: the optax transformation it applies.
    """

    update: Update
    optimizer: optax.GradientTransformation
    _programs: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False)

    def init(
        self, params: PyTree, key: int | jax.Array = 0, *, model_state: PyTree = None
    ) -> TrainState:
        """The state before the first step.

        Args:
          params: pytree of float arrays (Python floats and NumPy arrays are converted).
          key: seed or typed PRNG key from which the whole run draws (shuffling, dropout).
          model_state: a stateful loss's own arrays, or None.

        Raises:
          TypeError: a parameter is not a float, or `key` is neither a seed nor a typed key.
        """
        require_floats("step.init", params)
        params = jax.tree.map(strong, params)
        opt_state = jax.tree.map(strong, self.optimizer.init(params))
        return TrainState(
            params, opt_state, jnp.int32(0), _as_key(key), jax.tree.map(strong, model_state)
        )

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        return self.program(_apply)(state, batch)

    def program(self, function: Callable[..., Any], **jit_options: Any) -> Any:
        """`function(update, …)` compiled for this step: once, kept here, freed with the step.

        A function comes with the same options every time.
        """
        if function not in self._programs:
            self._programs[function] = jax.jit(partial(function, self.update), **jit_options)
        return self._programs[function]


def train_step(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    stochastic: bool = False,
    stateful: bool = False,
) -> Step:
    r"""One compiled step of gradient descent.

    θ ← θ + update(∇θ loss(θ, batch)), where `update` is the optimizer's.

    Args:
      loss_fn: `loss_fn(params, batch) -> loss`, a float scalar. Pure.
      optimizer: an optax transformation of gradients, fgd's own included. Those that ask for them
        receive `value`, `grad` and `value_fn` (line searches, L-BFGS, reduce-on-plateau). Those
        that want the parameters wrapped (lookahead) or gradients elsewhere (SAM) are not for it.
      has_aux: the loss returns `(loss, metrics)`, a dict of scalars that joins the history.
      stochastic: the loss takes a key as its last argument, a fresh one every step.
      stateful: `loss_fn(params, model_state, batch…)` returns `(loss, model_state)`, or
        `(loss, (model_state, metrics))` with `has_aux`.

    Returns:
      `step`, with `step.init(params, key=0) -> state` and
      `step(state, batch) -> (state, {"loss": …, **metrics})`.

    Raises:
      TypeError: `optimizer` is no optax transformation; when the step is first traced, a loss or a
        metric of the wrong type.
      ValueError: when the step is first traced, a loss or metric that is not a scalar, a metric
        named "loss", or an optimizer state that does not belong to the parameters.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> step = fgd.train_step(lambda w, x: jnp.mean((w - x) ** 2), fgd.sgd(0.25))
      >>> state, metrics = step(step.init(0.0), jnp.array([1.0, 3.0]))
      >>> float(state.params), float(metrics["loss"])
      (1.0, 5.0)
    """
    if not callable(loss_fn):
        raise TypeError(f"train_step: loss_fn must be a function, got {loss_fn!r}")
    if not isinstance(optimizer, optax.GradientTransformation):
        wrapper = hasattr(optimizer, "gradient_transformation")  # optax.MultiSteps
        raise TypeError(
            f"train_step: optimizer must be an optax.GradientTransformation, got {optimizer!r}; "
            + ("call its gradient_transformation()" if wrapper else "fgd.sgd(1e-2) makes one")
        )
    extended = optax.with_extra_args_support(optimizer)

    def update(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        _check_optimizer_state(optimizer, state)
        key = (stream(state.key, LOSS, state.step),) if stochastic else ()

        def objective(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
            own = (state.model_state,) if stateful else ()
            output = loss_fn(params, *own, batch, *key)
            loss, aux = _pair(output) if has_aux or stateful else (output, None)
            if stateful:
                model_state, metrics = _pair(aux) if has_aux else (aux, {})
            else:
                model_state, metrics = state.model_state, aux if has_aux else {}
            return scalar("the loss", loss), (model_state, float_metrics(metrics))

        (loss, (model_state, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        updates, opt_state = extended.update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            grad=grads,
            value_fn=lambda params: objective(params)[0],
        )
        params = optax.apply_updates(state.params, updates)
        after = TrainState(params, opt_state, state.step + 1, state.key, model_state)
        after = jax.tree.map(strong, after)
        if problem := mismatch(state, after):
            raise ValueError(f"train_step: a step must keep the state's types; state{problem}")
        return after, {"loss": strong(loss), **metrics}

    return Step(update, optimizer)


def _apply(update: Update, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
    return update(state, batch)


def _as_key(key: Any) -> jax.Array:
    if is_key(key) and key.shape == ():
        return key
    if isinstance(key, int | np.integer | jax.Array) and (
        jnp.shape(key) == () and jnp.issubdtype(jnp.result_type(key), jnp.integer)
    ):
        return jax.random.key(key)
    raise TypeError(
        f"step.init: key must be an int or a typed key such as jax.random.key(0), got {key!r}; "
        "jax.random.wrap_key_data makes a typed key of raw key data"
    )


def _pair(output: Any) -> Any:
    if isinstance(output, tuple) and len(output) == 2:
        return output
    raise TypeError(
        f"train_step: expected loss_fn to return a pair (see has_aux, stateful), got {output!r}"
    )


def _check_optimizer_state(optimizer: optax.GradientTransformation, state: TrainState) -> None:
    """At trace time only: a state whose halves were not made for each other is refused by name."""
    if not isinstance(state, TrainState):
        raise TypeError(f"step: expected the TrainState of step.init(params), got {state!r}")
    expected = jax.eval_shape(optimizer.init, state.params)
    if problem := mismatch(expected, state.opt_state):
        raise ValueError(
            f"step: opt_state does not belong to these params: opt_state{problem}; "
            "make both with step.init(params)"
        )
