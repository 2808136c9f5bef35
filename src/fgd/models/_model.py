"""What a model is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fgd._checks import PyTree
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
