"""What a model is."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fgd._checks import PyTree


class Model(NamedTuple):
    """A model.

    Attributes:
      init: `init(key) -> params`, a pytree of float arrays.
      apply: `apply(params, x, *, key=None) -> y`. A key means training mode (dropout draws from
        it); None means evaluation mode.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., jax.Array]
