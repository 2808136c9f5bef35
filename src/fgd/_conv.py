"""One convolution, closed under differentiation, compiled as each platform likes it.

XLA on CPU has fast code for convolutions written NHWC · HWIO → NHWC. It rewrites others so at the
top of a program, but not inside a loop (jax#12868); there the gradients of lax's convolution, whose
dimensions are permuted, are slower by an order of magnitude. A convolution is bilinear and its
transposes are convolutions. Here all three are one primitive, which transposes its operands itself
on CPU (`fgd._conv_cpu`) and is lax's elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """The static arguments of a convolution without groups, as lax normalizes them.

    A spec gives the axes of (rows, features, *space) in lhs and out, and of (features out,
    features in, *space) in rhs. Roles say what lhs, rhs and out are to the layer that this is or
    comes from: its input x, its kernel w, its result y, or what has their shape.
    """

    strides: Ints
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Ints
    rhs_dilation: Ints
    lhs_spec: Ints
    rhs_spec: Ints
    out_spec: Ints
    precision: Any
    roles: str = "xwy"

    def __call__(self, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            self.strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            lax.ConvDimensionNumbers(self.lhs_spec, self.rhs_spec, self.out_spec),
            precision=self.precision,
        )

    def extents(self, lhs: Any, rhs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """In each direction: the image's size, the window's, both dilated, and the result's."""
        image = _dilated(lhs, self.lhs_spec, self.lhs_dilation)
        window = _dilated(rhs, self.rhs_spec, self.rhs_dilation)
        return image, window, (image + np.sum(self.padding, axis=1) - window) // self.strides + 1

    def to_lhs(self, lhs: Any, rhs: Any) -> "Conv":
        """The convolution of g, the result's cotangent, with rhs flipped that gives lhs's."""
        image, window, places = self.extents(lhs, rhs)
        low = window - 1 - np.array(self.padding)[:, 0]
        high = image + window - 2 - (places - 1) * self.strides - low
        return replace(
            self,
            strides=self.lhs_dilation,
            padding=_pairs(low, high),
            lhs_dilation=self.strides,
            lhs_spec=self.out_spec,
            rhs_spec=_swapped(self.rhs_spec),
            out_spec=self.lhs_spec,
            roles=self.roles[::-1],
        )

    def to_rhs(self, lhs: Any, rhs: Any) -> "Conv":
        """The convolution of lhs with g that gives rhs's cotangent."""
        image, window, places = self.extents(lhs, rhs)
        of_lhs, of_rhs, of_out = self.roles
        low = np.array(self.padding)[:, 0]
        high = (places - 1) * self.strides + window - image - low
        return replace(
            self,
            strides=self.rhs_dilation,
            padding=_pairs(low, high),
            rhs_dilation=self.strides,
            lhs_spec=_swapped(self.lhs_spec),
            rhs_spec=_swapped(self.out_spec),
            out_spec=_swapped(self.rhs_spec),
            roles=of_lhs + of_out + of_rhs,
        )


def _dilated(x: Any, spec: Ints, dilation: Ints) -> np.ndarray:
    return (np.array([x.shape[axis] for axis in spec[2:]]) - 1) * dilation + 1


def _swapped(spec: Ints) -> Ints:
    return spec[1], spec[0], *spec[2:]


def _pairs(low: np.ndarray, high: np.ndarray) -> tuple[tuple[int, int], ...]:
    return tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))


def _one_of(models: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(models.shape[1:], models.dtype)


# Operands and result lead with one more axis, models, which `vmap` makes longer than 1.
conv_p = Primitive("fgd_conv")


@conv_p.def_abstract_eval
def _shape(lhs: Any, rhs: Any, *, conv: Conv) -> Any:
    out = jax.eval_shape(conv, _one_of(lhs), _one_of(rhs))
    return ShapedArray((lhs.shape[0], *out.shape), out.dtype)


_jitted = jax.jit(lambda lhs, rhs, conv: conv_p.bind(lhs, rhs, conv=conv), static_argnums=2)
conv_p.def_impl(lambda lhs, rhs, *, conv: _jitted(lhs, rhs, conv))


def _to_lhs(g: jax.Array, lhs: Any, rhs: jax.Array, *, conv: Conv) -> jax.Array:
    to_lhs = conv.to_lhs(_one_of(lhs.aval), _one_of(rhs))
    return conv_p.bind(g, lax.rev(rhs, [1 + axis for axis in conv.rhs_spec[2:]]), conv=to_lhs)


def _to_rhs(g: jax.Array, lhs: jax.Array, rhs: Any, *, conv: Conv) -> jax.Array:
    return conv_p.bind(lhs, g, conv=conv.to_rhs(_one_of(lhs), _one_of(rhs.aval)))


ad.defbilinear(conv_p, _to_lhs, _to_rhs)


def _batch(args: Sequence[jax.Array], dims: Sequence[Any], *, conv: Conv) -> tuple[jax.Array, int]:
    """More models if both operands are mapped, else more rows or more features out."""
    lhs, rhs = args
    of_lhs, of_rhs = (isinstance(dim, int) for dim in dims)
    if of_lhs and of_rhs:
        lhs, rhs = (jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True))
        out = conv_p.bind(_merged(lhs, 0), _merged(rhs, 0), conv=conv)
        return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0
    x, dim, axis, to = (
        (lhs, dims[0], 1 + conv.lhs_spec[0], 1 + conv.out_spec[0])
        if of_lhs
        else (rhs, dims[1], 1 + conv.rhs_spec[0], 1 + conv.out_spec[1])
    )
    x = jnp.moveaxis(x, dim, axis)
    merged = _merged(x, axis)
    out = conv_p.bind(*((merged, rhs) if of_lhs else (lhs, merged)), conv=conv)
    return out.reshape(*out.shape[:to], *x.shape[axis : axis + 2], *out.shape[to + 1 :]), to


def _merged(x: jax.Array, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


batching.primitive_batchers[conv_p] = _batch
