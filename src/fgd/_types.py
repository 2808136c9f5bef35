"""The state of a run, and the checks that every part of the spine shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on from where it is. Arrays only, so it can be saved whole.

    Attributes:
      params: the model's parameters, a pytree of float arrays.
      opt_state: what the optimizer remembers.
      step: int32 scalar, the number of completed steps.
      key: typed PRNG key, constant for the run: all randomness is a function of (key, step).
      model_state: None, or a model's own arrays (BatchNorm's running statistics).
    """

    params: PyTree
    opt_state: PyTree
    step: jax.Array
    key: jax.Array
    model_state: PyTree = None


def strong(leaf: Any) -> jax.Array:
    """`leaf` as an array without a weak type, which would compile a second program for a state."""
    array = jnp.asarray(leaf)
    return array if is_key(array) else jnp.asarray(array, array.dtype)


def is_key(x: Any) -> bool:
    """Whether `x` is an array of typed PRNG keys."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_concrete(x: Any) -> bool:
    """Whether the value of `x` can be looked at: it is not being traced."""
    return not isinstance(x, jax.core.Tracer)


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's place as one would write it: `['w']`, `[0].mu`."""
    return jax.tree_util.keystr(path) or "the only leaf"


def mismatch(expected: PyTree, given: PyTree) -> str | None:
    """Says where two trees first differ in structure, shape or dtype, or None if nowhere."""
    wanted = dict(jax.tree_util.tree_leaves_with_path(expected))
    found = dict(jax.tree_util.tree_leaves_with_path(given))
    for path in found.keys() - wanted.keys() | wanted.keys() - found.keys():
        return f"{path_name(path)} is {'missing' if path in wanted else 'unexpected'}"
    if jax.tree.structure(expected) != jax.tree.structure(given):
        return f"structure is {jax.tree.structure(given)}, not {jax.tree.structure(expected)}"
    for path, leaf in wanted.items():
        want, have = jax.typeof(leaf), jax.typeof(found[path])
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            return f"{path_name(path)} is {have.str_short()}, expected {want.str_short()}"
    return None


def count(caller: str, name: str, value: Any, *, least: int) -> int:
    """`value` as an int of at least `least`; TypeError or ValueError names `caller` and `name`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{caller}: {name} must be an int, got {value!r}")
    if value.__index__() < least:
        raise ValueError(f"{caller}: {name} must be at least {least}, got {value}")
    return value.__index__()


LossFn = Callable[..., Any]
