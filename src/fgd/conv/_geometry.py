"""A convolution's static arguments, and those of its two gradients, which are convolutions too."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import lax

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """The static arguments of a convolution without groups, as lax normalizes them.

    A spec gives the axes of (rows, features, *space) in lhs and out, and of (features out,
    features in, *space) in rhs. Roles name lhs, rhs and out by the shapes of the layer from which
    this convolution comes: x is its input, w its kernel, y its result. The layer is "xwy", its
    gradients are "ywx" and "xyw".
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
