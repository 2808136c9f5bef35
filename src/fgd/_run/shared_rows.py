"""Which weights of a loop are multiplied by rows that several runs share, read from its jaxpr."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal

from fgd import _jaxpr

Levels = frozenset[int]  # the `vmap`s that give each run a value of its own; 0 is the outermost


class Flow(NamedTuple):
    """What becomes of the arguments of a jaxpr, or of the operands of an equation.

    Attributes:
      levels: of each result.
      elementwise: for each result, the arguments of its shape from which it is computed so.
      weights: by the position of an argument that is W in x·W: levels of W that x has not.
      loops: whether a loop carries such weights.
    """

    levels: list[Levels]
    elementwise: list[frozenset[int]]
    weights: dict[int, Levels]
    loops: bool = False


def of_jaxpr(jaxpr: Any, arguments: Sequence[Levels]) -> Flow:
    levels = dict(zip(jaxpr.invars, arguments, strict=True))
    arguments_of = {x: frozenset({i}) for i, x in enumerate(jaxpr.invars)}
    weights: dict[int, Levels] = {}
    loops = False
    for equation in jaxpr.eqns:
        flow = of_equation(equation, of_variables(equation.invars, levels))
        of_operands = of_variables(equation.invars, arguments_of)
        levels.update(zip(equation.outvars, flow.levels, strict=True))
        for result, operands in zip(equation.outvars, flow.elementwise, strict=True):
            arguments_of[result] = frozenset().union(*(of_operands[i] for i in operands))
        for i, alone in flow.weights.items():
            for argument in of_operands[i]:
                weights[argument] = weights.get(argument, frozenset()) | alone
        loops |= flow.loops
    results = jaxpr.outvars
    return Flow(of_variables(results, levels), of_variables(results, arguments_of), weights, loops)


def of_variables(
    variables: Sequence[Any], facts: dict[Any, frozenset[int]]
) -> list[frozenset[int]]:
    return [frozenset() if isinstance(x, Literal) else facts.get(x, frozenset()) for x in variables]


def of_equation(equation: Any, operands: list[Levels]) -> Flow:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        flow = of_body(params, operands)[1]
        carries = any(i in _jaxpr.carried(params) for i in flow.weights)
        return flow._replace(loops=not equation.effects and (flow.loops or carries))
    if (called := called_by(equation)) is not None:
        return of_jaxpr(called.jaxpr, operands)
    if name == "cond":
        flows = [of_jaxpr(branch.jaxpr, operands[1:]) for branch in params["branches"]]
        levels = [operands[0].union(*of) for of in zip(*(f.levels for f in flows), strict=True)]
        return Flow(levels, [frozenset()] * len(levels), {})
    weights = {}
    if name == "dot_general":
        for i, contracted in enumerate(params["dimension_numbers"][0]):
            if tuple(contracted) == (0,) and not operands[1 - i]:
                weights[i] = operands[i]
    elementwise = [
        frozenset(i for i, x in enumerate(equation.invars) if x.aval.shape == result.aval.shape)
        for result in equation.outvars
    ]
    return Flow([frozenset().union(*operands)] * len(elementwise), elementwise, weights)


def of_body(params: Any, operands: list[Levels]) -> tuple[list[Levels], Flow]:
    """Levels of what a loop's body is given, and what becomes of it.

    More may vary in a step than where the loop began. And what is computed elementwise from
    weights, or weights from it, such as an optimizer's averages, is to lie as they do.
    """
    carried = _jaxpr.carried(params)
    while True:
        flow = of_jaxpr(_jaxpr.closed(params["jaxpr"]).jaxpr, operands)
        passed_on = list(operands)
        for i, levels in zip(carried, flow.levels, strict=False):
            passed_on[i] |= levels
        if passed_on == operands:
            break
        operands = passed_on
    for i, others in zip(carried, flow.elementwise, strict=False):
        family = {i, *others}
        if alone := frozenset().union(*(flow.weights.get(j, frozenset()) for j in family)):
            flow.weights.update(dict.fromkeys(family, alone))
    return operands, flow


def called_by(equation: Any) -> Any:
    """The closed jaxpr that an equation calls with its operands, or None."""
    if equation.primitive.name in ("jit", "pjit", "checkpoint", "remat", "remat2"):
        return _jaxpr.closed(equation.params["jaxpr"])
    return None
