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
      weights: by the position of an argument that is W in x·W, x the same for all: levels of W.
      loops: whether a loop carries such weights.
    """

    levels: list[Levels]
    elementwise: list[frozenset[int]]
    weights: dict[int, Levels]
    loops: bool = False


class Flows:
    """The flow of jaxprs, each read once for arguments of the same levels."""

    def __init__(self) -> None:
        self._of_jaxpr: dict[Any, Flow] = {}

    def of_jaxpr(self, jaxpr: Any, arguments: Sequence[Levels]) -> Flow:
        known = jaxpr, tuple(arguments)
        if known not in self._of_jaxpr:
            self._of_jaxpr[known] = self._read(jaxpr, arguments)
        return self._of_jaxpr[known]

    def _read(self, jaxpr: Any, arguments: Sequence[Levels]) -> Flow:
        levels = dict(zip(jaxpr.invars, arguments, strict=True))
        arguments_of = {x: frozenset({i}) for i, x in enumerate(jaxpr.invars)}
        weights: dict[int, Levels] = {}
        loops = False
        for equation in jaxpr.eqns:
            flow = self.of_equation(equation, of_variables(equation.invars, levels))
            of_operands = of_variables(equation.invars, arguments_of)
            levels.update(zip(equation.outvars, flow.levels, strict=True))
            for result, operands in zip(equation.outvars, flow.elementwise, strict=True):
                arguments_of[result] = frozenset().union(*(of_operands[i] for i in operands))
            for i, alone in flow.weights.items():
                for argument in of_operands[i]:
                    weights[argument] = weights.get(argument, frozenset()) | alone
            loops |= flow.loops
        results = jaxpr.outvars
        elementwise = of_variables(results, arguments_of)
        return Flow(of_variables(results, levels), elementwise, weights, loops)

    def of_equation(self, equation: Any, operands: list[Levels]) -> Flow:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self._of_loop(equation, operands)
        if (called := _jaxpr.called_by(equation)) is not None:
            return self.of_jaxpr(called.jaxpr, operands)
        if name == "cond":
            flows = [self.of_jaxpr(branch.jaxpr, operands[1:]) for branch in params["branches"]]
            levels = [operands[0].union(*of) for of in zip(*(f.levels for f in flows), strict=True)]
            return Flow(levels, [frozenset()] * len(levels), {})
        every = [frozenset().union(*operands)] * len(equation.outvars)
        if name == "dot_general":
            contracted, _ = params["dimension_numbers"]
            weights = {
                i: operands[i]
                for i, axes in enumerate(contracted)
                if tuple(axes) == (0,) and not operands[1 - i]
            }
            return Flow(every, [frozenset()], weights)
        if name == "transpose":
            return Flow(every, [frozenset()], {})
        shapes = [getattr(x.aval, "shape", None) for x in equation.invars]  # a token has none
        elementwise = [
            frozenset(i for i, shape in enumerate(shapes) if shape == getattr(x.aval, "shape", ()))
            for x in equation.outvars
        ]
        return Flow(every, elementwise, {})

    def _of_loop(self, equation: Any, operands: list[Levels]) -> Flow:
        carried = _jaxpr.carried(equation.params)
        flow = self.of_body(equation.params, operands)[1]
        # What is scanned over, or recorded, has one axis less within the loop.
        elementwise = [frozenset(range(carried.stop)) & others for others in flow.elementwise]
        elementwise[len(carried) :] = [frozenset()] * (len(elementwise) - len(carried))
        weights = {i: levels for i, levels in flow.weights.items() if i < carried.stop}
        loops = flow.loops or any(i in carried for i in weights)
        return Flow(flow.levels, elementwise, weights, loops and not equation.effects)

    def of_body(self, params: Any, operands: list[Levels]) -> tuple[list[Levels], Flow]:
        """Levels of what a loop's body is given, and what becomes of it.

        More may vary in a step than where the loop began. And what is computed elementwise from
        weights, or weights from it, such as an optimizer's averages, is to lie as they do.
        """
        carried = _jaxpr.carried(params)
        while True:
            flow = self.of_jaxpr(_jaxpr.closed(params["jaxpr"]).jaxpr, operands)
            passed_on = list(operands)
            for i, levels in zip(carried, flow.levels, strict=False):
                passed_on[i] |= levels
            if passed_on == operands:
                break
            operands = passed_on
        weights = dict(flow.weights)
        for i, others in zip(carried, flow.elementwise, strict=False):
            family = {i, *others}
            if alone := frozenset().union(*(weights.get(j, frozenset()) for j in family)):
                weights.update(dict.fromkeys(family, alone))
        return operands, flow._replace(weights=weights)


def of_variables(
    variables: Sequence[Any], facts: dict[Any, frozenset[int]]
) -> list[frozenset[int]]:
    return [frozenset() if isinstance(x, Literal) else facts.get(x, frozenset()) for x in variables]
