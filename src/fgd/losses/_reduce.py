"""From a value for each element to what a loss is: with weights, as a mean, a sum or by row."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fgd import _checks

Reduction = Literal["mean", "sum", "none"]


def reduce(caller: str, values: jax.Array, weights: Any, reduction: str) -> jax.Array:
    """Σ w·v / Σ w, Σ w·v, or the mean of w·v in each row.

    Raises:
      TypeError: weights are not real numbers.
      ValueError: another reduction; a mean over nothing; weights of another shape than a leading
        part of the values', or, as far as they can be looked at, negative or all zero.
    """
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(f'{caller}: reduction must be "mean", "sum" or "none", got {reduction!r}')
    total = values.size
    if weights is not None:
        weights = as_weights(caller, weights, values.shape, some=reduction == "mean")
        weights = _with_axes(weights.astype(values.dtype), values.ndim)
        total = jnp.sum(jnp.broadcast_to(weights, values.shape))
        values = values * weights
    if reduction == "sum":
        return jnp.sum(values)
    if reduction == "none":
        _require_some(caller, values.shape[1:])
        return jnp.mean(values, axis=tuple(range(1, values.ndim)))
    _require_some(caller, values.shape)
    return jnp.mean(values) if weights is None else ratio(jnp.sum(values), total)


def ratio(numerator: jax.Array, denominator: Any) -> jax.Array:
    """Their quotient; 0 where all weights are 0, for then there is nothing to learn from."""
    return numerator / jnp.where(denominator == 0, 1, denominator).astype(numerator.dtype)


def as_weights(caller: str, weights: Any, shape: tuple[Any, ...], *, some: bool) -> jax.Array:
    """Weights of what has this shape: of its rows, or of more of its leading axes."""
    _checks.require_reals(caller, weights=weights)
    axes = np.ndim(weights)
    if axes == 0 or np.shape(weights) != shape[:axes]:
        raise ValueError(
            f"{caller}: weights have shape {np.shape(weights)}, expected {shape[:1]}, one a row"
            + (f", or more of the leading axes of {shape}" if len(shape) > 1 else "")
        )
    if _checks.is_concrete(weights) and getattr(weights, "is_fully_addressable", True):
        known = np.asarray(weights)
        if not np.all((known >= 0) & (known < np.inf)):
            raise ValueError(f"{caller}: weights must not be negative or NaN, or infinite")
        if some and known.size and not known.any():
            raise ValueError(f"{caller}: all weights are 0, so that there is no mean")
    return jnp.asarray(weights)


def floating(x: Any) -> jax.Array:
    """`x`, if it is of floats, or else converted: NumPy's int64 at once, which int32 would wrap."""
    x = jnp.asarray(x.astype(float) if isinstance(x, np.ndarray) and x.dtype.kind in "iu" else x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def weightless(weights: Any, shape: tuple[Any, ...]) -> Any:
    """Where the weights of what has this shape are 0; False if there are none."""
    if weights is None or np.shape(weights) != shape[: np.ndim(weights)]:
        return False
    array = weights if isinstance(weights, jax.Array) else np.asarray(weights)
    return _with_axes(array == 0, len(shape))


def _with_axes(weights: Any, axes: int) -> Any:
    """With as many axes as the values have."""
    return weights.reshape(weights.shape + (1,) * (axes - weights.ndim))


def _require_some(caller: str, shape: tuple[Any, ...]) -> None:
    if 0 in shape:
        raise ValueError(f"{caller}: the mean of nothing, of shape {shape}, is no number")
