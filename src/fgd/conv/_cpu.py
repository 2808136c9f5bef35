"""How a convolution is compiled on CPU, where lax's own is slow inside a loop."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fgd.conv._geometry import Conv

_CACHE = 2**17  # bytes of an operand that fit into the cache of a core beside what streams by
_PATCHES = 2**28  # bytes that copies of patches may take
_SHORT = 32  # values of a patch; an image of one channel has them in few, whatever the window


def on_cpu(lhs: jax.Array, rhs: jax.Array, *, conv: Conv) -> jax.Array:
    """Of lhs and rhs with a leading axis, models."""
    if lhs.shape[0] == 1:
        return _one(lhs[0], rhs[0], conv)[None]
    # One model after another: XLA on CPU has no fast code for convolutions in groups.
    return lax.map(lambda operands: _one(operands[0], operands[1], conv), (lhs, rhs))


def _one(lhs: jax.Array, rhs: jax.Array, conv: Conv) -> jax.Array:
    """The convolution, transposed to NHWC · HWIO → NHWC and back."""
    if conv.roles != "xwy":  # or XLA would make the operands anew for each of their transpositions
        lhs, rhs = lax.optimization_barrier((lhs, rhs))
    n = lhs.ndim
    rows_first = (0, n - 1, *range(1, n - 1))
    plain = replace(
        conv, lhs_spec=rows_first, rhs_spec=(n - 1, n - 2, *range(n - 2)), out_spec=rows_first
    )
    lhs = lhs.transpose([conv.lhs_spec[0], *conv.lhs_spec[2:], conv.lhs_spec[1]])
    rhs = rhs.transpose([*conv.rhs_spec[2:], conv.rhs_spec[1], conv.rhs_spec[0]])
    back = np.argsort([conv.out_spec[0], *conv.out_spec[2:], conv.out_spec[1]])
    return _canonical(lhs, rhs, plain).transpose(back)


def _canonical(lhs: jax.Array, rhs: jax.Array, conv: Conv) -> jax.Array:
    """In the way that was measured to be fastest in a step of training, of those that fit."""
    _, window, places = conv.extents(lhs, rhs)
    if lhs.dtype.itemsize < 4:
        return conv(lhs, rhs)  # which rounds once, where sums of parts would round each
    # A kernel's gradient sums over the batch, which in an export may be of any size, and which XLA
    # itself splits on a mesh.
    is_whole = isinstance(lhs.shape[-1], int) and jax.sharding.get_abstract_mesh().empty
    if conv.roles == "xyw" and is_whole:
        number = math.prod(places)
        is_short = number <= 16 or number * lhs.shape[0] <= _SHORT
        if is_short and number * lhs.size * lhs.dtype.itemsize <= _PATCHES:
            return _patch_by_patch(lhs, rhs, conv)
        if 4 * number <= math.prod(window):
            return _in_parts(lhs, rhs, conv)
    if conv.roles == "ywx" and conv.strides[0] == 1 and places[0] > lhs.shape[1]:
        return _row_by_row(lhs, rhs, conv)
    return conv(lhs, rhs)


def _patch_by_patch(lhs: jax.Array, rhs: jax.Array, conv: Conv) -> jax.Array:
    """As one product of the patches that the window meets; in four parts, which XLA spreads."""
    _, _, places = conv.extents(lhs, rhs)
    *size, summed, features = rhs.shape
    zero, whole = jnp.zeros((), lhs.dtype), (0, 0, 0)
    edges = [(*pad, d - 1) for pad, d in zip(conv.padding, conv.lhs_dilation, strict=True)]
    images = lax.pad(lhs.swapaxes(0, -1), zero, [whole, *edges, whole])

    def patches(*place: int) -> jax.Array:
        """Those whose place begins so: [summed, *size, *other axes of the place, features]."""
        if len(place) < len(places):
            nearby = [patches(*place, i) for i in range(places[len(place)])]
            return jnp.stack(nearby, 1 + len(places))
        start = np.multiply(place, conv.strides)
        limit = start + (np.array(size) - 1) * conv.rhs_dilation + 1
        ends = (0, *start, 0), (summed, *limit, images.shape[-1])
        return lax.slice(images, *ends, (1, *conv.rhs_dilation, 1))

    parts = math.gcd(summed, 4)
    inputs = patches().reshape(parts, -1, math.prod(places) * images.shape[-1])
    cotangents = jnp.moveaxis(rhs, -2, 0).reshape(parts, -1, features)
    dims = (((1,), (1,)), ((0,), (0,)))
    products = lax.dot_general(cotangents, inputs, dims, precision=conv.precision)
    return products.sum(0).reshape(features, *places, -1).swapaxes(0, -1)


def _row_by_row(lhs: jax.Array, rhs: jax.Array, conv: Conv) -> jax.Array:
    """As sums of each row's convolutions with each row of the window: no row is padding."""
    size, features = rhs.shape[0], rhs.shape[-1]
    window = jnp.moveaxis(rhs, 0, -2).reshape(1, *rhs.shape[1:-1], size * features)
    (low, high), *padding = conv.padding
    dilation, step = conv.lhs_dilation[0], conv.rhs_dilation[0]
    one_row = replace(
        conv,
        padding=((0, 0), *padding),
        lhs_dilation=(1, *conv.lhs_dilation[1:]),
        rhs_dilation=(1, *conv.rhs_dilation[1:]),
    )
    rows = one_row(lhs, window)
    rows = rows.reshape(*rows.shape[:-1], size, features)
    zero, whole = jnp.zeros((), lhs.dtype), (0, 0, 0)
    shifted = []
    for i in range(size):
        edges = (low - i * step, high - (size - 1 - i) * step, dilation - 1)
        shifted.append(lax.pad(rows[..., i, :], zero, [whole, edges, *[whole] * (lhs.ndim - 2)]))
    return sum(shifted[1:], shifted[0])


def _in_parts(lhs: jax.Array, rhs: jax.Array, conv: Conv) -> jax.Array:
    """As a sum over parts of the features: XLA reads all of rhs for every row of the result."""
    features = lhs.shape[-1]
    wanted = max(1, min(rhs.size * rhs.dtype.itemsize // _CACHE, features // 2))
    parts = next(n for n in range(wanted, 0, -1) if features % n == 0)
    if parts == 1:
        return conv(lhs, rhs)

    def split(x: jax.Array, axis: int) -> jax.Array:
        x = x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + conv(*part), None

    start = jnp.zeros(jax.eval_shape(conv, lhs, rhs).shape, lhs.dtype)
    return lax.scan(add, start, (split(lhs, lhs.ndim - 1), split(rhs, rhs.ndim - 2)))[0]
