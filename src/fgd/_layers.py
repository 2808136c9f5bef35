"""Which parameter of PyTorch is which of ours."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from fgd import _names
from fgd._checks import PyTree

_KINDS = {
    "w": "weight", "kernel": "weight", "embedding": "weight", "scale": "weight",
    "b": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip


class Leaf(NamedTuple):
    """A parameter of ours."""

    name: str
    layer: str
    kind: str  # PyTorch's word: weight, bias, running_mean, running_var
    is_kernel: bool  # laid out […, in, out]
    is_listed: bool  # in lists only, whose order is the model's; a dict's may be the alphabet's
    shape: tuple[int, ...]
    value: Any

    @property
    def theirs(self) -> str:
        """What PyTorch's must be, in words."""
        shape = self.shape
        if self.is_kernel:
            *window, n_in, n_out = shape
            shape = (n_out, n_in, *window)
        return _names.spec(jax.ShapeDtypeStruct(shape, _names.shape(self.value).dtype))


def leaves_of(caller: str, tree: PyTree) -> list[Leaf]:
    """The parameters of a tree, in its order."""
    leaves = []
    for name, value in _names.named(caller, tree).items():
        path = name.removesuffix(".value").split(".")  # nnx's variables hold a value
        if isinstance(tree, Mapping) and "params" in tree:  # Flax's collections
            path = path[1:]
        *layer, last = path
        shape = _names.shape(value).shape
        leaf = Leaf(
            name,
            ".".join(layer),
            _KINDS.get(last, last),
            last in ("w", "kernel") and len(shape) >= 2,
            all(part.isdigit() for part in layer),
            shape,
            value,
        )
        leaves.append(leaf)
    return leaves


def match(
    problem: str, given: Mapping[str, Any], leaves: list[Leaf], names: Mapping[str, Any] | None
) -> dict[str, Leaf]:
    """The leaf for each of PyTorch's keys, layer after layer; ValueError unless all fit."""
    theirs = list(dict.fromkeys(_layer(key) for key in given))
    if all(layer.isdigit() for layer in theirs):
        theirs.sort(key=int)
    ours = list(dict.fromkeys(leaf.layer for leaf in leaves))
    if names is None and (all(x.is_listed for x in leaves) or len(theirs) == len(ours) == 1):
        ours_of = dict(zip(theirs, ours, strict=False))
    else:
        ours_of = {x: x for x in theirs} | {x: str(y) for x, y in (names or {}).items()}
    unused = {(leaf.layer, leaf.kind): leaf for leaf in leaves}
    pairs: dict[str, Leaf] = {}
    for key in sorted(given, key=lambda key: theirs.index(_layer(key))):
        place = ours_of.get(_layer(key), "—"), key.rpartition(".")[2]
        if place in unused:
            pairs[key] = unused.pop(place)
    used = {leaf.name for leaf in pairs.values()}
    missing = [leaf for leaf in leaves if leaf.name not in used]
    left_over = [key for key in given if key not in pairs]
    found = {key: _names.spec(given[key]) for key in pairs}
    wrong = [
        f"{key} is {found[key]}, expected {leaf.theirs}"
        for key, leaf in pairs.items()
        if found[key] != leaf.theirs
    ]
    if what := _names.misfit([leaf.name for leaf in missing], left_over, wrong):
        if missing and left_over:
            example = {_layer(left_over[0]): missing[0].layer}
            what += f"; name the layers that differ, as in names={example}"
        raise ValueError(f"{problem}: {what}")
    return pairs


def channels_before(caller: str, pairs: Mapping[str, Leaf], channels_first: bool) -> dict[str, int]:
    """The channels that come first in the rows of each leaf: 1 unless it follows a convolution."""
    channels, before = 1, dict.fromkeys(pairs, 1)
    for key, leaf in pairs.items():
        if not leaf.is_kernel or not channels_first:
            continue
        *window, rows, columns = leaf.shape
        if not window and rows % channels:
            raise ValueError(
                f"{caller}: {leaf.name} has {rows} rows, which is no flattened image of the "
                f"{channels} channels before it; channels_first=False takes them as they are"
            )
        before[key] = 1 if window else channels
        channels = columns if window else 1
    return before


def _layer(key: str) -> str:
    return key.rpartition(".")[0]
