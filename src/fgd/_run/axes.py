"""The axes of a sweep: what may be one, and whether a run takes them."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import IntegerOverflowError, PyTree, describe
from fgd._keys import has_keys
from fgd._trees import leaves, on_device, strong


def as_axis(name: str, values: Any) -> PyTree:
    """The axis as a pytree of arrays with one common leading axis."""
    if isinstance(values, list | tuple | range) and all(_is_number(x) for x in values):
        try:
            values = jnp.array(values)  # it may hold keys and traced values
        except OverflowError as error:
            raise IntegerOverflowError(
                f"sweep: axis {name}: {error}; an array of jnp.uint32 holds seeds up to 2³² − 1, "
                'jax.config.update("jax_enable_x64", True) all others'
            ) from error
    if isinstance(values, np.ndarray) and values.dtype.kind in "OSU":
        values = values.tolist()  # words, or rows of unequal length
    bare = isinstance(values, jax.Array | np.ndarray)
    hint = "values along one axis, such as jnp.array([0.1, 0.01]) or jnp.arange(4)"
    lengths = set()
    for path, leaf in leaves("sweep", f"axis {name}", values):
        what = f"sweep: axis {name}{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, int | float | complex | jax.Array | np.ndarray | np.generic):
            raise TypeError(f"{what} has {describe(leaf)}, expected numbers: {hint}")
        shape = np.shape(leaf)
        if shape == () or (bare and len(shape) != 1):
            raise ValueError(
                f"{what} has shape {shape}, expected {hint}"
                + ("; put points that are arrays themselves into a dict" if bare else "")
            )
        lengths.add(shape[0])
    if len(lengths) > 1:
        raise ValueError(f"sweep: axis {name} has leaves of unequal lengths {sorted(lengths)}")
    if not lengths or 0 in lengths:
        raise ValueError(f"sweep: axis {name} is empty, expected {hint}")
    arrays = on_device("sweep", f"axis {name}", values)
    return jax.tree.map(lambda x: x if has_keys(x) else strong(x), arrays)


def _is_number(x: Any) -> bool:
    numbers = int | float | complex | jax.Array | np.ndarray | np.generic
    return isinstance(x, numbers) and np.shape(x) == ()


def check_signature(run: Callable[..., Any], axes: PyTree) -> None:
    """TypeError, if `run` can't be called with these axes."""
    try:
        signature = inspect.signature(run)
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(**axes)
    except TypeError as error:
        raise TypeError(
            f"sweep: axes are {', '.join(axes)}, but run takes {signature} ({error})"
        ) from None


def runs_alone(run: Callable[..., Any], axes: PyTree) -> bool:
    """Whether `run` can be traced at the first point, if its values are plain numbers."""

    def first(x: jax.Array) -> Any:
        return x[0] if x.ndim > 1 or has_keys(x) else x[0].item()

    try:
        point = jax.tree.map(first, axes)
        jax.eval_shape(lambda: run(**point))
    except Exception:
        return False
    return True
