"""The checks that modules share: each says what was given, what was expected, what to do."""

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

PyTree = Any
Function = TypeVar("Function", bound=Callable[..., Any])


class IntegerOverflowError(OverflowError, ValueError):
    """An integer beyond those that JAX's arrays hold, which would have become another one."""


def describe(value: Any) -> str:
    """What a value is, in a few words for an error message: never the numbers of an array."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{_kind(value)} {spec(value)}"
    if isinstance(value, dict | list | tuple) and value:
        names = f" with keys {', '.join(map(repr, list(value)[:4]))}" if type(value) is dict else ""
        return f"a {type(value).__name__} of {len(value)}{names}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {_kind(value)}"


def name_of(function: Any) -> str:
    """What a function is called."""
    return getattr(function, "__name__", None) or describe(function)


def spec(x: Any) -> str:
    """`float32[3, 4]`, of an array of any framework."""
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def _kind(value: Any) -> str:
    kind = type(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return "an array" if np.ndim(value) else "a scalar"
    return f"{kind.__module__}.{kind.__qualname__}"


def is_concrete(x: Any) -> bool:
    """Whether the value of `x` can be looked at: it is not being traced."""
    return not isinstance(x, Tracer)


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
        raise TypeError(f"{caller}: {name} must be an int, got {describe(value)}")
    if number < least:
        raise ValueError(f"{caller}: {name} must be at least {least}, got {value}")
    return number


def require_callable(caller: str, name: str, value: Any, example: str = "") -> None:
    """TypeError for what can't be called."""
    if not callable(value):
        raise TypeError(f"{caller}: {name} must be a function{example}, got {describe(value)}")


def require_optimizer(caller: str, optimizer: Any, advice: str = "") -> None:
    """TypeError for what is no optax transformation."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"{caller}: optimizer must be an optax.GradientTransformation, got "
            f"{describe(optimizer)}{advice}"
        )


def require_flag(caller: str, **flags: Any) -> None:
    """TypeError for what is neither True nor False: "no" would count as True."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{caller}: {name} must be True or False, got {describe(value)}")


def require_array(
    caller: str, name: str, x: Any, what: str = "numbers", *, scalars: bool = True
) -> None:
    """TypeError for what is no array, or none of numbers; Python's numbers will do, if scalars.

    IntegerOverflowError for an int that JAX would make no array of.
    """
    if scalars and isinstance(x, bool | int | float | complex):
        least, most = int_bounds(int)
        if isinstance(x, int) and not least <= x <= most:
            raise IntegerOverflowError(
                f"{caller}: {name} is an integer beyond those that JAX keeps, {least} to {most}; "
                "give a float, or an array"
            )
        return
    if not isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        raise TypeError(
            f"{caller}: {name} is {describe(x)}, expected an array of {what}; jnp.asarray makes one"
        )
    if not (jnp.issubdtype(x.dtype, np.number) or jnp.issubdtype(x.dtype, np.bool_)):
        raise TypeError(f"{caller}: {name} is {describe(x)}, expected an array of {what}")


def require_reals(caller: str, **arrays: Any) -> None:
    """TypeError for what is no array of real numbers."""
    for name, x in arrays.items():
        require_array(caller, name, x, "real numbers")
        if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            raise TypeError(f"{caller}: {name} is {describe(x)}, expected an array of real numbers")


def require_finite(caller: str, **values: Any) -> None:
    """TypeError or ValueError for what is no real number, or not finite; if it is traced, for less.

    An array of them will do.
    """
    for name, x in values.items():
        if isinstance(x, bool | np.bool_):
            raise TypeError(f"{caller}: {name} must be a number, got {x}")
        if not isinstance(x, int):  # of which any is a number, but may be too large
            require_reals(caller, **{name: x})
        limit = float(np.finfo(np.float32).max)
        if is_concrete(x) and not np.all(abs(np.asarray(x)) <= limit):
            raise ValueError(f"{caller}: {name} must be finite, got {describe(x)}")


def require_fraction(caller: str, **values: Any) -> None:
    """TypeError or ValueError for what is no scalar in [0, 1]; if it is traced, for less."""
    require_finite(caller, **values)
    for name, x in values.items():
        if np.shape(x) != ():
            raise ValueError(f"{caller}: {name} must be a scalar, got shape {np.shape(x)}")
        if is_concrete(x) and not 0 <= x <= 1:
            raise ValueError(f"{caller}: {name} must be in [0, 1], got {x}")


def int_bounds(dtype: Any) -> tuple[int, int]:
    """The least and the greatest integer that JAX, as it is set, keeps of `dtype`'s."""
    info = np.iinfo(jax.dtypes.canonicalize_dtype(dtype))
    return int(info.min), int(info.max)


def require_float_inputs(x: jax.Array) -> None:
    """TypeError for what a model can't be applied to, such as images in bytes."""
    require_array("apply", "x", x, "floats")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"apply: x has dtype {x.dtype}, expected a float; fgd.data.normalize converts images"
        )


def single(x: jax.Array) -> jax.Array:
    """`x` in float32 at least: a sum in float16 loses what it adds beyond 2048."""
    is_wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize >= 4
    return x if is_wide else x.astype(float)


def replaced(caller: str, **advice: str) -> Callable[[Function], Function]:
    """For a function that had other keywords before: each raises a TypeError that says what to do.

    Args:
      caller: the function's name, for the message.
      advice: by the old keyword, what to write now.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if old := advice.keys() & kwargs.keys():
                raise TypeError(
                    "; ".join(f"{caller}: there is no {x}=: {advice[x]}" for x in sorted(old))
                )
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate
