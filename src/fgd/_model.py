"""What a model is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fgd._checks import PyTree


class Model(NamedTuple):
    """A model.

    Attributes:
      init: `init(key) -> params`, a pytree of float arrays.
      apply: `apply(params, x, *, key=None) -> y`. A key means training mode (dropout draws from
        it); None means evaluation mode.

    A model with arrays of its own beside the parameters (BatchNorm's running statistics) has
    `init(key) -> (params, model_state)` and
    `apply(params, model_state, x, *, key=None) -> (y, model_state)`.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., Any]
