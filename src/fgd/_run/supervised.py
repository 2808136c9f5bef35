"""`supervised`: a model and a loss become the loss that `train_step` and `evaluate` want."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fgd._checks import PyTree, describe, replaced, require_callable
from fgd._run.signature import Signature, read_signature
from fgd._run.state import RESERVED
from fgd.models._model import Model

Score = Callable[[Any, Any], Any]  # (predictions, targets) -> scalar


@dataclass(frozen=True, eq=False)
class Supervised:
    """The loss of a model that should map inputs to targets; made by `fgd.supervised`.

    `loss_fn(params, (inputs, targets), key=None)` is a scalar, or with metrics
    `(scalar, {name: scalar})`. A key means training mode. That of a model with arrays of its own is
    `loss_fn(params, model_state, (inputs, targets), key=None)`, and gives
    `(scalar, model_state[, metrics])`.

    Attributes:
      apply: the model's.
      loss: `loss(predictions, targets) -> scalar`.
      preprocess: applied to each batch's inputs first, or None.
      metrics: {name: metric(predictions, targets) -> scalar}.
      signature: how `apply` is called.
    """

    apply: Callable[..., Any]
    loss: Score
    preprocess: Callable[[Any], Any] | None
    metrics: dict[str, Score]
    signature: Signature

    def __call__(self, params: PyTree, batch: PyTree, key: jax.Array | None = None) -> Any:
        pred, targets, _ = self._predict(params, None, batch, key)
        value, *metrics = self._score(pred, targets)
        return (value, *metrics) if metrics else value

    def per_row(self, params: PyTree, model_state: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        """The loss and the metrics of every row, [rows] each, in evaluation mode."""
        pred, targets, _ = self._predict(params, model_state, batch, None)

        def of_one(score: Score) -> jax.Array:
            def one(pred: Any, target: Any) -> jax.Array:
                alone = jax.tree.map(lambda x: x[None], (pred, target))  # a batch of one row
                return jnp.asarray(score(*alone))

            return jax.vmap(one)(pred, targets)

        return {name: of_one(score) for name, score in {"loss": self.loss, **self.metrics}.items()}

    def _predict(self, params: PyTree, model_state: PyTree, batch: Any, key: Any) -> Any:
        """Predictions, targets, and the model's own arrays afterwards."""
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(
                f"supervised: expected a batch (inputs, targets), got {describe(batch)}"
            )
        inputs, targets = batch
        inputs = inputs if self.preprocess is None else self.preprocess(inputs)
        output = self.signature.call(self.apply, params, inputs, model_state=model_state, key=key)
        if not self.signature.takes("model_state"):
            return output, targets, None
        if not isinstance(output, tuple) or len(output) != 2:
            raise TypeError(
                "supervised: an apply that takes model_state must return (predictions, "
                f"model_state), got {describe(output)}"
            )
        return output[0], targets, output[1]

    def _score(self, pred: Any, targets: Any) -> tuple[Any, ...]:
        """The loss, and the metrics if there are any."""
        metrics = {name: metric(pred, targets) for name, metric in self.metrics.items()}
        return self.loss(pred, targets), *([metrics] if metrics else [])


@dataclass(frozen=True, eq=False)
class StatefulSupervised(Supervised):
    """`Supervised` of a model with arrays of its own."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, model_state: PyTree, batch: PyTree, key: jax.Array | None = None
    ) -> Any:
        pred, targets, model_state = self._predict(params, model_state, batch, key)
        value, *metrics = self._score(pred, targets)
        return value, model_state, *metrics


@replaced("supervised", stateful="whether a model has arrays of its own is seen; leave it out")
def supervised(
    model: Model | Callable[..., Any],
    loss: Score,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    metrics: Mapping[str, Score] | None = None,
) -> Supervised:
    """The loss of a model that should map inputs to targets, ready for `train_step` and `evaluate`.

    Args:
      model: a `Model`, or its apply function, `apply(params, inputs) -> predictions`. One with an
        argument named `key` is given a key in training, which turns dropout on, and None in
        evaluation. One with an argument named `model_state`, such as that of a Flax model with
        BatchNorm, is given the model's own arrays, and returns `(predictions, model_state)`.
      loss: `loss(predictions, targets) -> scalar`, a mean over rows.
      preprocess: applied to each batch's inputs first, inside the step, so that the data can stay
        as it is stored (`fgd.data.normalize` for images).
      metrics: {name: metric(predictions, targets) -> scalar}, means over rows too, that join the
        history and what `evaluate` returns.

    Returns:
      `loss_fn(params, (inputs, targets))`, for `train_step`; it also knows its values row by row,
      for `fgd.evaluate(loss_fn, state, data)`.

    Raises:
      TypeError: no model and no function; when called, a batch that is not a pair.
      ValueError: a metric named "loss", "step" or "evaluate".

    Example:
      >>> import fgd
      >>> model = fgd.models.mlp([784, 200, 10])
      >>> loss_fn = fgd.supervised(model, fgd.losses.cross_entropy)
    """
    apply = model.apply if isinstance(model, Model) else model
    if hasattr(apply, "init") or (isinstance(apply, tuple) and not callable(apply)):
        raise TypeError(
            f"supervised: expected an fgd Model or its apply function, got {describe(model)}; "
            "fgd.models.from_flax makes one of a Flax module, fgd.models.Model(init, apply) of two "
            "functions"
        )
    require_callable("supervised", "loss", loss, " such as fgd.losses.mse")
    if preprocess is not None:
        require_callable("supervised", "preprocess", preprocess)
    if not isinstance(metrics, Mapping | None):
        raise TypeError(f"supervised: metrics must be a dict of functions, got {describe(metrics)}")
    metrics = dict(metrics or {})
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"supervised: metrics must have words for names, got {name!r}")
        if name in RESERVED:
            raise ValueError(f'supervised: a metric may not be named "{name}"; {RESERVED[name]}')
        require_callable("supervised", f"metrics[{name!r}]", metric, " of (predictions, targets)")
    signature = read_signature("supervised", "apply", apply, batch="x")
    kind = StatefulSupervised if signature.takes("model_state") else Supervised
    return kind(apply, loss, preprocess, metrics, signature)
