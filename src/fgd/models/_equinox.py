"""Models written in Equinox, as pairs of functions."""

import inspect
from collections.abc import Callable
from typing import Any

import jax

from fgd._checks import PyTree, describe
from fgd.models._model import Model, inputs_of, seeded


def from_equinox(factory: Callable[[jax.Array], Any]) -> Model:
    """An Equinox module as a pair of functions.

    Equinox's modules are of one example, fgd's of a batch: `apply` maps the module over the rows of
    `x`, which are its first argument's. In training mode (a key is given) a module whose `__call__`
    has an argument named `key` gets one for each row; in evaluation mode it gets none, and is as
    `equinox.nn.inference_mode` makes it. Where `x` is a tuple and the module takes as many inputs,
    it gets each.

    What is trained is the module's floating-point arrays. `equinox.combine(params, module)` of any
    module of the same factory gives back a module.

    Args:
      factory: `factory(key) -> module`, a function, so that every key gives its own initial
        parameters: `lambda key: equinox.nn.MLP(3, 2, 8, 1, key=key)`.

    Returns:
      A model whose params are the module's own tree, with None for all that is not trained.

    Raises:
      TypeError: a module instead of a function that makes one, or one with state of its own
        (`equinox.nn.BatchNorm`).

    Example:
      >>> import equinox, fgd, jax.numpy as jnp
      >>> model = fgd.models.from_equinox(lambda key: equinox.nn.Linear(3, 2, key=key))
      >>> model.apply(model.init(0), jnp.ones([5, 3])).shape
      (5, 2)
    """
    import equinox

    if isinstance(factory, equinox.Module) or not callable(factory):
        raise TypeError(
            "from_equinox: expected a function key -> module, so that every key gives its own "
            f"initial parameters, got {describe(type(factory).__name__)}; write "
            "lambda key: Net(…, key=key)"
        )
    example = factory(jax.random.key(0))
    if not isinstance(example, equinox.Module):
        raise TypeError(
            "from_equinox: expected the function to make an equinox.Module, got "
            f"{describe(example)}"
            + ("; a module with a State is not for it" if isinstance(example, tuple) else "")
        )
    if not callable(example):
        raise TypeError(f"from_equinox: a {type(example).__name__} has no __call__ to be applied")

    def is_index(x: Any) -> bool:
        return isinstance(x, equinox.nn.StateIndex)

    if any(map(is_index, jax.tree.leaves(example, is_leaf=is_index))):
        raise TypeError(
            "from_equinox: the module has state of its own, as BatchNorm has; take LayerNorm or "
            "GroupNorm, or write an fgd.models.Model with model_state"
        )
    inputs = inputs_of(type(example).__call__)
    takes_key = "key" in inspect.signature(type(example).__call__).parameters
    shapes, rest = equinox.partition(example, equinox.is_inexact_array)

    def init(key: jax.Array) -> PyTree:
        return equinox.filter(factory(key), equinox.is_inexact_array)

    def apply(params: PyTree, x: Any, *, key: jax.Array | None = None) -> Any:
        if jax.tree.structure(params) != jax.tree.structure(shapes):
            raise ValueError(
                f"apply: params are {describe(params)}, not those of this module; model.init(0) "
                "makes them"
            )
        module: Any = equinox.combine(params, rest)
        if key is None:
            module = equinox.nn.inference_mode(module)
        if key is None or not takes_key:
            return jax.vmap(lambda row: module(*inputs(row)))(x)
        keys = jax.random.split(key, len(jax.tree.leaves(x)[0]))
        return jax.vmap(lambda row, key: module(*inputs(row), key=key))(x, keys)

    return Model(seeded("from_equinox", init), apply)
