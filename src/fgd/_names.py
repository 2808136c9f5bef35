"""Trees of arrays as dicts by name: what files hold and other frameworks read."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from fgd._checks import PyTree, strong


def named(caller: str, tree: PyTree) -> dict[str, Any]:
    """The leaves by name, the keys on the way joined by dots: `params.0.w`."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = keystr(path, simple=True, separator=".")
        if name in leaves:
            raise ValueError(f"{caller}: two leaves are named {name!r}; rename a key with a dot")
        leaves[name] = leaf
    return leaves


def has_keys(leaf: Any) -> bool:
    """Whether `leaf` is an array, or the shape of an array, of typed PRNG keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def array(caller: str, name: str, leaf: Any) -> np.ndarray:
    """`leaf` on the host, contiguous, little-endian; keys as their data."""
    if has_keys(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, int | float | complex):
        leaf = strong(leaf)
    value = np.asarray(leaf, order="C")
    if value.dtype.kind not in "biufcV" or value.dtype.names:
        raise TypeError(f"{caller}: {name} is {leaf!r}, expected an array")
    return value.astype(value.dtype.newbyteorder("="), copy=False)


def shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """What `array` would make of `leaf`."""
    if has_keys(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), getattr(leaf, "dtype", jnp.result_type(leaf)))


def spec(x: Any) -> str:
    """`float32[3, 4]`, of an array of any framework."""
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def on_device(caller: str, name: str, value: np.ndarray) -> jax.Array:
    """A copy of `value` as a JAX array of the same dtype."""
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise ValueError(
            f"{caller}: {name} is {value.dtype}, which JAX would round; "
            'first jax.config.update("jax_enable_x64", True)'
        )
    return jnp.array(value)


def misfit(missing: Iterable[str], left_over: Iterable[str], wrong: Iterable[str]) -> str:
    """All that keeps two sets of arrays from being one, in words; empty if nothing does."""
    lists = {"missing": missing, "left over": left_over}
    parts = [f"{kind} {', '.join(names)}" for kind, names in lists.items() if names]
    return "; ".join([*parts, *wrong])
