"""Losses and metrics of a batch."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer, Num

from fgd import _checks

Reduction = Literal["mean", "sum", "none"]


def mse(
    pred: Num[Array, "rows *features"],
    target: Num[Array, "rows *features"],
    *,
    reduction: Reduction = "mean",
) -> Float[Array, "*rows"]:
    r"""Squared error, (pred − target)².

    Args:
      pred: predictions.
      target: what they should have been, of the same shape.
      reduction: "mean" over every element, "sum" over every element, or "none": [rows], each row's
        mean, so that the mean of "none" is "mean".

    Raises:
      TypeError: what is not real numbers.
      ValueError: shapes differ ([n, 1] and [n] would broadcast to [n, n]), a mean over nothing, or
        another reduction.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> float(fgd.losses.mse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
      2.0
    """
    _checks.require_reals("mse", pred=pred, target=target)
    if jnp.shape(pred) != jnp.shape(target):
        raise ValueError(
            f"mse: pred has shape {jnp.shape(pred)} and target {jnp.shape(target)}; expected equal "
            "shapes, for they would broadcast; reshape one of them"
        )
    square = jnp.square(_floating(pred) - _floating(target))  # bytes would wrap
    if reduction == "none":
        _require_some("mse", square.shape[1:])
        return jnp.mean(square, axis=tuple(range(1, square.ndim)))
    return _reduce("mse", square, reduction)


def cross_entropy(
    logits: Float[Array, "rows classes"],
    labels: Integer[Array, " rows"],
    *,
    reduction: Reduction = "mean",
) -> Float[Array, "*rows"]:
    r"""Cross-entropy of integer labels under softmax(logits), in nats: log Σⱼ exp zⱼ − z_label.

    Args:
      logits: unnormalised log-probabilities.
      labels: integers in [0, classes).
      reduction: "mean" or "sum" over rows, or "none": [rows].

    Returns:
      The loss; NaN where a label is out of range and its value can't be looked at (in a compiled
      program), gradient included.

    Raises:
      TypeError: labels are not integers.
      ValueError: shapes do not match, fewer than two classes, another reduction, or a concrete
        label is out of range.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> round(float(fgd.losses.cross_entropy(jnp.zeros([1, 10]), jnp.array([3]))), 4)
      2.3026
    """
    logits, labels = _checked("cross_entropy", logits, labels)
    logits = _floating(logits)
    labels = _wide(labels)
    # One-hot rather than a gather: its derivative is a subtraction, not a scatter.
    chosen = labels[:, None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)[None]
    chosen_logit = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)  # 0 · −∞ would be NaN
    rows = jax.nn.logsumexp(logits, axis=-1) - chosen_logit
    valid = (labels >= 0) & (labels < logits.shape[-1])
    rows = rows * jnp.where(valid, 1, jnp.nan).astype(rows.dtype)
    return _reduce("cross_entropy", rows, reduction)


def accuracy(
    logits: Float[Array, "rows classes"],
    labels: Integer[Array, " rows"],
    *,
    reduction: Reduction = "mean",
) -> Float[Array, "*rows"]:
    """Whether the largest logit is the label's: 1 or 0.

    Args:
      logits: scores, any monotone function of probabilities.
      labels: integers in [0, classes).
      reduction: "mean" or "sum" over rows, or "none": [rows].

    Raises:
      TypeError: labels are not integers.
      ValueError: shapes do not match, fewer than two classes, another reduction, or a concrete
        label is out of range.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> float(fgd.losses.accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])))
      0.5
    """
    logits, labels = _checked("accuracy", logits, labels)
    right = jnp.argmax(logits, axis=-1) == _wide(labels)
    return _reduce("accuracy", _checks.single(right), reduction)


def _reduce(caller: str, values: jax.Array, reduction: str) -> jax.Array:
    reductions = {"mean": jnp.mean, "sum": jnp.sum, "none": lambda x: x}
    if not isinstance(reduction, str) or reduction not in reductions:
        raise ValueError(f'{caller}: reduction must be "mean", "sum" or "none", got {reduction!r}')
    if reduction == "mean":
        _require_some(caller, values.shape)
    return reductions[reduction](values)


def _require_some(caller: str, shape: tuple[Any, ...]) -> None:
    if 0 in shape:
        raise ValueError(f"{caller}: the mean of nothing, of shape {shape}, is no number")


def _floating(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def _wide(labels: jax.Array) -> jax.Array:
    """Bytes as int32: among 300 classes, arithmetic on uint8 would wrap and call 261 a 5."""
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def _checked(caller: str, logits: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    _checks.require_reals(caller, logits=logits, labels=labels)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_labels(caller, logits, labels)
    return logits, labels


def _check_labels(caller: str, logits: jax.Array, labels: jax.Array) -> None:
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(f"{caller}: labels have dtype {jnp.result_type(labels)}, expected integers")
    if jnp.ndim(logits) != 2 or jnp.shape(labels) != jnp.shape(logits)[:1]:
        raise ValueError(
            f"{caller}: expected logits [rows, classes] and labels [rows], "
            f"got {jnp.shape(logits)} and {jnp.shape(labels)}"
        )
    if jnp.shape(logits)[-1] < 2:
        raise ValueError(
            f"{caller}: logits have shape {jnp.shape(logits)}, one class, whose probability is "
            "always 1; of two classes give two logits, such as "
            "jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)"
        )
    if isinstance(labels, Tracer):
        return
    # NumPy: inside a compiled function, jax would trace even what is known.
    known, classes = np.asarray(labels).astype(np.int64), logits.shape[-1]
    wrong = (known < 0) | (known >= classes)
    if wrong.any():
        raise ValueError(
            f"{caller}: label {known[wrong][0]} is out of range, expected 0 … {classes - 1}"
        )
