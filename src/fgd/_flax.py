"""Models written in Flax, as pairs of functions."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgd._model import Model, PyTree


def from_flax(module: Any, sample: Any) -> Model:
    """A Flax model as a pair of functions.

    In training mode (a key is given) dropout is on and draws from the key; in evaluation mode it is
    off. A linen module hears of the mode through an argument of its `__call__` named
    `deterministic`, `train`, `training` or `is_training`, an nnx module through `train()` and
    `eval()`.

    Args:
      module: a `flax.linen.Module`, or a function `rngs -> flax.nnx.Module`: a function, so that
        every key gives its own initial parameters.
      sample: an input, to learn shapes from: [rows, …].

    Returns:
      A model whose params are plain nested dicts of arrays, named as Flax names them.

    Raises:
      TypeError: neither of the two; an nnx module instead of a function that makes one.
      ValueError: the model has variables beyond parameters, such as BatchNorm's running
        statistics; says which.

    Example:
      >>> import fgd, flax.linen as nn, jax, jax.numpy as jnp
      >>> model = fgd.models.from_flax(nn.Dense(2), jnp.ones([1, 3]))
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones([5, 3])).shape
      (5, 2)
    """
    from flax import linen, nnx

    if isinstance(module, linen.Module):
        return _from_linen(module, sample)
    linen_class = isinstance(module, type) and issubclass(module, linen.Module)
    if isinstance(module, nnx.Module) or linen_class or not callable(module):
        raise TypeError(
            f"from_flax: expected a linen module or a function rngs -> nnx.Module, got "
            f"{module if linen_class else type(module).__name__}; make an instance of a linen "
            "class, wrap an nnx class: lambda rngs: Net(rngs=rngs)"
        )
    return _from_nnx(module, sample)


def _from_linen(module: Any, sample: Any) -> Model:
    known = inspect.signature(type(module).__call__).parameters

    def mode(training: bool) -> dict[str, bool]:
        modes: dict[str, bool] = {"deterministic": not training}
        modes |= dict.fromkeys(("train", "training", "is_training"), training)
        return {name: value for name, value in modes.items() if name in known}

    def init(key: jax.Array) -> PyTree:
        return module.init(key, sample, **mode(training=False)).get("params", {})

    def apply(params: PyTree, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, rngs=rngs, **mode(key is not None))

    variables = jax.eval_shape(
        lambda key: module.init(key, sample, **mode(training=False)), jax.random.key(0)
    )
    _refuse(variables, {"params"})
    return Model(init, apply)


def _from_nnx(factory: Callable[[Any], Any], sample: Any) -> Model:
    from flax import nnx

    example = factory(nnx.Rngs(0))
    if not isinstance(example, nnx.Module):
        raise TypeError(f"from_flax: expected the function to make an nnx.Module, got {example!r}")
    graph, shapes, randomness, rest = nnx.split(example, nnx.Param, nnx.RngState, ...)
    structure = jax.tree.structure(nnx.to_pure_dict(shapes))
    _refuse({type(v).__name__ for _, v in nnx.to_flat_state(rest)}, set())

    def init(key: jax.Array) -> PyTree:
        return nnx.to_pure_dict(nnx.state(factory(nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        if jax.tree.structure(params) != structure:
            raise ValueError(
                f"apply: params have structure {jax.tree.structure(params)}, expected {structure}"
            )
        leaves, tree = jax.tree.flatten(randomness)
        base = jax.random.key(0) if key is None else key
        streams = [
            jax.random.fold_in(base, i) if leaf.dtype == base.dtype else jnp.zeros_like(leaf)
            for i, leaf in enumerate(leaves)
        ]
        values = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(params))
        module = nnx.merge(graph, values, jax.tree.unflatten(tree, streams))
        module.eval() if key is None else module.train()
        return module(x)

    jax.eval_shape(lambda key, x: apply(init(key), x), jax.random.key(0), sample)
    return Model(init, apply)


def _refuse(found: Any, allowed: set[str]) -> None:
    if beyond := set(found) - allowed:
        raise ValueError(
            f"from_flax: the model has variables beyond its parameters, {', '.join(sorted(beyond))}"
            ", which a training step would not update; use layers without running state"
        )
