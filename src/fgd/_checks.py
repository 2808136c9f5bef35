"""The checks that the spine shares: each says what was given, what was expected, what to do."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import keystr

PyTree = Any


def strong(leaf: Any) -> jax.Array:
    """`leaf` as an array without a weak type, which would compile a second program for a state."""
    array = jnp.asarray(leaf)
    return array if is_key(array) else jnp.asarray(array, array.dtype)


def single(x: jax.Array) -> jax.Array:
    """`x` in float32 at least: what is to be added up must be able to count past 256."""
    is_wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize >= 4
    return x if is_wide else x.astype(float)


def is_key(x: Any) -> bool:
    """Whether `x` is an array of typed PRNG keys."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_concrete(x: Any) -> bool:
    """Whether the value of `x` can be looked at: it is not being traced."""
    return not isinstance(x, Tracer)


def require_floats(caller: str, params: PyTree) -> None:
    """TypeError for a parameter that is not a float, by name."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        try:
            dtype = jnp.result_type(leaf)
        except TypeError as error:
            raise TypeError(
                f"{caller}: params{keystr(path)} is {leaf!r}, expected an array of floats"
            ) from error
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{caller}: params{keystr(path)} has dtype {dtype}, "
                "expected a float; only floats have gradients"
            )


def require_float_inputs(x: jax.Array) -> None:
    """TypeError for what a model can't be applied to, such as images in bytes."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"apply: x has dtype {x.dtype}, expected a float; fgd.data.normalize converts images"
        )


def mismatch(expected: PyTree, given: PyTree) -> str | None:
    """Says where two trees first differ in structure, shape or dtype, or None if nowhere."""
    wanted = dict(jax.tree_util.tree_leaves_with_path(expected))
    found = dict(jax.tree_util.tree_leaves_with_path(given))
    for path in [*wanted, *found]:
        if path not in found or path not in wanted:
            return f"{keystr(path)} is {'missing' if path in wanted else 'unexpected'}"
    if jax.tree.structure(expected) != jax.tree.structure(given):
        return f"structure is {jax.tree.structure(given)}, not {jax.tree.structure(expected)}"
    for path, leaf in wanted.items():
        want, have = jax.typeof(leaf), jax.typeof(found[path])
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            return f"{keystr(path)} is {have.str_short()}, expected {want.str_short()}"
    return None


def count(caller: str, name: str, value: Any, *, least: int) -> int:
    """`value` as an int of at least `least`; TypeError or ValueError names `caller` and `name`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if isinstance(value, Tracer):
        raise TypeError(
            f"{caller}: {name} must be an int, got the traced {value.aval.str_short()}: it decides "
            "shapes, so it can't be an argument of jit or an axis of sweep; loop over it in Python"
        )
    if number is None:
        raise TypeError(f"{caller}: {name} must be an int, got {value!r}")
    if number < least:
        raise ValueError(f"{caller}: {name} must be at least {least}, got {value}")
    return number


def count_rows(caller: str, data: PyTree, name: str = "data") -> int:
    """The length of the leading axis that every array of `data` shares, at least 1."""
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise ValueError(f"{caller}: {name} has no arrays, got {data!r}")
    first, *_ = leaves
    for path, leaf in leaves:
        if not hasattr(leaf, "shape"):
            raise TypeError(
                f"{caller}: {name}{keystr(path)} is {leaf!r}, expected an array whose leading "
                "axis is rows; make lists arrays with jnp.asarray"
            )
        if leaf.ndim == 0 or leaf.shape[0] == 0:
            raise ValueError(
                f"{caller}: {name}{keystr(path)} has shape {leaf.shape}, expected at least one row"
            )
        if leaf.shape[0] != first[1].shape[0]:
            raise ValueError(
                f"{caller}: {name}{keystr(first[0])} has {first[1].shape[0]} rows but "
                f"{name}{keystr(path)} has {leaf.shape[0]}; arrays must share their leading axis"
            )
    return first[1].shape[0]


def scalar(what: str, value: Any) -> jax.Array:
    """`value` as a float scalar; tells what a loss or metric of another kind should have been."""
    if value is None:
        raise TypeError(f"train_step: {what} is None; does loss_fn return it?")
    if isinstance(value, (tuple, list, dict)):
        raise TypeError(
            f"train_step: {what} is a {type(value).__name__}, expected a float scalar; "
            "a loss that also returns metrics needs has_aux=True"
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"train_step: {what} has shape {jnp.shape(value)}, expected a scalar; take its mean"
        )
    if what == "the loss" and not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"train_step: the loss has dtype {jnp.result_type(value)}, expected a float"
        )
    return jnp.asarray(value)


def float_metrics(metrics: Any) -> dict[str, jax.Array]:
    if not isinstance(metrics, dict):
        raise TypeError(f"train_step: metrics must be a dict of scalars, got {metrics!r}")
    for name in ("loss", "evaluate"):
        if name in metrics:
            raise ValueError(f'train_step: a metric may not be named "{name}"; history has its own')
    scalars = {name: scalar(f"metric {name!r}", value) for name, value in metrics.items()}
    floats = jnp.finfo(jnp.result_type(float)).dtype
    return {
        name: strong(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(floats))
        for name, x in scalars.items()
    }
