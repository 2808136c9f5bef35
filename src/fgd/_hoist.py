"""Closed-over arrays, made arguments: a compiled program should hold code, not data."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax.extend.core.primitives import cond_p, jit_p, remat_p, scan_p, while_p

from fgd._checks import PyTree

Constants = dict[int, jax.Array]  # by the identity of the array that a function closes over


def hoist(function: Callable[[PyTree], PyTree], example: PyTree) -> tuple[list[jax.Array], Any]:
    """The arrays that `function` closes over, and `hoisted(constants, x)`, equal to `function(x)`.

    They are found in inner `jit`s too, which jax leaves there as constants, within loops,
    branches and checkpoints.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(example)
    structure = jax.tree.structure(shapes)
    constants = {id(c): c for c in _constants(closed) if np.ndim(c) > 0}
    for name, constant in constants.items():
        if isinstance(constant, np.ndarray):
            constants[name] = jax.device_put(constant)

    # A list: the order of a dict's leaves would be that of addresses, another one in every process.
    def hoisted(values: list[jax.Array], x: PyTree) -> PyTree:
        known = dict(zip(constants, values, strict=True))
        return structure.unflatten(_evaluate(closed, jax.tree.leaves(x), known))

    return list(constants.values()), hoisted


def _inner(eqn: Any) -> Iterator[Any]:
    """The functions within an equation, with the constants they come with."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            if isinstance(part, jex.ClosedJaxpr):
                yield part
            elif isinstance(part, jex.Jaxpr):
                yield jex.ClosedJaxpr(part, ())


def _constants(closed: Any) -> Iterator[Any]:
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        for inner in _inner(eqn):
            yield from _constants(inner)


def _evaluate(closed: Any, args: list[Any], constants: Constants) -> list[Any]:
    """The function's outputs, its constants replaced wherever they are."""
    values = [constants.get(id(c), c) for c in closed.consts]
    known = dict(
        zip([*closed.jaxpr.constvars, *closed.jaxpr.invars], [*values, *args], strict=True)
    )

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else known[atom]

    for eqn in closed.jaxpr.eqns:
        args = [read(atom) for atom in eqn.invars]
        rewrite: Any = _REWRITES.get(eqn.primitive)
        changes = rewrite and any(id(c) in constants for f in _inner(eqn) for c in _constants(f))
        with eqn.ctx.manager:
            if changes:
                out = rewrite(eqn, args, lambda f, args: _evaluate(f, list(args), constants))
            else:
                out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
        outputs = out if eqn.primitive.multiple_results else [out]
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _jit(eqn: Any, args: list[Any], call: Any) -> Any:
    return call(eqn.params["jaxpr"], args)


def _scan(eqn: Any, args: list[Any], call: Any) -> Any:
    p = eqn.params
    body, n, m = p["jaxpr"], p["num_consts"], p["num_consts"] + p["num_carry"]

    def one(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        out = call(body, [*args[:n], *carry, *x])
        return out[: m - n], out[m - n :]

    loop = {name: p[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(one, args[n:m], args[m:], **loop)
    return [*carry, *ys]


def _while(eqn: Any, args: list[Any], call: Any) -> Any:
    p, n = eqn.params, eqn.params["cond_nconsts"]
    m = n + p["body_nconsts"]
    return jax.lax.while_loop(
        lambda carry: call(p["cond_jaxpr"], [*args[:n], *carry])[0],
        lambda carry: call(p["body_jaxpr"], [*args[n:m], *carry]),
        args[m:],
    )


def _cond(eqn: Any, args: list[Any], call: Any) -> Any:
    branches = [lambda *args, f=f: call(f, args) for f in eqn.params["branches"]]
    return jax.lax.switch(args[0], branches, *args[1:])


def _remat(eqn: Any, args: list[Any], call: Any) -> Any:
    (inner,) = _inner(eqn)
    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(lambda *args: call(inner, args), **options)(*args)


_REWRITES = {jit_p: _jit, scan_p: _scan, while_p: _while, cond_p: _cond, remat_p: _remat}
