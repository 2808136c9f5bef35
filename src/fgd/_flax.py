"""Models written in Flax, as pairs of functions."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgd._model import Model, PyTree


def from_flax(module: Any, sample: Any, *, stateful: bool = False) -> Model:
    """A Flax model as a pair of functions.

    In training mode (a key is given) dropout is on and draws from the key, and BatchNorm uses the
    batch's statistics; in evaluation mode dropout is off and BatchNorm uses its running ones. A
    linen module hears of the mode through an argument of its `__call__` named `deterministic`,
    `use_running_average`, `train`, `training` or `is_training`, an nnx module through `train()`
    and `eval()`.

    Args:
      module: a `flax.linen.Module`, or a function `rngs -> flax.nnx.Module`: a function, so that
        every key gives its own initial parameters.
      sample: an input, to learn shapes from: [rows, …].
      stateful: the model has arrays beside its parameters that training mode updates, such as
        BatchNorm's running statistics. Then `init(key) -> (params, model_state)` and
        `apply(params, model_state, x, *, key=None) -> (y, model_state)`; evaluation mode returns
        `model_state` as it was.

    Returns:
      A model whose params are plain nested dicts of arrays, named as Flax names them.

    Raises:
      TypeError: neither of the two; an nnx module instead of a function that makes one.
      ValueError: the model has variables beyond parameters and is not said to be `stateful`; says
        which. At apply, a tree of another structure.

    Example:
      >>> import fgd, flax.linen as nn, jax, jax.numpy as jnp
      >>> model = fgd.models.from_flax(nn.Dense(2), jnp.ones([1, 3]))
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones([5, 3])).shape
      (5, 2)
      >>> model = fgd.models.from_flax(nn.BatchNorm(momentum=0.9), jnp.ones([1, 3]), stateful=True)
      >>> params, model_state = model.init(jax.random.key(0))
      >>> x, key = jnp.full([5, 3], 7.0), jax.random.key(1)
      >>> _, model_state = model.apply(params, model_state, x, key=key)
      >>> model_state["batch_stats"]["mean"]
      Array([0.7, 0.7, 0.7], dtype=float32)
    """
    from flax import linen, nnx

    if isinstance(module, linen.Module):
        model, beyond = _from_linen(module, sample)
    else:
        linen_class = isinstance(module, type) and issubclass(module, linen.Module)
        if isinstance(module, nnx.Module) or linen_class or not callable(module):
            raise TypeError(
                "from_flax: expected a linen module or a function rngs -> nnx.Module, got "
                f"{module if linen_class else type(module).__name__}; make an instance of a linen "
                "class, wrap an nnx class: lambda rngs: Net(rngs=rngs)"
            )
        model, beyond = _from_nnx(module)
    jax.eval_shape(lambda key, x: model.apply(*model.init(key), x), jax.random.key(0), sample)
    if stateful:
        return model
    if beyond:
        raise ValueError(
            f"from_flax: the model has variables beyond its parameters, {', '.join(sorted(beyond))}"
            "; use stateful=True, here and in supervised and train_step"
        )
    return Model(
        lambda key: model.init(key)[0],
        lambda params, x, *, key=None: model.apply(params, {}, x, key=key)[0],
    )


def _from_linen(module: Any, sample: Any) -> tuple[Model, set[str]]:
    known = inspect.signature(type(module).__call__).parameters

    def mode(training: bool) -> dict[str, bool]:
        modes = dict.fromkeys(("deterministic", "use_running_average"), not training)
        modes |= dict.fromkeys(("train", "training", "is_training"), training)
        return {name: value for name, value in modes.items() if name in known}

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        model_state = dict(module.init(key, sample, **mode(training=False)))
        return model_state.pop("params", {}), model_state

    _, shapes = jax.eval_shape(init, jax.random.key(0))

    def apply(
        params: PyTree, model_state: PyTree, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        _check_structure("model_state", model_state, shapes)
        variables = {"params": params, **model_state}
        if key is None:
            return module.apply(variables, x, **mode(training=False)), model_state
        rngs, mutable = {"dropout": key}, list(model_state)
        return module.apply(variables, x, rngs=rngs, mutable=mutable, **mode(training=True))

    return Model(init, apply), set(shapes)


def _from_nnx(factory: Callable[[Any], Any]) -> tuple[Model, set[str]]:
    from flax import nnx

    example = factory(nnx.Rngs(0))
    if not isinstance(example, nnx.Module):
        raise TypeError(f"from_flax: expected the function to make an nnx.Module, got {example!r}")
    graph, shapes, randomness, beyond = nnx.split(example, nnx.Param, nnx.RngState, ...)

    def pure(module: Any) -> tuple[PyTree, PyTree]:
        _, params, _, model_state = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

    def variables(name: str, like: Any, values: PyTree) -> Any:
        _check_structure(name, values, nnx.to_pure_dict(like))
        return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(values))

    def apply(
        params: PyTree, model_state: PyTree, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        leaves, tree = jax.tree.flatten(randomness)
        base = jax.random.key(0) if key is None else key
        streams = [
            jax.random.fold_in(base, i) if leaf.dtype == base.dtype else jnp.zeros_like(leaf)
            for i, leaf in enumerate(leaves)
        ]
        module = nnx.merge(
            graph,
            variables("params", shapes, params),
            jax.tree.unflatten(tree, streams),
            variables("model_state", beyond, model_state),
        )
        module.eval() if key is None else module.train()
        y = module(x)
        return y, model_state if key is None else pure(module)[1]

    kinds = {type(variable).__name__ for _, variable in nnx.to_flat_state(beyond)}
    return Model(lambda key: pure(factory(nnx.Rngs(key))), apply), kinds


def _check_structure(name: str, given: PyTree, like: PyTree) -> None:
    if jax.tree.structure(given) != jax.tree.structure(like):
        hint = "; give step.init(params, model_state=model_state)" if given is None else ""
        raise ValueError(
            f"apply: expected {name} of structure {jax.tree.structure(like)}, "
            f"got {jax.tree.structure(given)}{hint}"
        )
