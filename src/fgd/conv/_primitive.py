"""The convolution as one primitive, closed under differentiation, compiled for each platform.

XLA on CPU has fast code for convolutions written NHWC · HWIO → NHWC. It rewrites others so at the
top of a program, but not inside a loop (jax#12868); there the gradients of lax's convolution, whose
dimensions are permuted, are slower by an order of magnitude. A convolution is bilinear and its
transposes are convolutions. Here all three are one primitive, which transposes its operands itself
on CPU (`fgd.conv._cpu`) and is lax's elsewhere.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fgd._bilinear import bilinear_primitive
from fgd.conv._cpu import on_cpu
from fgd.conv._geometry import Conv

# Operands and result lead with one more axis, models, which `vmap` makes longer than 1.


def _one_of(models: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(models.shape[1:], models.dtype)


def _shape(lhs: Any, rhs: Any, *, conv: Conv) -> jax.ShapeDtypeStruct:
    out = jax.eval_shape(conv, _one_of(lhs), _one_of(rhs))
    return jax.ShapeDtypeStruct((lhs.shape[0], *out.shape), out.dtype)


def _to_lhs(g: jax.Array, lhs: Any, rhs: jax.Array, *, conv: Conv) -> jax.Array:
    to_lhs = conv.to_lhs(_one_of(lhs), _one_of(rhs))
    return bind(g, lax.rev(rhs, [1 + axis for axis in conv.rhs_spec[2:]]), conv=to_lhs)


def _to_rhs(g: jax.Array, lhs: jax.Array, rhs: Any, *, conv: Conv) -> jax.Array:
    return bind(lhs, g, conv=conv.to_rhs(_one_of(lhs), _one_of(rhs)))


def _batched(args: Sequence[jax.Array], dims: Sequence[Any], *, conv: Conv) -> tuple[Any, int]:
    """More models if both operands are mapped, else more rows or more features out."""
    lhs, rhs = args
    of_lhs, of_rhs = (isinstance(dim, int) for dim in dims)
    if of_lhs and of_rhs:
        lhs, rhs = (jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True))
        out = bind(_merged(lhs, 0), _merged(rhs, 0), conv=conv)
        return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0
    x, dim, axis, to = (
        (lhs, dims[0], 1 + conv.lhs_spec[0], 1 + conv.out_spec[0])
        if of_lhs
        else (rhs, dims[1], 1 + conv.rhs_spec[0], 1 + conv.out_spec[1])
    )
    x = jnp.moveaxis(x, dim, axis)
    merged = _merged(x, axis)
    out = bind(*((merged, rhs) if of_lhs else (lhs, merged)), conv=conv)
    return out.reshape(*out.shape[:to], *x.shape[axis : axis + 2], *out.shape[to + 1 :]), to


def _merged(x: jax.Array, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _elsewhere(lhs: jax.Array, rhs: jax.Array, *, conv: Conv) -> jax.Array:
    return conv(lhs[0], rhs[0])[None] if lhs.shape[0] == 1 else jax.vmap(conv)(lhs, rhs)


bind = bilinear_primitive(
    "fgd_conv",
    shape=_shape,
    transposed=(_to_lhs, _to_rhs),
    batched=_batched,
    lowered=_elsewhere,
    lowered_on_cpu=on_cpu,
)


def convolve(lhs: jax.Array, rhs: jax.Array, conv: Conv) -> jax.Array:
    """One convolution."""
    return bind(lhs[None], rhs[None], conv=conv)[0]
