"""Trees of arrays: their leaves by name, their rows, and how they reach the device."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from fgd._checks import IntegerOverflowError, PyTree, describe, int_bounds, spec
from fgd._keys import has_keys

Path = tuple[Any, ...]


def leaves(caller: str, name: str, tree: PyTree) -> list[tuple[Path, Any]]:
    """The leaves of a tree with the keys on the way; TypeError for what is no tree of JAX's."""
    try:
        return jax.tree_util.tree_leaves_with_path(tree)
    except (TypeError, ValueError) as error:  # JAX sorts the keys of a dict
        raise TypeError(
            f"{caller}: {name} has a dict whose keys can't be sorted ({error}); use keys of one "
            "type, such as words"
        ) from error


def named(caller: str, tree: PyTree) -> dict[str, Any]:
    """The leaves by name, the keys on the way joined by dots: `params.0.w`."""
    result: dict[str, Any] = {}
    for path, leaf in leaves(caller, "the tree", tree):
        name = keystr(path, simple=True, separator=".")
        if name in result:
            raise ValueError(f"{caller}: two leaves are named {name!r}; rename a key with a dot")
        result[name] = leaf
    return result


def strong(leaf: Any) -> jax.Array:
    """`leaf` as an array without a weak type, which would compile a second program for a state."""
    array = jnp.asarray(leaf)
    return array if has_keys(array) else jnp.asarray(array, array.dtype)


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """`tree`, its floats converted to `dtype`, all else as it is."""

    def cast(x: Any) -> Any:
        is_float = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_float else x

    return jax.tree.map(cast, tree)


def on_device(caller: str, name: str, tree: PyTree) -> PyTree:
    """`tree` with arrays of JAX's alone: NumPy's and Python's numbers are copied to the device.

    Copied: JAX on CPU would read a NumPy array in place, and go on reading after its caller, which
    is free to change it, has the result. What is an array of JAX's stays as and where it is.
    """
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _copied(f"{caller}: {name}{keystr(path)}", leaf), tree
    )


def _copied(what: str, leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return leaf
    require_numbers(what, leaf)
    require_fit(what, leaf)
    return jnp.array(leaf) if isinstance(leaf, np.ndarray) else strong(leaf)


def require_numbers(what: str, leaf: Any) -> None:
    """TypeError for a leaf of which JAX can make no array, and for bytes in another order."""
    if isinstance(leaf, bool | int | float | complex | jax.Array):
        return
    if not isinstance(leaf, np.ndarray | np.generic):
        hint = "; its .numpy() is one" if hasattr(leaf, "numpy") else ""
        raise TypeError(f"{what} is {describe(leaf)}, expected an array of NumPy or JAX{hint}")
    if leaf.dtype.kind in "OSUMm" or leaf.dtype.names:
        raise TypeError(f"{what} is {describe(leaf)}, expected numbers")
    if not leaf.dtype.isnative:
        raise TypeError(
            f"{what} is {describe(leaf)}, whose bytes are in the order of another machine; "
            'x.astype(x.dtype.newbyteorder("=")) turns them'
        )


def require_fit(what: str, leaf: Any) -> None:
    """ValueError for integers that JAX, without 64 bits, would cut to other integers."""
    known = np.asarray(leaf)
    if known.dtype.kind not in "iu" or known.size == 0:
        return
    low, high = int_bounds(known.dtype)
    info = np.iinfo(known.dtype)
    if low <= info.min and info.max <= high:
        return
    least, greatest = int(known.min()), int(known.max())
    if least < low or greatest > high:
        raise IntegerOverflowError(
            f"{what} is {known.dtype} with values from {least} to {greatest}, which JAX would cut "
            'to 32 bits; first jax.config.update("jax_enable_x64", True)'
        )


def require_floats(caller: str, params: PyTree) -> None:
    """TypeError for a parameter that is not a float, by name."""
    for path, leaf in leaves(caller, "params", params):
        try:
            dtype = jnp.result_type(leaf)
        except TypeError as error:
            raise TypeError(
                f"{caller}: params{keystr(path)} is {describe(leaf)}, expected an array of floats"
            ) from error
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{caller}: params{keystr(path)} has dtype {dtype}, "
                "expected a float; only floats have gradients"
            )


