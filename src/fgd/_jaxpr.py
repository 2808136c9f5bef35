"""What fgd reads of traced functions, and computes from them, beyond what JAX promises.

When JAX changes one of these, a test of `tests/test_jax.py` fails by its name.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr


def vmap_draws_otherwise(jaxpr: Any) -> bool:
    """Whether a traced function has random bits of which `vmap` draws others than a loop does.

    So it is with keys of the kinds rbg and unsafe_rbg: of several, `vmap` uses the first alone.
    https://docs.jax.dev/en/latest/jax.random.html
    """
    for equation in _equations(jaxpr):
        dtypes = [getattr(x.aval, "dtype", None) for x in [*equation.invars, *equation.outvars]]
        keys = [str(x) for x in dtypes if x and jnp.issubdtype(x, jax.dtypes.prng_key)]
        if equation.primitive.name == "rng_bit_generator" or set(keys) - {"key<fry>"}:
            return True
    return False


def carries(jaxpr: Any) -> Iterator[list[Any]]:
    """What each `scan` of a traced function carries, however deep: shapes and dtypes."""
    for equation in _equations(jaxpr):
        if equation.primitive.name == "scan":
            yield [equation.invars[i].aval for i in carried(equation.params)]


def contains(jaxpr: Any, *primitives: str) -> bool:
    """Whether a traced function has an equation of one of these primitives, however deep."""
    return any(equation.primitive.name in primitives for equation in _equations(jaxpr))


def bind(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """What an equation computes of these operands."""
    params = equation.primitive.get_bind_params(equation.params)
    results = equation.primitive.bind(*operands, **params)
    return results if equation.primitive.multiple_results else [results]


def called_by(equation: Any) -> Any:
    """The closed jaxpr that `jit` or `jax.checkpoint` calls with the equation's operands, or None.

    None, too, for what is computed again for a derivative: its equation says so, for XLA.
    """
    if equation.primitive.name not in ("jit", "pjit", "checkpoint", "remat", "remat2"):
        return None
    again = equation.params.get("differentiated")
    return None if again else closed(equation.params["jaxpr"])


def closed(jaxpr: Any) -> Any:
    """A jaxpr with its constants, of which an open one has none."""
    return jaxpr if hasattr(jaxpr, "consts") else ClosedJaxpr(jaxpr, ())


def carried(params: Any) -> range:
    """Positions of what a `scan` carries, among its operands: constants, carried, scanned over."""
    if "ft_in" in params:
        constants, carry, _ = (len(part) for part in params["ft_in"].unpack())
    else:
        constants, carry = params["num_consts"], params["num_carry"]
    return range(constants, constants + carry)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All, of the functions called within it, too: of each once, however often it is called."""
    left, seen = [jaxpr], set()
    while left:
        jaxpr = left.pop()
        if id(jaxpr) in seen:
            continue
        seen.add(id(jaxpr))
        for equation in jaxpr.eqns:
            yield equation
            for value in equation.params.values():
                several = value if isinstance(value, tuple | list) else [value]
                left += [inner for inner in several if hasattr(inner, "eqns")]
