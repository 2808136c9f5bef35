"""Weights of rows, in losses that know of none: each row is scored alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgd._checks import describe, name_of
from fgd.losses._reduce import as_weights, weightless

Score = Callable[[Any, Any], Any]  # (predictions, targets) -> scalar


def each_of(score: Score, axes: int) -> Score:
    """`score` of each row alone, [rows]; or of each element of so many leading axes."""

    def one(pred: Any, target: Any) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], (pred, target))  # a batch of one row
        value = jnp.asarray(score(*alone))
        if value.shape != ():
            raise ValueError(
                f"supervised: {name_of(score)} gives shape {value.shape} for one row, expected a "
                "scalar; take its mean"
            )
        return value

    for _ in range(axes):
        one = jax.vmap(one)
    return one


def weights_of(caller: str, weights: Any, targets: Any, *, some: bool) -> jax.Array:
    """Weights that every array of the targets has axes for."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(targets)]
    if not shapes:
        raise TypeError(f"{caller}: there are weights, but targets are {describe(targets)}")
    known, *_ = [as_weights(caller, weights, shape, some=some) for shape in shapes]
    return known


def without_weightless(targets: Any, weights: jax.Array) -> Any:
    """`targets`, 0 where the weight is: what is there need not be one, as −100 for padding."""

    def cleared(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.where(weightless(weights, x.shape), jnp.zeros_like(x), x)

    return jax.tree.map(cleared, targets)