def count_rows(caller: str, data: PyTree, name: str = "data") -> int:
    """The length of the leading axis that every array of `data` shares, at least 1."""
    found = leaves(caller, name, data)
    if not found:
        raise ValueError(f"{caller}: {name} has no arrays, got {describe(data)}")
    first, *_ = found
    for path, leaf in found:
        if not hasattr(leaf, "shape"):
            raise TypeError(
                f"{caller}: {name}{keystr(path)} is {describe(leaf)}, expected an array whose "
                "leading axis is rows; make lists arrays with jnp.asarray"
            )
        if len(leaf.shape) == 0 or leaf.shape[0] == 0:
            raise ValueError(
                f"{caller}: {name}{keystr(path)} has shape {tuple(leaf.shape)}, expected at least "
                "one row"
            )
        if leaf.shape[0] != first[1].shape[0]:
            raise ValueError(
                f"{caller}: {name}{keystr(first[0])} has {first[1].shape[0]} rows but "
                f"{name}{keystr(path)} has {leaf.shape[0]}; arrays must share their leading axis"
            )
    return first[1].shape[0]


def mismatch(expected: PyTree, given: PyTree) -> str | None:
    """Says where two trees first differ in structure, shape or dtype, or None if nowhere."""
    wanted = dict(jax.tree_util.tree_leaves_with_path(expected))
    found = dict(jax.tree_util.tree_leaves_with_path(given))
    for path in [*wanted, *found]:
        if path not in found or path not in wanted:
            return f"{keystr(path)} is {'missing' if path in wanted else 'unexpected'}"
    if jax.tree.structure(expected) != jax.tree.structure(given):
        return f" has structure {jax.tree.structure(given)}, not {jax.tree.structure(expected)}"
    for path, leaf in wanted.items():
        want, have = jax.typeof(leaf), jax.typeof(found[path])
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            return f"{keystr(path)} is {have.str_short()}, expected {want.str_short()}"
    return None


def summary(tree: PyTree) -> str:
    """A tree in a few words: `4 arrays, 159,010 numbers, float32`."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    if not arrays:
        return "None" if tree is None else "no arrays"
    if len(arrays) == 1:
        return spec(arrays[0])
    total = sum(int(np.prod(x.shape)) for x in arrays)
    dtypes = ", ".join(dict.fromkeys(str(x.dtype) for x in arrays))
    return f"{len(arrays)} arrays, {total:,} numbers, {dtypes}"


def nbytes(tree: PyTree) -> int:
    """Bytes of the arrays of a tree, or of shapes of them."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def host(value: Any) -> Any:
    """NumPy's array, if `value` is one of another framework's, PyTorch's bfloat16 included."""
    if not hasattr(value, "detach"):
        return np.asarray(value) if hasattr(value, "__array__") else value
    value = value.detach().cpu().resolve_conj().resolve_neg()  # views that are yet to be computed
    try:
        return value.numpy()
    except TypeError:  # NumPy lacks bfloat16 and what is smaller, JAX has them
        return np.asarray(jax.dlpack.from_dlpack(value.contiguous()))


def array(caller: str, name: str, leaf: Any) -> np.ndarray:
    """`leaf` on the host, contiguous, in this machine's order of bytes; keys as their data."""
    if has_keys(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, int | float | complex):
        leaf = strong(leaf)
    value = np.asarray(leaf, order="C")
    if value.dtype.kind not in "biufcV" or value.dtype.names:
        raise TypeError(f"{caller}: {name} is {describe(leaf)}, expected an array")
    return value.astype(value.dtype.newbyteorder("="), copy=False)


def shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """What `array` would make of `leaf`."""
    if has_keys(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), getattr(leaf, "dtype", jnp.result_type(leaf)))


def exactly(caller: str, name: str, value: np.ndarray) -> jax.Array:
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
