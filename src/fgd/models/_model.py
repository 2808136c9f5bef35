"""What a model is."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from fgd._checks import PyTree, describe
from fgd._keys import as_key

Key = int | jax.Array


class Model(NamedTuple):
    """A model.

    Attributes:
      init: `init(key) -> params`, a pytree of float arrays; of a key or a seed.
      apply: `apply(params, x, *, key=None) -> y`. A key means training mode (dropout draws from
        it); None means evaluation mode.

    A model with arrays of its own beside the parameters (BatchNorm's running statistics) has
    `init(key) -> Variables(params, model_state)` and
    `apply(params, model_state, x, *, key=None) -> (y, model_state)`.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Any]

    def __repr__(self) -> str:
        return "Model(init, apply)"


class Variables(NamedTuple):
    """What a model with arrays of its own starts from; `step.init` takes it as it is.

    Attributes:
      params: what is trained, a pytree of float arrays.
      model_state: what the model itself updates as it is trained, a pytree of arrays.
    """

    params: PyTree
    model_state: PyTree


def seeded(caller: str, init: Callable[[jax.Array], PyTree]) -> Callable[[Key], PyTree]:
    """`init`, of a key, as one of a key or a seed."""
    return lambda key: init(as_key(f"{caller}.init", key))


MODES = "deterministic", "use_running_average", "train", "training", "is_training"


def inputs_of(call: Callable[..., Any]) -> Callable[[Any], tuple[Any, ...]]:
    """From a batch's inputs, the arguments of a module's `__call__`, whose first is the module.

    A tuple is several arguments, if it takes as many; all else is one.
    """
    known = list(inspect.signature(call).parameters.values())[1:]
    any_number = any(x.kind is x.VAR_POSITIONAL for x in known)
    positional = [
        x
        for x in known
        if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD) and x.name not in (*MODES, "key")
    ]

    def arguments(x: Any) -> tuple[Any, ...]:
        several = type(x) is tuple and (any_number or len(positional) >= len(x))
        return x if several else (x,)

    return arguments


def require_layers(params: Any, shapes: Sequence[tuple[int, ...]]) -> None:
    """ValueError for params that are not [{"w", "b"}, …], each "w" of its shape.

    Some others would broadcast, and give a result.
    """
    expected = [{"b": (shape[-1],), "w": tuple(shape)} for shape in shapes]

    def given(x: Any) -> Any:
        return tuple(x.shape) if hasattr(x, "shape") else describe(x)

    found = jax.tree.map(given, params, is_leaf=lambda x: x is None)
    found = list(found) if isinstance(params, tuple) else found
    if found != expected:
        raise ValueError(
            f"apply: params of layers {_in_words(found)}, expected {_in_words(expected)}; "
            "model.init(0) makes them"
        )


def _in_words(shapes: Any) -> str:
    text = str(shapes)
    return text if len(text) <= 300 else f"{text[:300]}…"
