"""How the convolution of `fgd._conv` is compiled: the fast ways on CPU, lax's own elsewhere."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import mlir

from fgd._conv import Conv, conv_p

_CACHE = 2**17  # bytes of an operand that stay close to a core while all others pass by


def _elsewhere(lhs: jax.Array, rhs: jax.Array, *, conv: Conv) -> jax.Array:
    return conv(lhs[0], rhs[0])[None] if lhs.shape[0] == 1 else jax.vmap(conv)(lhs, rhs)


def _cpu(lhs: jax.Array, rhs: jax.Array, *, conv: Conv) -> jax.Array:
    if lhs.shape[0] == 1:
        return _one(lhs[0], rhs[0], conv)[None]
    # One model after another: XLA on CPU has no fast code for convolutions in groups.
    return lax.map(lambda operands: _one(operands[0], operands[1], conv), (lhs, rhs))


mlir.register_lowering(conv_p, mlir.lower_fun(_elsewhere, multiple_results=False))
mlir.register_lowering(conv_p, mlir.lower_fun(_cpu, multiple_results=False), platform="cpu")


def _one(lhs: jax.Array, rhs: jax.Array, conv: Conv) -> jax.Array:
    """A kernel's gradient, known by a window that leaves few places, in parts that fit a cache."""
    _, window, places = conv.extents(lhs, rhs)
    features = lhs.shape[conv.lhs_spec[1]]  # the gradient's are rows; in an export, of any number
    if not isinstance(features, int) or 4 * math.prod(places) > math.prod(window):
        return _canonical(lhs, rhs, conv)
    wanted = max(1, min(rhs.size * rhs.dtype.itemsize // _CACHE, features // 2))
    parts = next(n for n in range(wanted, 0, -1) if features % n == 0)
    return _canonical(lhs, rhs, conv) if parts == 1 else _in_parts(lhs, rhs, conv, parts)


def _canonical(lhs: jax.Array, rhs: jax.Array, conv: Conv) -> jax.Array:
    """Transposed to NHWC · HWIO → NHWC, and back."""
    n = lhs.ndim
    rows_first = (0, n - 1, *range(1, n - 1))
    plain = replace(
        conv, lhs_spec=rows_first, rhs_spec=(n - 1, n - 2, *range(n - 2)), out_spec=rows_first
    )
    lhs = lhs.transpose([conv.lhs_spec[0], *conv.lhs_spec[2:], conv.lhs_spec[1]])
    rhs = rhs.transpose([*conv.rhs_spec[2:], conv.rhs_spec[1], conv.rhs_spec[0]])
    back = np.argsort([conv.out_spec[0], *conv.out_spec[2:], conv.out_spec[1]])
    return plain(lhs, rhs).transpose(back)


def _in_parts(lhs: jax.Array, rhs: jax.Array, conv: Conv, parts: int) -> jax.Array:
    """As a sum over parts of the features: XLA reads all of rhs for every row of the result."""

    def split(x: jax.Array, axis: int) -> jax.Array:
        x = x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _canonical(*part, conv), None

    start = jnp.zeros(jax.eval_shape(conv, lhs, rhs).shape, lhs.dtype)
    pieces = split(lhs, conv.lhs_spec[1]), split(rhs, conv.rhs_spec[1])
    return lax.scan(add, start, pieces)[0]
