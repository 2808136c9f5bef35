"""Typed PRNG keys: what is one, how a seed becomes one, and how each use draws its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import describe, int_bounds

# `jax.random.split(key)[i]` equals `fold_in(key, i)`, so small tags would collide with a user's
# own splits. These are large, distinct and never reused for another purpose.
SHUFFLE = 0x53_48_55_46  # "SHUF": the order of rows in an epoch
LOSS = 0x4C_4F_53_53  # "LOSS": the key that a loss receives at a step


def draw_key(key: jax.Array, tag: int, counter: int | jax.Array) -> jax.Array:
    """The key of use number `counter` (an epoch, a step) for the purpose `tag`."""
    return jax.random.fold_in(jax.random.fold_in(key, tag), counter)


def has_keys(leaf: Any) -> bool:
    """Whether `leaf` is an array, or the shape of an array, of typed PRNG keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_key(x: Any) -> bool:
    """Whether `x` is one typed PRNG key, traced or not."""
    return isinstance(x, jax.Array) and has_keys(x) and x.shape == ()


def require_key(caller: str, key: Any) -> None:
    """TypeError for what is not one typed PRNG key."""
    if not is_key(key):
        raise TypeError(
            f"{caller}: key must be a typed key such as jax.random.key(0), got {describe(key)}"
        )


def _is_seed(x: Any) -> bool:
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        return x.shape == () and jnp.issubdtype(x.dtype, jnp.integer)
    return isinstance(x, int) and not isinstance(x, bool)


def as_key(caller: str, key: Any) -> jax.Array:
    """A key, or the key of a seed."""
    if is_key(key):
        return key
    if not _is_seed(key):
        hint = "jax.random.wrap_key_data makes a typed key of raw key data"
        raise TypeError(
            f"{caller}: key must be a seed such as 0, or a typed key such as jax.random.key(0), "
            f"got {describe(key)}; {hint}"
        )
    if not isinstance(key, jax.Array):
        low, _ = int_bounds(np.int64)
        _, high = int_bounds(np.uint64)
        if not low <= int(key) <= high:  # JAX would take its lower 32 bits
            raise ValueError(f"{caller}: the seed {key} does not fit in 32 bits")
    return jax.random.key(key)
