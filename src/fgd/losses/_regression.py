"""Losses of numbers."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from fgd import _checks
from fgd.losses._reduce import Reduction, floating, reduce


def mse(
    pred: Num[Array, "rows *features"],
    target: Num[Array, "rows *features"],
    *,
    weights: Num[Array, "..."] | None = None,
    reduction: Reduction = "mean",
) -> Float[Array, "*rows"]:
    r"""Squared error, (pred − target)².

    Args:
      pred: predictions.
      target: what they should have been, of the same shape.
      weights: of each row, [rows], or of more of the leading axes; not negative.
      reduction: "mean" over every element, "sum" over every element, or "none": [rows], each row's
        mean, so that the mean of "none" is "mean".

    Raises:
      TypeError: what is not real numbers.
      ValueError: shapes differ ([n, 1] and [n] would broadcast to [n, n]), a mean over nothing,
        weights of another length, negative or all zero, or another reduction.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> pred, target = jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])
      >>> float(fgd.losses.mse(pred, target))
      2.0
      >>> float(fgd.losses.mse(pred, target, weights=jnp.array([3.0, 1.0])))
      1.0
    """
    _checks.require_reals("mse", pred=pred, target=target)
    if jnp.shape(pred) != jnp.shape(target):
        raise ValueError(
            f"mse: pred has shape {jnp.shape(pred)} and target {jnp.shape(target)}; expected equal "
            "shapes, for they would broadcast; reshape one of them"
        )
    square = jnp.square(floating(pred) - floating(target))  # bytes would wrap
    return reduce("mse", square, weights, reduction)
