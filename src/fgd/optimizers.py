"""The classic optimizers, each a few lines, as optax gradient transformations.

They mean what `torch.optim` means. Learning rates are floats, traced scalars (so that a run can be
mapped over them and differentiated by them) or schedules `count -> learning rate`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Scalar = float | jax.Array
LearningRate = Scalar | Callable[[jax.Array], Scalar]


class DescentState(NamedTuple):
    """The state of every optimizer here.

    Attributes:
      count: int32 scalar, updates made so far; a schedule's argument.
      moments: what the direction remembers: a tuple of trees like the parameters.
    """

    count: jax.Array
    moments: tuple[PyTree, ...]


def sgd(learning_rate: LearningRate) -> optax.GradientTransformation:
    r"""Gradient descent: θ ← θ − η·g.

    Args:
      learning_rate: η ≥ 0.

    Raises:
      ValueError: a negative or infinite learning rate.

    Example:
      >>> import fgd, jax, optax
      >>> optimizer = fgd.sgd(0.1)
      >>> state = optimizer.init(5.0)
      >>> updates, state = optimizer.update(2.0, state)
      >>> round(float(optax.apply_updates(5.0, updates)), 6)
      4.8
    """
    return _descent("sgd", learning_rate, 0, lambda grads, moments, t: (grads, ()))


def momentum(
    learning_rate: LearningRate,
    decay: Scalar = 0.9,
    *,
    nesterov: bool = False,
    averaging: bool = False,
) -> optax.GradientTransformation:
    r"""Gradient descent with momentum: v ← μ·v + g, then θ ← θ − η·v.

    Args:
      learning_rate: η ≥ 0.
      decay: μ in [0, 1).
      nesterov: step along g + μ·v, the gradient as seen from where momentum leads.
      averaging: v ← μ·v + (1 − μ)·g, a running mean of gradients: with μ = 1 − α, the form
        v ← (1 − α)·v + α·g. Its steps are (1 − μ) times as long as the plain form's.

    Raises:
      ValueError: a bad η or μ, or both forms at once.

    Source:
      Polyak 1964; Sutskever et al., "On the importance of initialization and momentum", ICML 2013,
      in the form of `torch.optim.SGD`. (torch's `dampening` is `averaging` but for the first step,
      where torch sets v = g.)

    Example:
      >>> import fgd
      >>> optimizer = fgd.momentum(0.1, averaging=True)
    """
    if nesterov and averaging:
        raise ValueError("momentum: nesterov and averaging are two forms; choose one")
    _check("momentum", decay=decay)

    def direction(grads: PyTree, moments: PyTree, t: jax.Array) -> tuple[PyTree, PyTree]:
        (v,) = moments
        if averaging:
            v = _average(decay, v, grads)
        else:
            v = _map(lambda v, g: _like(decay, g) * v + g, v, grads)
        ahead = _map(lambda g, v: g + _like(decay, g) * v, grads, v) if nesterov else v
        return ahead, (v,)

    return _descent("momentum", learning_rate, 1, direction)


def adagrad(
    learning_rate: LearningRate,
    eps: Scalar = 1e-10,
    *,
    initial_accumulator_value: float = 0.0,
    eps_in_sqrt: bool = False,
) -> optax.GradientTransformation:
    r"""AdaGrad: s ← s + g², then θ ← θ − η·g / (√s + ε).

    Args:
      learning_rate: η ≥ 0.
      eps: ε > 0.
      initial_accumulator_value: s before the first step.
      eps_in_sqrt: divide by √(s + ε), as optax does; its defaults are s = 0.1 and ε = 1e-7.

    Raises:
      ValueError: a bad η or ε.

    Source:
      Duchi, Hazan and Singer, JMLR 2011, in the form of `torch.optim.Adagrad`.

    Example:
      >>> import fgd
      >>> optimizer = fgd.adagrad(0.01)
    """
    _check("adagrad", eps=eps)

    def direction(grads: PyTree, moments: PyTree, t: jax.Array) -> tuple[PyTree, PyTree]:
        s = _map(lambda s, g: s + g * g, moments[0], grads)
        return _map(lambda g, s: g / _root(s, eps, eps_in_sqrt), grads, s), (s,)

    return _descent("adagrad", learning_rate, 1, direction, initial_accumulator_value)


def rmsprop(
    learning_rate: LearningRate,
    decay: Scalar = 0.99,
    eps: Scalar = 1e-8,
    *,
    eps_in_sqrt: bool = False,
) -> optax.GradientTransformation:
    r"""RMSProp: s ← ρ·s + (1 − ρ)·g², then θ ← θ − η·g / (√s + ε).

    Args:
      learning_rate: η ≥ 0.
      decay: ρ in [0, 1); torch calls it alpha.
      eps: ε > 0.
      eps_in_sqrt: divide by √(s + ε), as optax does; its default ρ is 0.9.

    Raises:
      ValueError: a bad η, ρ or ε.

    Source:
      Tieleman and Hinton, Coursera lecture 6.5, 2012, in the form of `torch.optim.RMSprop`.

    Example:
      >>> import fgd
      >>> optimizer = fgd.rmsprop(0.001)
    """
    _check("rmsprop", decay=decay, eps=eps)

    def direction(grads: PyTree, moments: PyTree, t: jax.Array) -> tuple[PyTree, PyTree]:
        s = _average(decay, moments[0], _map(jnp.square, grads))
        return _map(lambda g, s: g / _root(s, eps, eps_in_sqrt), grads, s), (s,)

    return _descent("rmsprop", learning_rate, 1, direction)


def adam(
    learning_rate: LearningRate, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformation:
    r"""Adam: m ← β₁·m + (1 − β₁)·g and s ← β₂·s + (1 − β₂)·g², then

    θ ← θ − η · (m / (1 − β₁ᵗ)) / (√(s / (1 − β₂ᵗ)) + ε).

    Args:
      learning_rate: η ≥ 0.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε > 0, outside the root, as in torch and (by default) optax.

    Raises:
      ValueError: a bad η, β or ε.

    Source:
      Kingma and Ba, "Adam", ICLR 2015, algorithm 1.

    Example:
      >>> import fgd
      >>> optimizer = fgd.adam(1e-3)
    """
    _check("adam", b1=b1, b2=b2, eps=eps)

    def direction(grads: PyTree, moments: PyTree, t: jax.Array) -> tuple[PyTree, PyTree]:
        m = _average(b1, moments[0], grads)
        s = _average(b2, moments[1], _map(jnp.square, grads))

        def ratio(m: jax.Array, s: jax.Array) -> jax.Array:
            s_hat = s / (1 - _like(b2, s) ** t.astype(s.dtype))
            return m / (1 - _like(b1, m) ** t.astype(m.dtype)) / _root(s_hat, eps, False)

        return _map(ratio, m, s), (m, s)

    return _descent("adam", learning_rate, 2, direction)


_map = jax.tree.map


def _descent(
    name: str,
    learning_rate: LearningRate,
    num_moments: int,
    direction: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]],
    initial: float = 0.0,
) -> optax.GradientTransformation:
    """θ ← θ − η(count) · direction(g, moments, count + 1), its moments starting at `initial`."""
    if not callable(learning_rate):
        _check(name, learning_rate=learning_rate)

    def init(params: PyTree) -> DescentState:
        full = [_map(lambda p: jnp.full_like(p, initial), params) for _ in range(num_moments)]
        return DescentState(jnp.int32(0), tuple(full))

    def update(
        grads: PyTree, state: DescentState, params: PyTree = None
    ) -> tuple[PyTree, DescentState]:
        del params
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        along, moments = direction(grads, state.moments, state.count + 1)
        updates = _map(lambda d: -_like(rate, d) * d, along)
        return updates, DescentState(state.count + 1, moments)

    return optax.GradientTransformation(init, update)


def _like(scalar: Scalar, array: jax.Array) -> jax.Array:
    return jnp.asarray(scalar, jnp.result_type(array))


def _average(decay: Scalar, mean: PyTree, new: PyTree) -> PyTree:
    return _map(lambda m, x: _like(decay, m) * m + (1 - _like(decay, m)) * x, mean, new)


def _root(s: jax.Array, eps: Scalar, eps_in_sqrt: bool) -> jax.Array:
    """√s + ε (or √(s + ε)), whose derivative at s = 0 is 0 and not infinite.

    A weight that never has a gradient (a pixel that is always black) keeps s = 0 for ever; the
    infinite slope of √ there times its zero gradient would make every hypergradient NaN.
    """
    if eps_in_sqrt:
        return jnp.sqrt(s + _like(eps, s))
    positive = s > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, s, 1)), 0) + _like(eps, s)


def _check(optimizer: str, **hyperparameters: Any) -> None:
    """Refuses the numbers that could never work; traced values can't be looked at."""
    for name, value in hyperparameters.items():
        if isinstance(value, jax.core.Tracer):
            continue
        if jnp.ndim(value) != 0:
            raise ValueError(f"{optimizer}: {name} must be a scalar, got shape {jnp.shape(value)}")
        if name == "learning_rate":
            valid, range_ = 0 <= value < float("inf"), "finite and not negative"
        elif name == "eps":
            valid, range_ = 0 < value < float("inf"), "finite and positive"
        else:
            valid, range_ = 0 <= value < 1, "in [0, 1)"
        if not valid:
            raise ValueError(f"{optimizer}: {name} must be {range_}, got {value}")
