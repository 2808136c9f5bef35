"""`conv_general_dilated`: lax's signature, and which of its cases are fgd's own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from fgd.conv._geometry import Conv
from fgd.conv._primitive import convolve


def conv_general_dilated(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, with gradients that are fast in a loop on CPU too.

    A drop-in: the same arguments, result, errors and derivatives of every order, forward and
    reverse. XLA on CPU compiles the gradients of lax's own about ten times slower inside
    `lax.scan` (jax#12868), so inside `fgd.fit`; and under `jax.vmap` over kernels, everywhere.
    For Flax: `linen.Conv(…, conv_general_dilated=fgd.conv.conv_general_dilated)`.

    Groups, operands that are not floats of one type, `preferred_element_type`, `out_sharding`,
    other than one to three spatial axes, the inside of a `jax.shard_map` and explicitly sharded
    operands are left to lax; so is every other platform's code.

    Args:
      lhs, rhs: the image and the kernel, laid out as `dimension_numbers` says.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers: as lax has them,
      feature_group_count, batch_group_count, precision, preferred_element_type, out_sharding: too.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> images, kernel = jnp.ones([5, 28, 28, 1]), jnp.ones([3, 3, 1, 8])
      >>> layout = ("NHWC", "HWIO", "NHWC")
      >>> fgd.conv.conv_general_dilated(
      ...     images, kernel, (1, 1), "SAME", dimension_numbers=layout
      ... ).shape
      (5, 28, 28, 8)
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    given = window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
    is_plain = (
        (feature_group_count, batch_group_count) == (1, 1)
        and preferred_element_type in (None, lhs.dtype)
        and out_sharding is None
    )
    conv = _ours(lhs, rhs, *given, precision) if is_plain else None
    if conv is not None:
        return convolve(lhs, rhs, conv)
    groups = feature_group_count, batch_group_count
    return lax.conv_general_dilated(
        lhs, rhs, *given, *groups, precision, preferred_element_type, out_sharding
    )


def _ours(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    dimension_numbers: Any,
    precision: Any,
) -> Conv | None:
    """The convolution, its arguments settled; None if it is better left to lax, errors included."""
    space = lhs.ndim - 2
    strides = tuple(strides)
    lhs_dilation = (1,) * space if lhs_dilation is None else tuple(lhs_dilation)
    rhs_dilation = (1,) * space if rhs_dilation is None else tuple(rhs_dilation)
    fits = (
        1 <= space <= 3
        and rhs.ndim == lhs.ndim
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and all(len(ints) == space for ints in (strides, lhs_dilation, rhs_dilation))
        and min(strides + lhs_dilation + rhs_dilation) >= 1
        and not (isinstance(padding, str) and lhs_dilation != (1,) * space)
        and not any(any(jax.typeof(x).sharding.spec) for x in (lhs, rhs))
        and not jax.sharding.get_abstract_mesh().manual_axes
    )
    specs = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) if fits else None
    if specs is None or 0 in lhs.shape + rhs.shape:
        return None
    image = [lhs.shape[axis] for axis in specs.lhs_spec[2:]]
    window = [rhs.shape[axis] for axis in specs.rhs_spec[2:]]
    if not all(isinstance(size, int) for size in image + window):  # symbolic, in an export
        return None
    if isinstance(padding, str):
        dilated = [(n - 1) * d + 1 for n, d in zip(window, rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(image, dilated, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    lhs_spec, rhs_spec, out_spec = map(tuple, specs)
    conv = Conv(strides, pads, lhs_dilation, rhs_dilation, lhs_spec, rhs_spec, out_spec, precision)
    _, _, places = conv.extents(lhs, rhs)
    return conv if min(places) > 0 else None
