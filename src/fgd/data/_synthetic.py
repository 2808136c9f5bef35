"""Data made on the spot, and what is done to any data: split it, normalize it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from fgd._checks import (
    PyTree,
    count,
    describe,
    is_concrete,
    require_array,
    require_callable,
    require_finite,
)
from fgd._keys import require_key
from fgd._trees import count_rows


def linear(
    key: Key[Array, ""],
    n: int,
    *,
    slope: float = 3.0,
    intercept: float = 0.8,
    noise: float = 0.0,
    inputs: Callable[[jax.Array, tuple[int, ...]], jax.Array] = jax.random.uniform,
) -> tuple[Float[Array, "n 1"], Float[Array, "n 1"]]:
    """Points about a line: y = slope·x + intercept + noise·N(0, 1).

    Args:
      key: typed PRNG key.
      n: number of points, at least 1.
      slope, intercept: the line; the defaults are R4's.
      noise: standard deviation of y about it.
      inputs: how x is drawn, `inputs(key, shape)`; `jax.random.normal` for R1.

    Returns:
      x and y, [n, 1] each.

    Raises:
      TypeError, ValueError: no key, no positive int, numbers that are not finite.

    Example:
      >>> import fgd, jax
      >>> x, y = fgd.data.linear(jax.random.key(0), 500)
      >>> bool(abs(y - (3 * x + 0.8)).max() < 1e-6)
      True
    """
    require_key("linear", key)
    n = count("linear", "n", n, least=1)
    if n >= 2**31:
        raise ValueError("linear: n must be less than 2³¹, the rows that a run can count")
    require_finite("linear", slope=slope, intercept=intercept, noise=noise)
    require_callable("linear", "inputs", inputs, " of (key, shape), such as jax.random.normal")
    x_key, noise_key = jax.random.split(key)
    x = inputs(x_key, (n, 1))
    return x, slope * x + intercept + noise * jax.random.normal(noise_key, (n, 1), x.dtype)


def split(key: Key[Array, ""], data: PyTree, fraction: float) -> tuple[PyTree, PyTree]:
    """Splits the rows of `data` in two, at random.

    Args:
      key: typed PRNG key.
      data: pytree of arrays that share their leading axis.
      fraction: the part of the rows that goes to the first, in (0, 1).

    Returns:
      Two trees like `data`: round(fraction · rows) rows, and the others. None is lost.

    Raises:
      TypeError: no key, or a fraction that is no number (traced, it would decide shapes).
      ValueError: a fraction that leaves one of them empty, or arrays of unequal rows.

    Example:
      >>> import fgd, jax, jax.numpy as jnp
      >>> train, valid = fgd.data.split(jax.random.key(0), jnp.arange(100), 0.8)
      >>> train.shape, valid.shape
      ((80,), (20,))
    """
    require_key("split", key)
    rows = count_rows("split", data)
    if isinstance(fraction, bool) or not isinstance(fraction, float | int | np.number):
        raise TypeError(f"split: fraction must be a number in (0, 1), got {describe(fraction)}")
    first = round(fraction * rows) if 0 < fraction < 1 else 0
    if not 0 < first < rows:
        raise ValueError(f"split: fraction={fraction} of {rows} rows leaves a part without rows")
    order = jax.random.permutation(key, rows)
    return (
        jax.tree.map(lambda x: x[order[:first]], data),
        jax.tree.map(lambda x: x[order[first:]], data),
    )


def normalize(
    x: UInt8[Array, "*shape"], mean: float = 0.5, std: float = 0.5
) -> Float[Array, "*shape"]:
    """Pixels as floats: (x/255 − mean) / std.

    Args:
      x: uint8 pixels, 0 … 255.
      mean, std: of the pixels on a scale of 0 to 1. The defaults give −1 … 1.

    Raises:
      TypeError: x is not uint8 (floats were probably normalized before).
      ValueError: a mean that is not finite, a std that is not finite and positive.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> fgd.data.normalize(jnp.array([0, 255], jnp.uint8)).tolist()
      [-1.0, 1.0]
    """
    require_array("normalize", "x", x, "uint8")
    require_finite("normalize", mean=mean, std=std)
    if is_concrete(std) and not (np.asarray(std) > 0).all():
        raise ValueError(f"normalize: std must be positive, got {std}")
    x = jnp.asarray(x)
    if x.dtype != jnp.uint8:
        raise TypeError(
            f"normalize: expected uint8 pixels, got {x.dtype}; is x normalized already?"
        )
    return (x.astype(float) / 255 - mean) / std
