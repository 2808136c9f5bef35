"""Runs side by side: loops whose weights lie as products with rows that all runs share take them.

x·W, of rows x [rows, k] that runs share and weights W [runs, k, n] of their own, is one product of
[rows, k] and [k, runs·n]. `vmap` of `lax.scan` carries W with the runs first, so every step copies
all weights before that product, and all gradients after theirs. Here a loop carries such weights
as [k, runs, n], and xᵀ·δ is computed as that, where derivatives make it the transpose of δᵀ·x.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend.core import Literal

from fgd import _jaxpr
from fgd._checks import PyTree
from fgd._run.shared_rows import Flows, Levels, of_variables

Run = Callable[..., PyTree]


class Traced:
    """A run, traced once for arguments of the same shapes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.known: dict[Any, Any] = {}

    def laid_out(self, vmaps: Sequence[Sequence[str]]) -> Run:
        """The run, for `vmap`s to map.

        Args:
          vmaps: names of the arguments that each maps, outermost first; others are not mapped.
        """
        level = {name: frozenset({i}) for i, names in enumerate(vmaps) for name in names}

        def at(**point: PyTree) -> PyTree:
            jaxpr, structure = self.trace(point)
            args = jax.tree.leaves(point)
            levels = [
                level.get(path[0].key, frozenset()) for path, _ in jax.tree.leaves_with_path(point)
            ]
            if (flows := Flows()).of_jaxpr(jaxpr.jaxpr, levels).loops:
                evaluation = _Evaluation(flows)
                results = evaluation(jaxpr, args, levels)
                # JAX keeps a function's trace for as long as the function, and the trace has rules
                # of `custom_vmap` that refer to this: one would keep the other.
                evaluation.calls.clear()
            else:
                results = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *args)
            return jax.tree.unflatten(structure, results)

        return at

    def trace(self, point: dict[str, PyTree]) -> Any:
        """The closed jaxpr, of leaves, and the structure of its results."""
        args, tree = jax.tree.flatten(point)
        kind = tree, *map(jax.typeof, args)
        if kind not in self.known:
            structure = None

            @wraps(self.run)  # for messages
            def leaves(**point: PyTree) -> list[Any]:
                nonlocal structure
                results, structure = jax.tree.flatten(self.run(**point))
                return results

            self.known[kind] = jax.make_jaxpr(leaves)(**point), structure
        return self.known[kind]


class _Evaluation:
    """A traced run, equation by equation."""

    def __init__(self, flows: Flows) -> None:
        self.flows = flows
        self.calls: dict[Any, Callable[..., list[Any]]] = {}

    def __call__(self, closed: Any, args: Sequence[Any], arguments: Sequence[Levels]) -> list[Any]:
        jaxpr = closed.jaxpr
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
        levels = dict(zip(jaxpr.invars, arguments, strict=True))
        products = {}
        for equation in jaxpr.eqns:
            equation = _product_of_the_transpose(equation, products)
            operands = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
            of_operands = of_variables(equation.invars, levels)
            flow = self.flows.of_equation(equation, of_operands)
            with equation.ctx.manager:
                results = self.results(equation, operands, of_operands, flow.loops)
            values.update(zip(equation.outvars, results, strict=True))
            levels.update(zip(equation.outvars, flow.levels, strict=True))
            if equation.primitive.name == "dot_general":
                products[equation.outvars[0]] = equation
        return [x.val if isinstance(x, Literal) else values[x] for x in jaxpr.outvars]

    def results(
        self, equation: Any, operands: Sequence[Any], levels: list[Levels], loops: bool
    ) -> Sequence[Any]:
        if loops and equation.primitive.name == "scan":
            return _Loop(self, equation, levels)(*operands)
        called = _jaxpr.called_by(equation)
        if called is None or not _jaxpr.contains(called.jaxpr, "scan", "transpose"):
            return _jaxpr.bind(equation, operands)
        known = called.jaxpr, tuple(levels)
        if known not in self.calls:
            self.calls[known] = self.call(equation.params, called, levels)
        return self.calls[known](*operands)

    def call(self, params: Any, called: Any, levels: list[Levels]) -> Callable[..., list[Any]]:
        def call(*args: Any) -> list[Any]:
            return self(called, args, levels)

        if "policy" not in params:
            return jax.jit(call)
        return jax.checkpoint(call, prevent_cse=params["prevent_cse"], policy=params["policy"])


