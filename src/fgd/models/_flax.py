"""Models written in Flax, as pairs of functions."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgd._checks import PyTree, describe, replaced, require_array
from fgd._trees import leaves
from fgd.models._model import MODES, Model, Variables, inputs_of, seeded

_Apply = Callable[..., tuple[Any, PyTree]]  # (params, model_state, x, *, key) -> (y, model_state)


@replaced("from_flax", stateful="whether a model has arrays of its own is seen; leave it out")
def from_flax(module: Any, sample: Any) -> Model:
    """A Flax model as a pair of functions.

    In training mode (a key is given) dropout is on and draws from the key, and BatchNorm uses the
    batch's statistics; in evaluation mode dropout is off and BatchNorm uses its running ones. A
    linen module hears of the mode through an argument of its `__call__` named `deterministic`,
    `use_running_average`, `train`, `training` or `is_training`, an nnx module through `train()`
    and `eval()`.

    A model with arrays beside its parameters, such as BatchNorm's running statistics, is seen to
    have them. Then `init(key) -> Variables(params, model_state)`, which `step.init` takes, and
    `apply(params, model_state, x, *, key=None) -> (y, model_state)`. Training mode updates them;
    evaluation mode returns them as they were.

    Args:
      module: a `flax.linen.Module`, or a function `rngs -> flax.nnx.Module`: a function, so that
        every key gives its own initial parameters.
      sample: an input, to learn shapes from: [rows, …]. A tuple of them for a module of several
        inputs, whose batches have a tuple, too.

    Returns:
      A model whose params are plain nested dicts of arrays, named as Flax names them.

    Raises:
      TypeError: neither of the two; an nnx module instead of a function that makes one.
      ValueError: at apply, a tree of another structure.

    Example:
      >>> import fgd, flax.linen as nn, jax, jax.numpy as jnp
      >>> model = fgd.models.from_flax(nn.Dense(2), jnp.ones([1, 3]))
      >>> model.apply(model.init(0), jnp.ones([5, 3])).shape
      (5, 2)
      >>> model = fgd.models.from_flax(nn.BatchNorm(momentum=0.9), jnp.ones([1, 3]))
      >>> params, model_state = model.init(0)
      >>> x, key = jnp.full([5, 3], 7.0), jax.random.key(1)
      >>> _, model_state = model.apply(params, model_state, x, key=key)
      >>> model_state["batch_stats"]["mean"]
      Array([0.7, 0.7, 0.7], dtype=float32)
    """
    from flax import linen, nnx

    for path, leaf in leaves("from_flax", "sample", sample) or [((), sample)]:
        require_array("from_flax", f"sample{jax.tree_util.keystr(path)}", leaf, scalars=False)
    if isinstance(module, linen.Module):
        init, apply = _from_linen(module, sample)
    else:
        linen_class = isinstance(module, type) and issubclass(module, linen.Module)
        if isinstance(module, nnx.Module) or linen_class or not callable(module):
            raise TypeError(
                "from_flax: expected a linen module or a function rngs -> nnx.Module, got "
                f"{module if linen_class else type(module).__name__}; make an instance of a linen "
                "class, wrap an nnx class: lambda rngs: Net(rngs=rngs)"
            )
        init, apply = _from_nnx(module)
    start = jax.eval_shape(init, jax.random.key(0))
    jax.eval_shape(apply, *start, sample)
    if jax.tree.leaves(start.model_state):
        return Model(seeded("from_flax", init), apply)

    def apply_params(params: PyTree, x: Any, *, key: jax.Array | None = None) -> Any:
        return apply(params, start.model_state, x, key=key)[0]

    return Model(seeded("from_flax", lambda key: init(key).params), apply_params)


def _from_linen(module: Any, sample: Any) -> tuple[Callable[[jax.Array], Variables], _Apply]:
    known = inspect.signature(type(module).__call__).parameters
    inputs = inputs_of(type(module).__call__)

    def mode(training: bool) -> dict[str, bool]:
        off = "deterministic", "use_running_average"
        return {name: training != (name in off) for name in MODES if name in known}

    def init(key: jax.Array) -> Variables:
        model_state = dict(module.init(key, *inputs(sample), **mode(training=False)))
        return Variables(model_state.pop("params", {}), model_state)

    _, shapes = jax.eval_shape(init, jax.random.key(0))

    def apply(
        params: PyTree, model_state: PyTree, x: Any, *, key: jax.Array | None = None
    ) -> tuple[Any, PyTree]:
        _check_structure("model_state", model_state, shapes)
        variables = {"params": params, **model_state}
        if key is None:
            return module.apply(variables, *inputs(x), **mode(training=False)), model_state
        rngs, mutable = {"dropout": key}, list(model_state)
        training = mode(training=True)
        return module.apply(variables, *inputs(x), rngs=rngs, mutable=mutable, **training)

    return init, apply


def _from_nnx(
    factory: Callable[[Any], Any],
) -> tuple[Callable[[jax.Array], Variables], _Apply]:
    from flax import nnx

    example = factory(nnx.Rngs(0))
    if not isinstance(example, nnx.Module):
        raise TypeError(
            f"from_flax: expected the function to make an nnx.Module, got {describe(example)}"
        )
    inputs = inputs_of(type(example).__call__)
    graph, shapes, randomness, beyond = nnx.split(example, nnx.Param, nnx.RngState, ...)

    def pure(module: Any) -> Variables:
        _, params, _, model_state = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(model_state))

    def variables(name: str, like: Any, values: PyTree) -> Any:
        _check_structure(name, values, nnx.to_pure_dict(like))
        return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(values))

    def apply(
        params: PyTree, model_state: PyTree, x: Any, *, key: jax.Array | None = None
    ) -> tuple[Any, PyTree]:
        leaves, tree = jax.tree.flatten(randomness)
        base = jax.random.key(0) if key is None else key
        draws = [
            jax.random.fold_in(base, i) if leaf.dtype == base.dtype else jnp.zeros_like(leaf)
            for i, leaf in enumerate(leaves)
        ]
        module = nnx.merge(
            graph,
            variables("params", shapes, params),
            jax.tree.unflatten(tree, draws),
            variables("model_state", beyond, model_state),
        )
        module.eval() if key is None else module.train()
        y = module(*inputs(x))
        return y, model_state if key is None else pure(module).model_state

    return lambda key: pure(factory(nnx.Rngs(key))), apply


def _check_structure(name: str, given: PyTree, like: PyTree) -> None:
    if jax.tree.structure(given) != jax.tree.structure(like):
        hint = "; step.init(model.init(0)) gives the state both" if given is None else ""
        raise ValueError(
            f"apply: expected {name} of structure {jax.tree.structure(like)}, "
            f"got {jax.tree.structure(given)}{hint}"
        )
