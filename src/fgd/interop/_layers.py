"""Which layer of PyTorch is which of ours: by name, by number, or refused."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax

from fgd import _trees
from fgd._checks import PyTree, describe, spec
from fgd.models._model import Variables

_KINDS = {
    "w": "weight", "kernel": "weight", "embedding": "weight", "scale": "weight",
    "b": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip

Layers = dict[str, dict[str, str]]  # {layer: {parameter: its dtype and shape}}


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


def leaves_of(caller: str, tree: PyTree) -> list[Leaf]:
    """The parameters of a tree, in its order."""
    leaves = []
    for name, value in _trees.named(caller, tree).items():
        if not name:
            raise TypeError(f"{caller}: expected parameters by name, got {describe(value)}")
        path = name.removesuffix(".value").split(".")  # nnx's variables hold a value
        if isinstance(tree, Variables):
            path = path[2:] if path[:2] == ["model_state", "batch_stats"] else path[1:]
        elif isinstance(tree, Mapping) and "params" in tree:  # Flax's collections
            path = path[1:]
        *layer, last = path
        leaves.append(Leaf(name, ".".join(layer), last, _trees.shape(value).shape, value))
    return leaves


def match(
    problem: str,
    given: Mapping[str, Any],
    leaves: list[Leaf],
    names: Mapping[str, Any] | None,
    transposed: Collection[str] = (),
) -> dict[str, Leaf]:
    """The leaf for each of PyTorch's keys; ValueError unless all fit.

    Args:
      problem: how an error begins.
      given: PyTorch's arrays by key.
      leaves: ours.
      names: {PyTorch's layer: ours}.
      transposed: the keys of transposed convolutions' weights, as far as they are known.
    """
    theirs: Layers = {}
    for key, value in given.items():
        theirs.setdefault(layer_of(key), {})[key.rpartition(".")[2]] = spec(value)
    ours: Layers = {}
    for leaf in leaves:
        ours.setdefault(leaf.layer, {})[leaf.kind] = leaf.theirs()
    ours_of = _paired(problem, theirs, ours, names)

    unused = {(leaf.layer, leaf.kind): leaf for leaf in leaves}
    pairs: dict[str, Leaf] = {}
    for key in given:
        place = ours_of.get(layer_of(key), "—"), key.rpartition(".")[2]
        if place in unused:
            pairs[key] = unused.pop(place)
    used = {leaf.name for leaf in pairs.values()}
    missing = [leaf for leaf in leaves if leaf.name not in used]
    left_over = [key for key in given if key not in pairs]
    wrong = [
        f"{key} is {spec(given[key])}, expected {leaf.theirs(key in transposed)}"
        for key, leaf in pairs.items()
        if spec(given[key]) not in (leaf.theirs(), leaf.theirs(key in transposed))
    ]
    if what := _trees.misfit([leaf.name for leaf in missing], left_over, wrong):
        lost = {x: kinds for x, kinds in theirs.items() if ours_of.get(x) not in ours}
        free = {y: kinds for y, kinds in ours.items() if y not in ours_of.values()}
        if lost and free:
            what += f"; name the layers that differ, as in {_template(lost, free)}"
        elif advice := _renamed(given, left_over, missing, ours_of):
            what += f"; names= is of layers, so rename the parameter itself, as in {advice}"
        raise ValueError(f"{problem}: {what}")
    return pairs


def _paired(
    problem: str, theirs: Layers, ours: Layers, names: Mapping[str, Any] | None
) -> dict[str, str]:
    """Our layer for each of PyTorch's. The order of a dict says nothing: files are sorted."""
    if names is not None:
        named = {str(x): str(y) for x, y in names.items()}
        for of, unknown, known in (
            ("PyTorch", named.keys() - theirs.keys(), theirs),
            ("fgd", set(named.values()) - ours.keys(), ours),
        ):
            if unknown:
                raise ValueError(
                    f"{problem}: names has {listed(unknown)}, no layer of {of}'s: "
                    f"those are {listed(known)}"
                )
        return {x: x for x in theirs} | named
    if len(theirs) == len(ours) == 1:
        return dict(zip(theirs, ours, strict=True))
    if not theirs or not all(part.isdecimal() for y in ours for part in y.split(".")):
        return {x: x for x in theirs}
    # A list, whose order is the model's, as is that of the numbers in one nn.Sequential.
    if len({layer_of(x) for x in theirs}) == 1 and all(_number(x).isdecimal() for x in theirs):
        in_order = sorted(ours, key=lambda y: [int(part) for part in y.split(".")])
        return dict(zip(sorted(theirs, key=lambda x: int(_number(x))), in_order, strict=False))
    raise ValueError(
        f"{problem}: layers of a list go by number, but PyTorch's {listed(theirs)} are not numbers "
        f"under one name; say which is which, as in {_template(theirs, ours)}. PyTorch has "
        f"{_described(theirs)}; fgd has, in PyTorch's shapes, {_described(ours)}"
    )


def _number(layer: str) -> str:
    return layer.rpartition(".")[2]


def listed(layers: Collection[str]) -> str:
    """Names of layers, for a message."""
    return ", ".join(map(repr, sorted(layers)))


def _described(layers: Layers) -> str:
    """`'0' (weight float32[4, 3], bias float32[4]), …`."""
    return ", ".join(
        f"{layer!r} ({', '.join(map(' '.join, kinds.items()))})" for layer, kinds in layers.items()
    )


def _template(theirs: Layers, ours: Layers) -> str:
    """`names={…}` to be filled in; filled in where only one layer has these parameters."""
    fits = {x: [y for y in ours if ours[y] == kinds] for x, kinds in theirs.items()}
    values = [
        repr(found[0]) if len(found) == 1 and list(fits.values()).count(found) == 1 else "…"
        for found in fits.values()
    ]
    pairs = ", ".join(f"{x!r}: {y}" for x, y in zip(theirs, values, strict=True))
    return f"names={{{pairs}}}" + " ('' is what stands outside any layer)" * ("" in theirs)


def _renamed(
    given: Mapping[str, Any], left_over: list[str], missing: list[Leaf], ours_of: dict[str, str]
) -> str:
    """How to rename a parameter whose layer has another one, not given, of its shape."""
    for key in left_over:
        layer = layer_of(key)
        for leaf in missing:
            if ours_of.get(layer) == leaf.layer and spec(given[key]) == leaf.theirs():
                new = ".".join(filter(None, [layer, leaf.kind]))
                return f"state_dict[{new!r}] = state_dict.pop({key!r})"
    return ""
