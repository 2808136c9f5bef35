"""Pooling of images, in the ways that XLA on CPU likes best.

Windows that do not overlap are axes of a reshaped image. Of others, the values are slices, along
one axis after the other: XLA's own reductions over windows have slow gradients.
"""

from functools import partial, reduce
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
    size, steps = _sizes("max_pool", x, window, strides)
    if size == steps:
        return _largest(_blocks(x, *size))
    for axis in (2, 1):
        x = _largest_along(x, axis, size[axis - 1], steps[axis - 1])
    return x


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
    size, steps = _sizes("avg_pool", x, window, strides)
    if size == steps:
        return _blocks(x, *size).mean(axis=(2, 4))
    for axis in (2, 1):
        x = reduce(jnp.add, _parts(x, axis, size[axis - 1], steps[axis - 1]))
    return x / (size[0] * size[1])


def _sizes(
    caller: str, x: jax.Array, window: Any, strides: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    _checks.require_array(caller, "x", x, "numbers, images")
    if jnp.ndim(x) != 4:
        raise ValueError(
            f"{caller}: x has shape {jnp.shape(x)}, expected [rows, height, width, channels]"
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


def _parts(x: jax.Array, axis: int, size: int, stride: int) -> list[jax.Array]:
    """The first values of all windows along an axis, the second, …"""
    last = (x.shape[axis] - size) // stride * stride
    return [lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size)]


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _largest_along(x: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    return reduce(jnp.maximum, _parts(x, axis, size, stride))


@_largest_along.defjvp
def _(
    axis: int, size: int, stride: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    largest = _largest_along(*primals, axis, size, stride)
    parts, changes = (_parts(x, axis, size, stride) for (x,) in (primals, tangents))
    change = changes[-1]
    for part, its in zip(parts[-2::-1], changes[-2::-1], strict=True):
        change = jnp.where(part == largest, its, change)
    return largest, change
