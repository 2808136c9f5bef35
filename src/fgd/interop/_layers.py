"""Which layer of PyTorch is which of ours: by name, by number, or refused."""

from collections.abc import Collection, Mapping
from typing import Any

from fgd import _trees
from fgd._checks import describe, spec
from fgd.interop._advice import computed, misshapen, renamed, unused
from fgd.interop._leaves import Leaf, layer_of, listed, own_of

Layers = dict[str, dict[str, str]]  # {layer: {parameter: its dtype and shape}}


def match(
    problem: str,
    given: Mapping[str, Any],
    leaves: list[Leaf],
    names: Mapping[str, Any] | None,
    transposed: Collection[str] | None = None,
) -> dict[str, Leaf]:
    """The leaf for each of PyTorch's keys; ValueError unless all fit.

    One leaf may be several keys', if `names` says so: those of one layer with two names.

    Args:
      problem: how an error begins.
      given: PyTorch's arrays by key.
      leaves: ours.
      names: {PyTorch's layer: ours}.
      transposed: the keys of transposed convolutions' weights; None if that is not known.
    """
    theirs: Layers = {}
    for key, value in given.items():
        theirs.setdefault(layer_of(key), {})[own_of(key)] = spec(value)
    ours: Layers = {}
    for leaf in leaves:
        ours.setdefault(leaf.layer, {})[leaf.kind] = leaf.theirs()
    ours_of = _paired(problem, theirs, ours, names)

    places: dict[tuple[str, str], Leaf] = {}
    for layer, kinds in theirs.items():
        for leaf in leaves:
            if leaf.layer == ours_of.get(layer):  # its own name, if PyTorch's layer has that
                kept = leaf.own in kinds and not leaf.is_kernel
                places[layer, leaf.own if kept else leaf.kind] = leaf
    pairs = {key: leaf for key in given if (leaf := places.get((layer_of(key), own_of(key))))}
    used = {leaf.name for leaf in pairs.values()}
    missing = [leaf for leaf in leaves if leaf.name not in used]
    left_over = [key for key in given if key not in pairs]
    wrong = {
        key: f"{key} is {spec(given[key])}, expected {leaf.theirs(key in (transposed or ()))}"
        for key, leaf in pairs.items()
        if spec(given[key]) not in (leaf.theirs(), leaf.theirs(key in (transposed or ())))
    }
    if what := _trees.misfit([leaf.name for leaf in missing], left_over, wrong.values()):
        lost = {x: kinds for x, kinds in theirs.items() if ours_of.get(x) not in ours}
        free = {y: kinds for y, kinds in ours.items() if y not in ours_of.values()}
        if advice := computed(left_over):
            pass
        elif lost and free:
            advice = _named(lost, free)
        elif missing or left_over:
            advice = renamed(given, left_over, missing, ours_of)
            advice = advice or unused(given, left_over, missing, pairs)
        else:
            advice = misshapen(given, {key: pairs[key] for key in wrong}, transposed)
        raise ValueError("; ".join(filter(None, [f"{problem}: {what}", advice])))
    return pairs


def _paired(
    problem: str, theirs: Layers, ours: Layers, names: Mapping[str, Any] | None
) -> dict[str, str]:
    """Our layer for each of PyTorch's. The order of a dict says nothing: files are sorted."""
    if names is not None:
        if not isinstance(names, Mapping):
            raise TypeError(
                f'{problem.partition(":")[0]}: names must be a dict such as {{"fc1": "Dense_0"}}, '
                f"got {describe(names)}"
            )
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
    if len({layer_of(x) for x in theirs}) == 1 and all(own_of(x).isdecimal() for x in theirs):
        in_order = sorted(ours, key=lambda y: [int(part) for part in y.split(".")])
        return dict(zip(sorted(theirs, key=lambda x: int(own_of(x))), in_order, strict=False))
    raise ValueError(
        f"{problem}: layers of a list go by number, but PyTorch's {listed(theirs)} are not numbers "
        f"under one name; say which is which, as in {_template(theirs, ours)}. PyTorch has "
        f"{_described(theirs)}; fgd has, in PyTorch's shapes, {_described(ours)}"
    )


def _described(layers: Layers) -> str:
    """`'0' (weight float32[4, 3], bias float32[4]), …`."""
    return ", ".join(
        f"{layer!r} ({', '.join(map(' '.join, kinds.items()))})" for layer, kinds in layers.items()
    )


def _named(theirs: Layers, ours: Layers) -> str:
    """How to name layers of the two that have parameters in common."""
    lost = {x: a for x, a in theirs.items() if any(a.keys() & b.keys() for b in ours.values())}
    free = {y: b for y, b in ours.items() if any(a.keys() & b.keys() for a in theirs.values())}
    if lost:
        return f"name the layers that differ, as in {_template(lost, free)}"
    layer, kinds = next(iter(ours.items()))
    kind, shape = next(iter(kinds.items()))
    given = ", ".join(next(iter(theirs.values())))
    return (
        f"no layer here has parameters such as {given}: split them by hand, into a state dict of "
        f"ours, {{'{layer}.{kind}': an array {shape}, …}}"
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
