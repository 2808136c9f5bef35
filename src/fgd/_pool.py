"""Pooling of images: by reshaping where windows do not overlap, which XLA on CPU likes best."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fgd import _checks


def max_pool(
    x: Float[Array, "rows height width channels"],
    window: int | tuple[int, int] = 2,
    strides: int | tuple[int, int] | None = None,
) -> Float[Array, "rows up across channels"]:
    """The largest value in each window, and its gradient to that value.

    Where several are the largest, the gradient goes to the first of them, in reading order, as
    PyTorch has it (`jnp.max` would share it out).

    Args:
      x: images.
      window: its height and width; one int, if they are equal.
      strides: from window to window; None: the window's size. Rows and columns left over at the
        bottom and right are dropped.

    Raises:
      TypeError, ValueError: x of another rank, sizes that are not positive ints, or a window
        larger than the image.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> fgd.conv.max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    (h, w), steps = _sizes("max_pool", x, window, strides)
    if (h, w) == steps:
        return _largest(_blocks(x, h, w))
    lowest = jnp.array(-jnp.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, h, w, 1), (1, *steps, 1), "VALID")


def avg_pool(
    x: Float[Array, "rows height width channels"],
    window: int | tuple[int, int] = 2,
    strides: int | tuple[int, int] | None = None,
) -> Float[Array, "rows up across channels"]:
    """The mean of each window.

    Args:
      x, window, strides: as in `max_pool`.

    Raises:
      TypeError, ValueError: as `max_pool`.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> fgd.conv.avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
      [[2.5, 4.5], [10.5, 12.5]]
    """
    (h, w), steps = _sizes("avg_pool", x, window, strides)
    if (h, w) == steps:
        return _blocks(x, h, w).mean(axis=(2, 4))
    zero = jnp.zeros((), x.dtype)
    return lax.reduce_window(x, zero, lax.add, (1, h, w, 1), (1, *steps, 1), "VALID") / (h * w)


def _sizes(
    caller: str, x: jax.Array, window: Any, strides: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    if x.ndim != 4:
        raise ValueError(
            f"{caller}: x has shape {x.shape}, expected [rows, height, width, channels]"
        )

    def pair(name: str, value: Any) -> tuple[int, int]:
        h, w = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
        return _checks.count(caller, name, h, least=1), _checks.count(caller, name, w, least=1)

    size = pair("window", window)
    if size[0] > x.shape[1] or size[1] > x.shape[2]:
        raise ValueError(
            f"{caller}: window={window} is larger than x, whose images are "
            f"{x.shape[1]} × {x.shape[2]}"
        )
    return size, size if strides is None else pair("strides", strides)


def _blocks(x: jax.Array, h: int, w: int) -> jax.Array:
    rows, height, width, channels = x.shape
    x = x[:, : height // h * h, : width // w * w]
    return x.reshape(rows, height // h, h, width // w, w, channels)


@jax.custom_jvp
def _largest(blocks: jax.Array) -> jax.Array:
    return blocks.max(axis=(2, 4))


@_largest.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (blocks,), (change,) = primals, tangents
    h, w = blocks.shape[2], blocks.shape[4]
    largest = _largest(blocks)
    place = jnp.arange(h * w).reshape(1, 1, h, 1, w, 1)
    is_largest = blocks == largest[:, :, None, :, None]
    first = jnp.where(is_largest, place, h * w - 1).min(axis=(2, 4), keepdims=True)
    return largest, jnp.where(place == first, change, 0).sum(axis=(2, 4))
