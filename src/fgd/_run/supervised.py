"""`supervised`: a model and a loss become the loss that `train_step` and `evaluate` want."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fgd._checks import (
    PyTree,
    describe,
    is_concrete,
    name_of,
    replaced,
    require_callable,
    single,
)
from fgd._run.signature import Signature, read_signature
from fgd._run.state import RESERVED
from fgd._run.weights import each_of, weights_of, without_weightless
from fgd._trees import cast_floats
from fgd.losses._reduce import ratio
from fgd.models._model import Model

Score = Callable[[Any, Any], Any]  # (predictions, targets) -> scalar


@dataclass(frozen=True, eq=False, repr=False)
class Supervised:
    """The loss of a model that should map inputs to targets; made by `fgd.supervised`.

    `loss_fn(params, (inputs, targets[, weights]), key=None)` is a scalar, or with metrics
    `(scalar, {name: scalar})`. A key means training mode. That of a model with arrays of its own is
    `loss_fn(params, model_state, batch, key=None)`, and gives `(scalar, model_state[, metrics])`.

    Attributes:
      apply: the model's.
      loss: `loss(predictions, targets) -> scalar`.
      preprocess: applied to each batch's inputs first, or None.
      metrics: {name: metric(predictions, targets) -> scalar}.
      compute_dtype: what the model computes in, or None, what its parameters and inputs have.
      signature: how `apply` is called.
    """

    apply: Callable[..., Any]
    loss: Score
    preprocess: Callable[[Any], Any] | None
    metrics: dict[str, Score]
    compute_dtype: Any
    signature: Signature

    def __call__(self, params: PyTree, batch: PyTree, key: jax.Array | None = None) -> Any:
        pred, targets, weights, _ = self._predict(params, None, batch, key)
        value, *metrics = self._score(pred, targets, weights)
        return (value, *metrics) if metrics else value

    def __repr__(self) -> str:
        return f"supervised({', '.join([name_of(self.loss), *self.metrics])})"

    def per_row(
        self, params: PyTree, model_state: PyTree, batch: PyTree
    ) -> tuple[dict[str, jax.Array], jax.Array | None]:
        """The loss and the metrics of every row, [rows] each, in evaluation mode.

        If the batch has weights, what is returned is Σ w·l of each row, and the rows' Σ w.
        """
        pred, targets, weights, _ = self._predict(params, model_state, batch, None)
        scores = {"loss": self.loss, **self.metrics}
        axes = 1 if weights is None else weights.ndim
        each = {name: each_of(score, axes)(pred, targets) for name, score in scores.items()}
        if weights is None:
            return each, None
        beyond = tuple(range(1, axes))
        sums = {name: jnp.sum(x * weights.astype(x.dtype), beyond) for name, x in each.items()}
        return sums, jnp.sum(single(weights), beyond)

    def _predict(self, params: PyTree, model_state: PyTree, batch: Any, key: Any) -> Any:
        """Predictions, targets, weights, and the model's own arrays afterwards."""
        parts = len(batch) if isinstance(batch, tuple | list) else 0
        if parts not in (2, 3) or (parts == 3 and jnp.ndim(batch[2]) == 0):
            raise TypeError(
                f"supervised: expected a batch (inputs, targets), got {describe(batch)}; its third "
                "part may be weights of rows"
            )
        inputs, targets, *weights = batch
        inputs = inputs if self.preprocess is None else self.preprocess(inputs)
        if self.compute_dtype is not None:
            params, inputs = cast_floats((params, inputs), self.compute_dtype)
        output = self.signature.call(self.apply, params, inputs, model_state=model_state, key=key)
        after = None
        if self.signature.takes("model_state"):
            if not isinstance(output, tuple) or len(output) != 2:
                raise TypeError(
                    "supervised: an apply that takes model_state must return (predictions, "
                    f"model_state), got {describe(output)}"
                )
            output, after = output
        if self.compute_dtype is not None:
            output = cast_floats(output, float)
            after = jax.tree.map(lambda x, like: x.astype(like.dtype), after, model_state)
        if not weights:
            return output, targets, None, after
        known = weights_of("supervised", weights[0], targets, some=False)
        return output, without_weightless(targets, known), known, after

    def _score(self, pred: Any, targets: Any, weights: jax.Array | None) -> tuple[Any, ...]:
        """The loss, and the metrics if there are any; with weights, Σ w·l / Σ w."""

        def value(score: Score) -> Any:
            if weights is None:
                return score(pred, targets)
            each = each_of(score, weights.ndim)(pred, targets)
            return ratio(jnp.sum(each * weights.astype(each.dtype)), jnp.sum(single(weights)))

        metrics = {name: value(metric) for name, metric in self.metrics.items()}
        return value(self.loss), *([metrics] if metrics else [])


def check_weights(caller: str, loss_fn: Any, data: Any) -> None:
    """ValueError for weights of a supervised loss's rows that are negative, or all zero."""
    supervised = isinstance(loss_fn, Supervised) and isinstance(data, tuple | list)
    if supervised and len(data) == 3 and is_concrete(data[2]) and hasattr(data[2], "shape"):
        weights_of(caller, data[2], data[1], some=True)


@dataclass(frozen=True, eq=False, repr=False)
class StatefulSupervised(Supervised):
    """`Supervised` of a model with arrays of its own."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, model_state: PyTree, batch: PyTree, key: jax.Array | None = None
    ) -> Any:
        pred, targets, weights, model_state = self._predict(params, model_state, batch, key)
        value, *metrics = self._score(pred, targets, weights)
        return value, model_state, *metrics


@replaced("supervised", stateful="whether a model has arrays of its own is seen; leave it out")
def supervised(
    model: Model | Callable[..., Any],
    loss: Score,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    metrics: Mapping[str, Score] | None = None,
    compute_dtype: Any = None,
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
      compute_dtype: what the model computes in, such as `jnp.bfloat16`: parameters and inputs are
        converted to it inside the step, predictions to float32 before the loss. Parameters,
        gradients, the optimizer's moments, losses and the model's own arrays stay as they are.

    Returns:
      `loss_fn(params, (inputs, targets))`, for `train_step`; it also knows its values row by row,
      for `fgd.evaluate(loss_fn, state, data)`. A batch may have a third part, weights w of its
      rows, [rows], or of more of the targets' leading axes, such as a mask [rows, time]. Then the
      loss and every metric are Σ w·l / Σ w over what they are of each alone, and 0 for a batch of
      a run whose w are all 0.

    Raises:
      TypeError: no model and no function; a `compute_dtype` that is no float; when called, a batch
        that is not two or three parts.
      ValueError: a metric named "loss", "step" or "evaluate"; weights of another shape than a
        leading part of the targets', negative, or zero in all the data.

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
    if compute_dtype is not None:
        compute_dtype = _float_dtype(compute_dtype)
    signature = read_signature("supervised", "apply", apply, batch="x")
    kind = StatefulSupervised if signature.takes("model_state") else Supervised
    return kind(apply, loss, preprocess, metrics, compute_dtype, signature)


def _float_dtype(dtype: Any) -> Any:
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.floating):
        raise TypeError(
            "supervised: compute_dtype must be a float dtype such as jnp.bfloat16, got "
            f"{describe(dtype) if known is None else known}"
        )
    if jax.dtypes.canonicalize_dtype(known) != known:
        raise TypeError(
            f"supervised: compute_dtype is {known}, which JAX computes only after "
            'jax.config.update("jax_enable_x64", True)'
        )
    return known
