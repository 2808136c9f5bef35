"""Parameters of ours by layer, and what PyTorch calls and how it shapes each."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
from jax.tree_util import GetAttrKey

from fgd import _trees
from fgd._checks import PyTree, describe, spec
from fgd.models._model import Variables

_KINDS = {
    "w": "weight", "kernel": "weight", "embedding": "weight", "scale": "weight",
    "b": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip


class Leaf(NamedTuple):
    """A parameter of ours."""

    name: str
    layer: str
    own: str  # the last of its names: w, kernel, embedding, …
    shape: tuple[int, ...]
    value: Any

    @property
    def kind(self) -> str:
        """PyTorch's word for it: weight, bias, running_mean, running_var, or its own."""
        return _KINDS.get(self.own, self.own)

    @property
    def is_kernel(self) -> bool:
        """Whether it is laid out […, in, out]."""
        return self.own in ("w", "kernel") and len(self.shape) >= 2

    def theirs(self, transposed: bool = False) -> str:
        """What PyTorch's must be, in words; what it may be if it is a transposed convolution's."""
        shape = self.shape
        if self.is_kernel:
            *window, n_in, n_out = shape
            shape = (n_in, n_out, *window) if transposed else (n_out, n_in, *window)
        return spec(jax.ShapeDtypeStruct(shape, _trees.shape(self.value).dtype))


def layer_of(key: str) -> str:
    """The layer of one of PyTorch's keys; "" of what the model itself holds."""
    return key.rpartition(".")[0]


def own_of(key: str) -> str:
    """The last of a key's names."""
    return key.rpartition(".")[2]


def leaves_of(caller: str, tree: PyTree) -> list[Leaf]:
    """The parameters of a tree, in its order."""
    leaves = []
    paths = [path for path, _ in _trees.leaves(caller, "the tree", tree)]
    for path, (name, value) in zip(paths, _trees.named(caller, tree).items(), strict=True):
        if not name or not (hasattr(value, "shape") or isinstance(value, int | float | complex)):
            where = f" in {name}" if name else ""
            raise TypeError(
                f"{caller}: expected parameters by name, as model.init(0) gives, got "
                f"{describe(value)}{where}"
            )
        *_, last = path
        is_variable = isinstance(last, GetAttrKey) and last.name == "value"  # nnx's hold a value
        path = (name.removesuffix(".value") if is_variable else name).split(".")
        if isinstance(tree, Variables):
            path = path[2:] if path[:2] == ["model_state", "batch_stats"] else path[1:]
        elif isinstance(tree, Mapping) and "params" in tree:  # Flax's collections
            path = path[1:]
        *layer, last = path
        leaves.append(Leaf(name, ".".join(layer), last, _trees.shape(value).shape, value))
    if not leaves:
        raise TypeError(f"{caller}: expected parameters by name, got {describe(tree)}")
    return leaves


def listed(layers: Collection[str]) -> str:
    """Names of layers, for a message."""
    return ", ".join(map(repr, sorted(layers)))
