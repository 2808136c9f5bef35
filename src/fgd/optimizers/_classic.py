"""Each optimizer: its formula, and the few lines that say it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgd._checks import PyTree, require_flag
from fgd.optimizers._descent import (
    LearningRate,
    Moments,
    Scalar,
    average,
    check,
    debias,
    descent,
    kept,
    like,
    root,
    square,
)


class SGDState(NamedTuple):
    """Of `sgd`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


class MomentumState(NamedTuple):
    """Of `momentum`: v is `trace`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: PyTree


class AdagradState(NamedTuple):
    """Of `adagrad`: s is `sum_of_squares`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum_of_squares: PyTree


class RMSPropState(NamedTuple):
    """Of `rmsprop`: s is `nu`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    nu: PyTree


class AdamState(NamedTuple):
    """Of `adam`: m is `mu`, s is `nu`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: PyTree
    nu: PyTree


def sgd(learning_rate: LearningRate) -> optax.GradientTransformationExtraArgs:
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
    return descent("sgd", learning_rate, SGDState, lambda grads, moments, t: (grads, ()))


def momentum(
    learning_rate: LearningRate,
    decay: Scalar = 0.9,
    *,
    nesterov: bool = False,
    averaging: bool = False,
) -> optax.GradientTransformationExtraArgs:
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
    require_flag("momentum", nesterov=nesterov, averaging=averaging)
    if nesterov and averaging:
        raise ValueError("momentum: nesterov and averaging are two forms; choose one")
    check("momentum", decay=decay)

    def direction(grads: PyTree, moments: Moments, t: jax.Array) -> tuple[PyTree, Moments]:
        (v,) = moments
        if averaging:
            v = average(decay, v, grads)
        else:
            v = kept(jax.tree.map(lambda v, g: like(decay, g) * v + g, v, grads))
        ahead = jax.tree.map(lambda g, v: g + like(decay, g) * v, grads, v) if nesterov else v
        return ahead, (v,)

    return descent("momentum", learning_rate, MomentumState, direction)


def adagrad(
    learning_rate: LearningRate,
    eps: Scalar = 1e-10,
    *,
    initial_accumulator_value: float = 0.0,
    eps_in_sqrt: bool = False,
) -> optax.GradientTransformationExtraArgs:
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
    require_flag("adagrad", eps_in_sqrt=eps_in_sqrt)
    check("adagrad", eps=eps, initial_accumulator_value=initial_accumulator_value)

    def direction(grads: PyTree, moments: Moments, t: jax.Array) -> tuple[PyTree, Moments]:
        s = kept(jax.tree.map(jnp.add, moments[0], square(grads)))
        return jax.tree.map(lambda g, s: g / like(root(s, eps, eps_in_sqrt), g), grads, s), (s,)

    return descent("adagrad", learning_rate, AdagradState, direction, initial_accumulator_value)


def rmsprop(
    learning_rate: LearningRate,
    decay: Scalar = 0.99,
    eps: Scalar = 1e-8,
    *,
    eps_in_sqrt: bool = False,
) -> optax.GradientTransformationExtraArgs:
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
    require_flag("rmsprop", eps_in_sqrt=eps_in_sqrt)
    check("rmsprop", decay=decay, eps=eps)

    def direction(grads: PyTree, moments: Moments, t: jax.Array) -> tuple[PyTree, Moments]:
        s = average(decay, moments[0], square(grads))
        return jax.tree.map(lambda g, s: g / like(root(s, eps, eps_in_sqrt), g), grads, s), (s,)

    return descent("rmsprop", learning_rate, RMSPropState, direction)


def adam(
    learning_rate: LearningRate, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformationExtraArgs:
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
    check("adam", b1=b1, b2=b2, eps=eps)

    def direction(grads: PyTree, moments: Moments, t: jax.Array) -> tuple[PyTree, Moments]:
        m = average(b1, moments[0], grads)
        s = average(b2, moments[1], square(grads))

        def ratio(m: jax.Array, s: jax.Array) -> jax.Array:
            m_hat, s_hat = m / like(debias(b1, t), m), s / like(debias(b2, t), s)
            return m_hat / like(root(s_hat, eps, eps_in_sqrt=False), m_hat)

        return jax.tree.map(ratio, m, s), (m, s)

    return descent("adam", learning_rate, AdamState, direction)