def _product_of_the_transpose(equation: Any, products: dict[Any, Any]) -> Any:
    """xᵀ·δ for the transpose of δᵀ·x, with which `vmap` computes the transpose after a product."""
    if equation.primitive.name != "transpose" or isinstance(equation.invars[0], Literal):
        return equation
    product = products.get(equation.invars[0])
    if product is None:
        return equation
    (lhs, rhs), batch = product.params["dimension_numbers"]
    free = product.invars[0].aval.ndim - len(lhs)
    turned = np.roll(range(equation.outvars[0].aval.ndim), -free)
    if any(batch) or list(equation.params["permutation"]) != list(turned):
        return equation
    precision = product.params["precision"]
    if type(precision) is tuple:
        precision = precision[::-1]
    params = product.params | {"dimension_numbers": ((rhs, lhs), batch), "precision": precision}
    return product.replace(invars=product.invars[::-1], outvars=equation.outvars, params=params)


class _Loop:
    """`scan`, mapped level by level, by a `custom_vmap` that chooses the axis of what is carried.

    `vmap` of `scan` itself takes the first axis for all.
    """

    def __init__(self, evaluate: _Evaluation, equation: Any, operands: list[Levels]) -> None:
        self.evaluate = evaluate
        self.params = equation.params
        self.carried = _jaxpr.carried(self.params)
        self.body = _jaxpr.closed(self.params["jaxpr"])
        self.operands, self.flow = evaluate.flows.of_body(self.params, operands)

    def __call__(self, *operands: Any) -> Sequence[Any]:
        levels = sorted(frozenset().union(*self.operands))
        return self.mapped(
            lambda *args: self.evaluate(self.body, args, self.operands), levels, operands
        )

    def mapped(self, step: Any, levels: Sequence[int], operands: Sequence[Any]) -> Sequence[Any]:
        if not levels:
            return self.scan(step, operands)
        *outer, level = levels

        @custom_vmap
        def loop(*operands: Any) -> Sequence[Any]:
            return self.mapped(step, outer, operands)

        @loop.def_vmap
        def _(size: int, batched: Sequence[bool], *operands: Any) -> Any:
            axes = [0 if b else None for b in batched]  # in a step
            if any(b and level not in of for b, of in zip(batched, self.operands, strict=True)):
                # Nothing varies on the loop's own level, though it may seem so: this is another.
                plain = jax.vmap(lambda *args: self.scan(step, args), axes, axis_size=size)
                return (results := plain(*operands)), [True] * len(results)
            for i in self.carried:
                axes[i] = self.axis(i, level)
            count = len(self.carried)
            of_results = [axes[i] for i in self.carried]
            of_results += [0 if level in of else None for of in self.flow.levels[count:]]
            moved = [
                x if a is None else _moved(x, size, b, a + (i >= self.carried.stop))
                for i, (x, b, a) in enumerate(zip(operands, batched, axes, strict=True))
            ]
            mapped = self.mapped(jax.vmap(step, axes, of_results, axis_size=size), outer, moved)
            results = [
                x if a is None else jnp.moveaxis(x, a + (i >= count), 0)
                for i, (x, a) in enumerate(zip(mapped, of_results, strict=True))
            ]
            return results, [a is not None for a in of_results]

        return loop(*operands)

    def axis(self, i: int, level: int) -> int | None:
        if level not in self.operands[i]:
            return None
        return int(level in self.flow.weights.get(i, ()))

    def scan(self, step: Any, operands: Sequence[Any]) -> list[Any]:
        first, last = self.carried.start, self.carried.stop

        def body(carry: Sequence[Any], xs: Sequence[Any]) -> Any:
            results = step(*operands[:first], *carry, *xs)
            return results[: last - first], results[last - first :]

        options = {name: self.params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(body, list(operands[first:last]), operands[last:], **options)
        return [*carry, *ys]


def _moved(x: Any, size: int, varies: bool, axis: int) -> jax.Array:
    """With runs along this axis, which are along the first if `x` varies."""
    return jnp.moveaxis(x if varies else jnp.broadcast_to(x, (size, *jnp.shape(x))), 0, axis)
