"""What the optimizers share: θ ← θ − η·direction, and its pieces."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer

from fgd._checks import PyTree, describe

Scalar = float | jax.Array
LearningRate = Scalar | Callable[[jax.Array], Scalar]
Moments = tuple[PyTree, ...]

SQUARES = "nu", "sum_of_squares"  # moments of |g|²


def descent(
    name: str,
    learning_rate: LearningRate,
    kind: type[Any],
    direction: Callable[[PyTree, Moments, jax.Array], tuple[PyTree, Moments]],
    initial: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ − η(count) · direction(g, moments, count + 1), its moments starting at `initial`.

    Args:
      name: the optimizer's, for messages.
      learning_rate: η, or a schedule of `count`.
      kind: a NamedTuple of `count`, int32 scalar, the updates made so far, and of the moments,
        trees like the parameters, named as optax names them, so that `optax.tree.get` finds them.
      direction: `direction(grads, moments, t) -> (direction, moments)`.
    """
    if not callable(learning_rate):
        check(name, learning_rate=learning_rate)
    _, *moments = kind._fields

    def init(params: PyTree) -> Any:
        def start(moment: str) -> PyTree:
            of_squares = moment in SQUARES  # of complex numbers too these are real
            return jax.tree.map(
                lambda p: jnp.full_like(p, initial, jnp.real(p).dtype if of_squares else None),
                params,
            )

        return kind(jnp.int32(0), *map(start, moments))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        del params
        count, *before = state
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        along, after = direction(updates, tuple(before), count + 1)
        scaled = jax.tree.map(lambda d: -like(rate, d) * d, along)
        if twin := _scaled_grad(along, **extra):
            scaled = jax.tree.map(with_derivative_of, scaled, twin(-jnp.asarray(rate)))
        return scaled, kind(count + 1, *after)

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled_grad(
    direction: PyTree, grad: PyTree = None, value_fn: Any = None, **extra: Any
) -> Callable[[Scalar], PyTree] | None:
    """The step's own c ↦ ∇(c·loss), if the direction is the gradient as the step computed it."""
    del extra
    ours, theirs = jax.tree.leaves(direction), jax.tree.leaves(grad)
    same = len(ours) == len(theirs) and all(map(operator.is_, ours, theirs))
    return getattr(value_fn, "scaled_grad", None) if same else None


@jax.custom_jvp
def with_derivative_of(value: jax.Array, twin: jax.Array) -> jax.Array:
    """`value`, whose derivative is computed as that of `twin`, which it equals up to rounding."""
    del twin
    return value


@with_derivative_of.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return with_derivative_of(*primals), tangents[1]


def like(scalar: Scalar, array: Any) -> jax.Array:
    return jnp.asarray(scalar, jnp.result_type(array))


def average(decay: Scalar, mean: PyTree, new: PyTree) -> PyTree:
    return kept(jax.tree.map(lambda m, x: like(decay, m) * m + like(1 - decay, m) * x, mean, new))


def kept(moment: PyTree) -> PyTree:
    """A moment that the derivative of a run keeps: otherwise what it is made of would be kept."""
    return jax.tree.map(lambda m: checkpoint_name(m, "moment"), moment)


def square(grads: PyTree) -> PyTree:
    """|g|², which of a complex number is not g²."""
    return jax.tree.map(
        lambda g: jnp.square(g) if jnp.isrealobj(g) else jnp.square(g.real) + jnp.square(g.imag),
        grads,
    )


def debias(decay: Scalar, t: jax.Array) -> jax.Array:
    """1 − decayᵗ, without the cancellation that costs float32 three of its seven digits."""
    with np.errstate(divide="ignore"):
        log = jnp.log(decay.astype(float)) if isinstance(decay, jax.Array) else np.log(decay).item()
    return -jnp.expm1(log * t.astype(float))


def root(s: jax.Array, eps: Scalar, eps_in_sqrt: bool) -> jax.Array:
    """√s + ε (or √(s + ε)), whose derivative at s = 0 is 0 and not infinite.

    A weight that never has a gradient (a pixel that is always black) keeps s = 0 for ever; the
    infinite slope of √ there times its zero gradient would make every hypergradient NaN.
    """
    if eps_in_sqrt:
        return jnp.sqrt(s + like(eps, s))
    positive = s > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, s, 1)), 0) + like(eps, s)


def check(optimizer: str, **hyperparameters: Any) -> None:
    """Refuses the numbers that could never work; traced values can't be looked at."""
    for name, value in hyperparameters.items():
        if isinstance(value, Tracer):
            continue
        try:  # NumPy: in a compiled function jax would trace what is known
            known = np.asarray(value)
        except (TypeError, ValueError):  # keys, lists of unequal lengths
            known = np.asarray(None)
        if not jnp.issubdtype(known.dtype, np.number) or np.iscomplexobj(known):
            raise TypeError(f"{optimizer}: {name} must be a number, got {describe(value)}")
        if known.ndim != 0:
            raise ValueError(f"{optimizer}: {name} must be a scalar, got shape {known.shape}")
        if name in ("learning_rate", "initial_accumulator_value"):
            valid, range_ = 0 <= known < np.inf, "finite and not negative"
        elif name == "eps":
            valid, range_ = 0 < known < np.inf, "finite and positive"
        else:
            valid, range_ = 0 <= known < 1, "in [0, 1)"
        if not valid:
            raise ValueError(f"{optimizer}: {name} must be {range_}, got {value}")
