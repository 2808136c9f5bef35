"""Losses and metrics of classes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Num

from fgd import _checks
from fgd.losses._reduce import Reduction, floating, reduce, weightless

Weights = Num[Array, "..."] | None


def cross_entropy(
    logits: Float[Array, "*rows classes"],
    labels: Integer[Array, "*rows"],
    *,
    label_smoothing: float | Float[Array, ""] = 0.0,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Array, "*reduced"]:
    r"""Cross-entropy of integer labels under softmax(logits), in nats: log Σⱼ exp zⱼ − z_label.

    Args:
      logits: unnormalised log-probabilities, with any leading axes, such as [rows, time, classes].
      labels: integers in [0, classes), [rows, time] then.
      label_smoothing: ε, the share of the target that all classes have alike: the loss is
        (1 − ε) times that of the label, plus ε times the mean of those of all classes.
      weights: of each row, or of each label; not negative. Where one is 0, as for padding, the
        label may be any integer.
      reduction: "mean" or "sum" over labels, or "none": [rows], each row's mean.

    Returns:
      The loss; NaN where a label is out of range and its value can't be looked at (in a compiled
      program), gradient included.

    Raises:
      TypeError: labels are not integers.
      ValueError: shapes do not match, fewer than two classes, another reduction, or a concrete
        label is out of range; weights of another length, negative or all zero.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> round(float(fgd.losses.cross_entropy(jnp.zeros([1, 10]), jnp.array([3]))), 4)
      2.3026

    Source:
      Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception
      Architecture for Computer Vision", CVPR 2016, section 7.
    """
    logits, labels = _checked("cross_entropy", logits, labels, weights)
    _checks.require_fraction("cross_entropy", label_smoothing=label_smoothing)
    logits, labels = floating(logits), _wide(labels)
    # One-hot rather than a gather: its derivative is a subtraction, not a scatter.
    chosen = labels[..., None] == _numbers(logits, labels)
    chosen_logit = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)  # 0 · −∞ would be NaN
    if not (_checks.is_concrete(label_smoothing) and label_smoothing == 0):
        share = jnp.asarray(label_smoothing, logits.dtype)
        chosen_logit = (1 - share) * chosen_logit + share * jnp.mean(logits, axis=-1)
    values = jax.nn.logsumexp(logits, axis=-1) - chosen_logit
    valid = (labels >= 0) & (labels < logits.shape[-1]) | weightless(weights, labels.shape)
    values = values * jnp.where(valid, 1, jnp.nan).astype(values.dtype)
    return reduce("cross_entropy", values, weights, reduction)


def binary_cross_entropy(
    logits: Float[Array, "rows *rest"],
    targets: Num[Array, "rows *rest"] | Bool[Array, "rows *rest"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Array, "*reduced"]:
    r"""Cross-entropy of yes or no, 1 or 0, under sigmoid(logits), in nats: log(1 + exp ∓z).

    Args:
      logits: one for each question, z = log p / (1 − p).
      targets: 0 or 1, of the same shape.
      weights: of each row, or of each target; not negative.
      reduction: "mean" or "sum" over targets, or "none": [rows], each row's mean.

    Returns:
      The loss; NaN where a target is neither and its value can't be looked at (in a compiled
      program), gradient included.

    Raises:
      TypeError: what is not real numbers.
      ValueError: shapes differ, another reduction, a concrete target is neither 0 nor 1; weights of
        another length, negative or all zero.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> round(float(fgd.losses.binary_cross_entropy(jnp.zeros(2), jnp.array([0, 1]))), 4)
      0.6931
    """
    logits, targets = _binary("binary_cross_entropy", logits, targets, weights)
    yes = targets == 1
    values = jax.nn.softplus(jnp.where(yes, -logits, logits))
    valid = yes | (targets == 0) | weightless(weights, targets.shape)
    values = values * jnp.where(valid, 1, jnp.nan).astype(values.dtype)
    return reduce("binary_cross_entropy", values, weights, reduction)


def accuracy(
    logits: Float[Array, "*rows classes"],
    labels: Integer[Array, "*rows"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Array, "*reduced"]:
    """Whether the largest logit is the label's: 1 or 0.

    Args:
      logits: scores, any monotone function of probabilities, with any leading axes.
      labels: integers in [0, classes).
      weights: of each row, or of each label; not negative.
      reduction: "mean" or "sum" over labels, or "none": [rows], each row's mean.

    Raises:
      TypeError: labels are not integers.
      ValueError: shapes do not match, fewer than two classes, another reduction, or a concrete
        label is out of range; weights of another length, negative or all zero.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> float(fgd.losses.accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])))
      0.5
    """
    logits, labels = _checked("accuracy", logits, labels, weights)
    right = jnp.argmax(logits, axis=-1) == _wide(labels)
    return reduce("accuracy", _checks.single(right), weights, reduction)


def binary_accuracy(
    logits: Float[Array, "rows *rest"],
    targets: Num[Array, "rows *rest"] | Bool[Array, "rows *rest"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Array, "*reduced"]:
    """Whether a logit is positive where the target is 1, and not where it is 0: 1 or 0.

    Args:
      logits, targets, weights, reduction: as in `binary_cross_entropy`.

    Raises:
      TypeError, ValueError: as `binary_cross_entropy`.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> float(fgd.losses.binary_accuracy(jnp.array([-1.0, 2.0]), jnp.array([1, 1])))
      0.5
    """
    logits, targets = _binary("binary_accuracy", logits, targets, weights)
    right = (logits > 0) == (targets == 1)
    return reduce("binary_accuracy", _checks.single(right), weights, reduction)


def _wide(labels: jax.Array) -> jax.Array:
    """Bytes as int32: among 300 classes, arithmetic on uint8 would wrap and call 261 a 5."""
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def _numbers(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """0, 1, …, classes − 1, with as many axes as the logits have."""
    return jax.lax.broadcasted_iota(
        labels.dtype, (1,) * labels.ndim + logits.shape[-1:], labels.ndim
    )


def _binary(caller: str, logits: Any, targets: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
    _checks.require_reals(caller, logits=logits, targets=targets)
    if jnp.shape(logits) != jnp.shape(targets):
        raise ValueError(
            f"{caller}: logits have shape {jnp.shape(logits)} and targets {jnp.shape(targets)}; "
            "expected equal shapes, for they would broadcast; reshape one of them"
        )
    if jnp.ndim(logits) == 0:
        raise ValueError(f"{caller}: logits and targets are scalars, expected [rows]")
    if _checks.is_concrete(targets):
        known = np.asarray(targets).astype(np.float64)
        if (wrong := (known != 0) & (known != 1) & _counts(weights, known.shape)).any():
            raise ValueError(
                f"{caller}: target {known[wrong][0]:g} is neither 0 nor 1; of probabilities "
                "jax.random.bernoulli draws targets, of more than two classes take cross_entropy"
            )
    return floating(logits), floating(targets)


def _checked(caller: str, logits: Any, labels: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
    _checks.require_reals(caller, logits=logits, labels=labels)
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(f"{caller}: labels have dtype {jnp.result_type(labels)}, expected integers")
    alike = jnp.shape(logits) == jnp.shape(labels) != ()
    if jnp.ndim(labels) == 0 or jnp.shape(labels) != jnp.shape(logits)[:-1]:
        raise ValueError(
            f"{caller}: expected logits [rows, classes] and labels [rows], or both with more axes "
            f"after rows, got {jnp.shape(logits)} and {jnp.shape(labels)}"
            + (f"; of yes or no, take fgd.losses.binary_{caller}" if alike else "")
        )
    if jnp.shape(logits)[-1] < 2:
        raise ValueError(
            f"{caller}: logits have shape {jnp.shape(logits)}, one class, whose probability is "
            f"always 1; of yes or no, take fgd.losses.binary_{caller} and logits of shape "
            f"{jnp.shape(logits)[:-1]}, or give two logits"
        )
    if _checks.is_concrete(labels):
        # NumPy: inside a compiled function, jax would trace even what is known.
        known, classes = np.asarray(labels).astype(np.int64), jnp.shape(logits)[-1]
        outside = (known < 0) | (known >= classes)
        if (wrong := outside & _counts(weights, known.shape)).any():
            raise ValueError(
                f"{caller}: label {known[wrong][0]} is out of range, expected 0 … {classes - 1}"
            )
    return jnp.asarray(logits), jnp.asarray(labels)


def _counts(weights: Any, shape: tuple[Any, ...]) -> np.ndarray:
    """Where labels are looked at: what has no weight may be −100, say, for padding."""
    if not _checks.is_concrete(weights):
        return np.zeros(shape, bool)
    known = None if weights is None else np.asarray(weights)
    return np.broadcast_to(~np.asarray(weightless(known, shape), bool), shape)
