"""What to write where PyTorch's parameters and ours do not fit."""

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

from fgd import _trees
from fgd._checks import spec
from fgd.interop._leaves import Leaf, layer_of, own_of


def computed(left_over: list[str]) -> str:
    """What to do with a layer whose weight is made of others."""
    for key in left_over:
        layer, _, found = f".{key}".partition(".parametrizations.")
        if found or own_of(key) in ("weight_orig", "weight_g", "weight_v"):
            layer = layer[1:] if found else layer_of(key)
            return (
                f"{repr(layer) if layer else 'the model'} computes its weight; make that a "
                "parameter first, as by torch.nn.utils.parametrize.remove_parametrizations, "
                "remove_spectral_norm or remove_weight_norm"
            )
    return ""


def renamed(
    given: Mapping[str, Any], left_over: list[str], missing: list[Leaf], ours_of: Mapping[str, str]
) -> str:
    """How to rename a parameter whose layer has another one, not given, of its size."""
    for key in left_over:
        for leaf in missing:
            layer, value = layer_of(key), given[key]
            others = [x for x in left_over if layer_of(x) == layer]
            if len(others) != sum(x.layer == leaf.layer for x in missing):
                continue  # which of them is it?
            if ours_of.get(layer) != leaf.layer or sorted(value.shape) != sorted(leaf.shape):
                continue
            new = ".".join(filter(None, [layer, leaf.kind]))
            rename = f"state_dict[{new!r}] = state_dict.pop({key!r})"
            if leaf.is_kernel:
                turn = ", or that .T if [in, out]" * (len(leaf.shape) == 2)
                return f"rename it, as in {rename} if it is laid out [out, in, …]{turn}"
            if own_of(key) == "weight" and len(leaf.shape) > 1:
                return (
                    "only what is called w or kernel is turned round; call it so if "
                    f"{leaf.name} is laid out […, in, out]"
                )
            if spec(value) == leaf.theirs():
                return f"names= is of layers, so rename the parameter itself, as in {rename}"
    return ""


def unused(
    given: Mapping[str, Any], left_over: list[str], missing: list[Leaf], pairs: Mapping[str, Leaf]
) -> str:
    """What to do with a parameter that is another one's equal, or has no place."""
    for key in left_over:
        for other, leaf in pairs.items():
            if _equal(given[key], given[other]):
                name = f"{layer_of(key)!r}: {leaf.layer!r}"
                return f"{key} equals {other}: if the two are one, say names={{{name}}}"
    targets = {leaf.layer: layer_of(key) for key, leaf in pairs.items()}
    for key, leaf in pairs.items():
        if layer_of(key) != targets[leaf.layer]:
            return f"names makes {leaf.layer!r} of {layer_of(key)!r} and {targets[leaf.layer]!r}"
    if left_over and not missing:
        return f"if the model here does without, del state_dict[{left_over[0]!r}], and so on"
    return ""


def misshapen(
    given: Mapping[str, Any], wrong: Mapping[str, Leaf], transposed: Collection[str] | None
) -> str:
    """What explains a parameter of another shape or dtype."""
    for key, leaf in wrong.items():
        shape, dtype = tuple(given[key].shape), _trees.shape(leaf.value).dtype
        if f"{dtype}{list(shape)}" == leaf.theirs():
            return f"convert the one or the other, as by model.to(torch.{dtype})"
        if len(shape) == 2 and shape == leaf.shape:
            return (
                f"{key} would fit as it is: call {leaf.name} embedding if it is a table, scale if "
                "it is a norm's, or transpose a weight [in, out] first, as in "
                f"state_dict[{key!r}] = state_dict[{key!r}].T"
            )
        if transposed is None and spec(given[key]) == leaf.theirs(transposed=True):
            return f"give the PyTorch model itself if {layer_of(key)!r} is a transposed convolution"
    return ""


def _equal(one: Any, other: Any) -> bool:
    """Whether two arrays of PyTorch's or NumPy's are one, to all appearances."""
    if spec(one) != spec(other) or prod(one.shape) < 2 or getattr(one, "is_meta", False):
        return False
    return _trees.host(one).tobytes() == _trees.host(other).tobytes()
