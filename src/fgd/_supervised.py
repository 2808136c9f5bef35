"""`supervised`: a model and a loss become the loss that `train_step` wants."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def supervised(
    apply: Callable[..., Any],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    metrics: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] | None = None,
    stateful: bool = False,
) -> Callable[..., Any]:
    """The loss of a model that should map inputs to targets, ready for `train_step`.

    Args:
      apply: `apply(params, inputs) -> predictions`; also given `key=key` if the loss is.
      loss: `loss(predictions, targets) -> scalar`.
      preprocess: applied to each batch's inputs first, inside the step, so that the data can stay
        as it is stored (`fgd.data.normalize` for images).
      metrics: {name: metric(predictions, targets) -> scalar}; train with `has_aux=True` then.
      stateful: `apply(params, model_state, inputs, key=key) -> (predictions, model_state)`, as of
        a model with BatchNorm; train with `stateful=True, stochastic=True` then.

    Returns:
      `loss_fn(params, (inputs, targets), key=None)`, a scalar, or with metrics
      `(scalar, {name: scalar})`. For dropout, train with `stochastic=True`. If stateful,
      `loss_fn(params, model_state, (inputs, targets), key)`, which gives `(scalar, model_state)`
      or `(scalar, (model_state, {name: scalar}))`.

    Raises:
      TypeError: when called, a batch that is not a pair; a stateful loss without a key, which
        would train in evaluation mode.

    Example:
      >>> import fgd
      >>> model = fgd.models.mlp([784, 200, 10])
      >>> loss_fn = fgd.supervised(model.apply, fgd.losses.cross_entropy)
    """

    def values(own: tuple[Any, ...], batch: Any, key: Any) -> tuple[Any, Any, Any]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            hint = "" if stateful else "; a model with a state needs supervised(…, stateful=True)"
            raise TypeError(
                f"supervised: expected a batch (inputs, targets), got {type(batch).__name__}{hint}"
            )
        inputs, targets = batch
        inputs = inputs if preprocess is None else preprocess(inputs)
        output = apply(*own, inputs, **({} if key is None else {"key": key}))
        pred, model_state = output if stateful else (output, None)
        named = metrics and {name: metric(pred, targets) for name, metric in metrics.items()}
        return loss(pred, targets), model_state, named

    def loss_fn(params: Any, batch: Any, key: jax.Array | None = None) -> Any:
        value, _, named = values((params,), batch, key)
        return value if metrics is None else (value, named)

    def stateful_loss_fn(params: Any, model_state: Any, batch: Any, key: Any = None) -> Any:
        if key is None:
            raise TypeError(
                "supervised: a stateful model needs a key, or it would be trained in evaluation "
                "mode; use train_step(…, stateful=True, stochastic=True)"
            )
        value, model_state, named = values((params, model_state), batch, key)
        return value, model_state if metrics is None else (model_state, named)

    return stateful_loss_fn if stateful else loss_fn
