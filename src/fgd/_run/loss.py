"""A loss function as the step wants it, whatever of key, model_state and metrics it has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fgd._checks import PyTree, describe
from fgd._keys import LOSS, draw_key
from fgd._run.signature import read_signature
from fgd._run.state import RESERVED, Metrics, TrainState
from fgd._trees import strong

Objective = Callable[..., tuple[jax.Array, tuple[PyTree, Metrics]]]


@dataclass(frozen=True, eq=False)
class ValueFn:
    """The `value_fn` that optimizers are given.

    Attributes:
      value: the loss of a step's batch at other parameters.
      scaled_grad: c ↦ ∇(c·loss) at the step's own, see `gradient_of`; for `fgd.sgd`.
    """

    value: Callable[[PyTree], jax.Array]
    scaled_grad: Callable[[Any], PyTree] | None

    def __call__(self, params: PyTree) -> jax.Array:
        return self.value(params)


def objective_of(loss_fn: Callable[..., Any]) -> Objective:
    """`objective(params, state, batch, place=None) -> (loss, (model_state, metrics))`.

    With `place`, the batch is the one row that has this place in a batch, and its key is its own.

    Raises:
      TypeError: `loss_fn` is no function of params and a batch. When called: a result of another
        kind than the signature says.
      ValueError: when called, a loss or metric that is not a scalar, or has a name of fgd's.
    """
    signature = read_signature("train_step", "loss_fn", loss_fn)
    has_key, has_state = signature.takes("key"), signature.takes("model_state")

    def objective(
        params: PyTree, state: TrainState, batch: PyTree, place: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        key = draw_key(state.key, LOSS, state.step) if has_key else None
        if key is not None and place is not None:
            key = jax.random.fold_in(key, place)
        output = signature.call(loss_fn, params, batch, key=key, model_state=state.model_state)
        loss, model_state, metrics = _parts(output, state.model_state, has_state)
        return _scalar("the loss", loss), (model_state, _float_metrics(metrics))

    return objective


def gradient_of(objective: Objective) -> Callable[..., Any]:
    """`gradient(params, state, batch) -> (loss, aux, ∇loss, scaled)`, where scaled(c) is ∇(c·loss).

    By c, the latter has a derivative that needs no gradient: the slope of the loss along the
    cotangent, which the derivative by the parameters computes anyway.
    """

    def gradient(params: PyTree, state: TrainState, batch: PyTree) -> Any:
        def loss_of(params: PyTree) -> Any:
            return objective(params, state, batch)

        loss, pullback, aux = jax.vjp(loss_of, params, has_aux=True)

        def scaled(c: Any) -> PyTree:
            return pullback(jnp.full_like(loss, c))[0]

        return loss, aux, scaled(1), scaled

    return gradient


def _parts(output: Any, model_state: PyTree, has_state: bool) -> tuple[Any, PyTree, Any]:
    """The loss, the model's arrays and the metrics of what a loss function returned."""
    parts: tuple[Any, ...] = output if isinstance(output, tuple) else (output,)
    if has_state:
        if len(parts) not in (2, 3):
            raise TypeError(
                "train_step: a loss_fn with an argument model_state must return (loss, "
                f"model_state) or (loss, model_state, metrics), got {describe(output)}"
            )
        loss, model_state, *rest = parts
    else:
        if len(parts) not in (1, 2):
            raise TypeError(
                "train_step: loss_fn must return a loss or (loss, metrics), got "
                f"{describe(output)}; a model's own arrays come back from a loss_fn with an "
                "argument named model_state"
            )
        loss, *rest = parts
    return loss, model_state, rest[0] if rest else {}


def _scalar(what: str, value: Any) -> jax.Array:
    if value is None:
        raise TypeError(f"train_step: {what} is None; does loss_fn return it?")
    if isinstance(value, tuple | list | dict):
        raise TypeError(
            f"train_step: {what} is a {type(value).__name__}, expected a float scalar; "
            "metrics are one flat dict of scalars, the second part of what loss_fn returns"
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"train_step: {what} has shape {jnp.shape(value)}, expected a scalar; take its mean"
        )
    if what == "the loss" and not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"train_step: the loss has dtype {jnp.result_type(value)}, expected a float"
        )
    return jnp.asarray(value)


def _float_metrics(metrics: Any) -> Metrics:
    if not isinstance(metrics, dict):
        raise TypeError(
            "train_step: metrics must be a dict of scalars, such as the second part of "
            f"(loss, metrics), got {describe(metrics)}"
        )
    for name in metrics:
        if not isinstance(name, str):
            raise TypeError(f"train_step: metrics must have words for names, got {name!r}")
    for name in RESERVED.keys() & metrics.keys():
        raise ValueError(f'train_step: a metric may not be named "{name}"; {RESERVED[name]}')
    scalars = {name: _scalar(f"metric {name!r}", value) for name, value in metrics.items()}
    floats = jnp.finfo(jnp.result_type(float)).dtype
    return {
        name: strong(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(floats))
        for name, x in scalars.items()
    }
