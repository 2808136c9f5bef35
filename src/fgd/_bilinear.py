"""A primitive of JAX's that is linear in each of two arrays: its rules in every transformation.

JAX does not promise that these rules are registered so; `tests/test_conv.py` fails if they are not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def bilinear_primitive(
    name: str,
    *,
    shape: Callable[..., jax.ShapeDtypeStruct],
    transposed: tuple[Callable[..., Any], Callable[..., Any]],
    batched: Callable[..., Any],
    lowered: Callable[..., Any],
    lowered_on_cpu: Callable[..., Any],
) -> Callable[..., jax.Array]:
    """A function of two arrays, linear in each, with derivatives of its own in every mode.

    Args:
      name: of the primitive.
      shape: of the result, from shapes of the operands.
      transposed: `(g, lhs, rhs) -> cotangent` of lhs, and of rhs; the one asked for is a shape.
      batched: `(args, dims) -> (result, dim)`, for `vmap`.
      lowered, lowered_on_cpu: what is compiled.
    """
    primitive = Primitive(name)

    def bind(lhs: Any, rhs: Any, **static: Any) -> jax.Array:
        return primitive.bind(lhs, rhs, **static)

    def abstract(lhs: Any, rhs: Any, **static: Any) -> ShapedArray:
        result = shape(lhs, rhs, **static)
        return ShapedArray(result.shape, result.dtype)

    def to_lhs(g: Any, lhs: Any, rhs: Any, **static: Any) -> Any:
        return transposed[0](g, lhs.aval, rhs, **static)

    def to_rhs(g: Any, lhs: Any, rhs: Any, **static: Any) -> Any:
        return transposed[1](g, lhs, rhs.aval, **static)

    def of_series(primals: Sequence[Any], series: Sequence[Any], **static: Any) -> Any:
        """Of Taylor coefficients, as `jax.experimental.jet` has them: hₖ = Σⱼ fⱼ gₖ₋ⱼ."""
        f, g = ([x, *terms] for x, terms in zip(primals, series, strict=True))
        out = [sum(bind(f[j], g[k - j], **static) for j in range(k + 1)) for k in range(len(f))]
        return out[0], out[1:]

    primitive.def_abstract_eval(abstract)
    compiled = jax.jit(lambda lhs, rhs, static: bind(lhs, rhs, **dict(static)), static_argnums=2)
    primitive.def_impl(lambda lhs, rhs, **static: compiled(lhs, rhs, tuple(static.items())))
    ad.defbilinear(primitive, to_lhs, to_rhs)
    batching.primitive_batchers[primitive] = batched
    for platform, function in ((None, lowered), ("cpu", lowered_on_cpu)):
        rule = mlir.lower_fun(function, multiple_results=False)
        mlir.register_lowering(primitive, rule, platform=platform)
    _jet_rules()[primitive] = of_series
    return bind


def _jet_rules() -> dict[Any, Any]:
    from jax.experimental import jet

    return jet.jet_rules
