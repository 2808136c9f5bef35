"""`summary`: what a model is made of, as a table."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from fgd._checks import PyTree, describe
from fgd._run.state import TrainState
from fgd._trees import named, nbytes
from fgd.models._model import Model, Variables


@dataclass(frozen=True)
class Summary:
    """The arrays of a model; printed, a table. Made by `fgd.summary`.

    Attributes:
      arrays: {name: array or shape}, in the order of the tree.
      model_state: the names of those that are not trained, but the model's own.
    """

    arrays: dict[str, Any]
    model_state: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """How many numbers are trained."""
        return sum(_size(x) for n, x in self.arrays.items() if n not in self.model_state)

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        return nbytes(self.arrays)

    def __repr__(self) -> str:
        rows = [("name", "shape", "dtype", "size")]
        for name, x in self.arrays.items():
            rows.append((name, str(list(x.shape)), str(x.dtype), f"{_size(x):,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i == 3 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        own = sum(_size(self.arrays[name]) for name in self.model_state)
        total = f"{self.size:,} parameters" + (f", {own:,} of the model's own" if own else "")
        return "\n".join([*lines, f"{total}, {_in_words(self.nbytes)}"])


def summary(model: Model | PyTree) -> Summary:
    """A table of the arrays of a model: names, shapes, dtypes, sizes.

    Args:
      model: a `Model`, of which nothing is computed; or parameters, `Variables`, or the state of a
        run, of which the optimizer's part is left out.

    Raises:
      TypeError: neither, or a leaf that is no array.
      ValueError: two arrays of one name, by a key with a dot.

    Example:
      >>> import fgd
      >>> fgd.summary(fgd.models.mlp([784, 200, 10]))
      name  shape       dtype       size
      0.b   [200]       float32      200
      0.w   [784, 200]  float32  156,800
      1.b   [10]        float32       10
      1.w   [200, 10]   float32    2,000
      159,010 parameters, 636.0 kB
    """
    tree: Any = model
    if isinstance(model, Model):
        tree = jax.eval_shape(lambda: model.init(0))
    own: PyTree = None
    if isinstance(tree, TrainState | Variables):
        tree, own = tree.params, tree.model_state
    trained, others = _named(tree, ""), _named(own, "model_state.")
    return Summary(trained | others, frozenset(others))


def _named(tree: PyTree, prefix: str) -> dict[str, Any]:
    found = {}
    for name, leaf in named("summary", tree).items():
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"summary: {name or 'params'} is {describe(leaf)}, expected a Model, or a pytree "
                "of arrays"
            )
        found[f"{prefix}{name}" or "params"] = leaf
    return found


def _size(x: Any) -> int:
    return math.prod(x.shape)


def _in_words(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"
