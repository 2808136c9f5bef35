"""Pooling of images, along one axis after the other.

The values of a window are slices of the whole, which XLA on CPU compares with vector instructions;
its own reductions over windows, and their gradients, take up to twenty times as long.
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    size, strides = _sizes("max_pool", x, window, strides)
    for axis in (2, 1):
        x = _largest(x, axis, size[axis - 1], strides[axis - 1])
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
    size, strides = _sizes("avg_pool", x, window, strides)
    for axis in (2, 1):
        x = reduce(jnp.add, _parts(x, axis, size[axis - 1], strides[axis - 1]))
    return x / (size[0] * size[1])


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


def _windows(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Windows that do not overlap: [..., size · n + rest, ...] as [..., n, size, ...]."""
    count = x.shape[axis] // size
    x = lax.slice_in_dim(x, 0, count * size, axis=axis)
    return x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def _parts(x: jax.Array, axis: int, size: int, stride: int) -> list[jax.Array]:
    """The first values of all windows along an axis, the second, …"""
    if size == stride:
        x = _windows(x, axis, size)
        return [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(size)]
    last = (x.shape[axis] - size) // stride * stride
    return [lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size)]


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _largest(x: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    return reduce(jnp.maximum, _parts(x, axis, size, stride))


@_largest.defjvp
def _(
    axis: int, size: int, stride: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    largest = _largest(x, axis, size, stride)
    number = np.min_scalar_type(size)
    first = jnp.full(largest.shape, size - 1, number)
    for i, part in reversed(list(enumerate(_parts(x, axis, size, stride)[:-1]))):
        first = jnp.where(part == largest, number.type(i), first)
    if size == stride:  # the same sum, whose transpose is one pass
        change = _windows(change, axis, size)
        place = lax.broadcasted_iota(number, change.shape, axis + 1)
        chosen = jnp.where(place == jnp.expand_dims(first, axis + 1), change, 0)
        return largest, chosen.sum(axis + 1)
    parts = enumerate(_parts(change, axis, size, stride))
    return largest, reduce(jnp.add, [jnp.where(first == i, part, 0) for i, part in parts])
