"""Which layers read a flattened image: said, or asked for."""

from collections.abc import Collection, Mapping

from fgd._checks import count, describe
from fgd.interop._leaves import Leaf, layer_of, listed

FLATTEN = "flatten jnp.moveaxis(x, -1, 1)"


def channels_of(
    caller: str,
    pairs: Mapping[str, Leaf],
    flattened: Mapping[str, int] | None,
    per_channel: Collection[str],
) -> dict[str, int]:
    """By key, the channels of the flattened image whose order a parameter follows."""
    if flattened is None:
        if question := _question(pairs, per_channel):
            raise ValueError(f"{caller}: {question}")
        return {}
    if not isinstance(flattened, Mapping):
        raise TypeError(
            f'{caller}: flattened must be a dict such as {{"fc": 16}}, got {describe(flattened)}'
        )
    result = {}
    for layer, channels in flattened.items():
        channels = count(caller, f"flattened[{layer!r}]", channels, least=1)
        own = {key: leaf for key, leaf in pairs.items() if layer_of(key) == str(layer)}
        if not own:
            known = listed({layer_of(key) for key in pairs})
            raise ValueError(f"{caller}: flattened has {layer!r}, but PyTorch's layers are {known}")
        is_norm = all(len(leaf.shape) == 1 for leaf in own.values())
        for key, leaf in own.items():
            if is_norm or (leaf.is_kernel and len(leaf.shape) == 2):
                result[key] = channels
                if _inputs(leaf) % channels:
                    raise ValueError(
                        f"{caller}: flattened says that {layer!r} reads an image of {channels} "
                        f"channels, but {key} has {_inputs(leaf)} inputs, no multiple of {channels}"
                    )
        if not own.keys() & result.keys():
            raise ValueError(
                f"{caller}: flattened has {layer!r}, which is no Linear and no norm: "
                + ", ".join(f"{leaf.name} is {list(leaf.shape)}" for leaf in own.values())
                + f"; leave it out, and {FLATTEN}"
            )
    return result


def _question(pairs: Mapping[str, Leaf], per_channel: Collection[str]) -> str | None:
    """What is to be said about flattened images, if there may be any."""
    weights = {layer_of(key): leaf for key, leaf in pairs.items() if leaf.kind == "weight"}
    kernels = {x: leaf for x, leaf in weights.items() if leaf.own in ("w", "kernel", "weight")}
    images = {x: leaf for x, leaf in kernels.items() if len(leaf.shape) > 2}
    dense = {x: leaf for x, leaf in kernels.items() if len(leaf.shape) == 2}
    if not images or not any(leaf.is_kernel for leaf in kernels.values()):
        return None  # where no kernel is turned, images are flattened as PyTorch's are
    kept = _kept(pairs, images)
    channels = {_outputs(leaf) for leaf in images.values()}
    known = channels | {_outputs(leaf) for leaf in dense.values()}
    if not dense:
        known |= {_inputs(leaf) for leaf in images.values()}
    inputs = {layer: _inputs(leaf) for layer, leaf in dense.items()}
    asked = images.keys() | dense.keys() | kept | set(per_channel)
    for key, leaf in pairs.items():  # Norms and such, of something else than a layer's results
        layer, number = layer_of(key), _inputs(leaf)
        may_be = number not in known or (
            not dense and any(number % n == 0 for n in channels - {1, number})
        )
        if len(leaf.shape) == 1 and layer not in asked and may_be:
            inputs[layer] = max(inputs.get(layer, 0), number)
    if not inputs and not kept:
        return None
    order = (
        "a layer after a convolution may read its image flattened, by channel, row, column; here "
        "that is row, column, channel. "
    )
    by_hand = f"{listed(kept)} keeps PyTorch's order: before it, {FLATTEN}" if kept else ""
    if not inputs:
        return f"{order}{by_hand}, and say flattened={{}}"
    readers = sorted(inputs, key=lambda layer: (-inputs[layer], layer))
    fits = ((x, n) for x in readers for n in sorted(channels, reverse=True) if inputs[x] % n == 0)
    layer, number = next(fits, (readers[0], "channels"))
    return (
        f"{order}Say which do, and the channels of their image, as in "
        f'flattened={{"{layer}": {number}}}, or flattened={{}} if none does. It may be '
        + ", ".join(f"{layer!r} ({inputs[layer]} inputs)" for layer in readers)
        + (f". {by_hand}" if kept else "")
    )


def _kept(pairs: Mapping[str, Leaf], images: Mapping[str, Leaf]) -> set[str]:
    """Layers that may read a flattened image, and stay in PyTorch's order.

    Packed weights, such as weight_ih_l0 of a GRU, and convolutions of an image that was flattened
    in part.
    """
    packed = {
        layer_of(key)
        for key, leaf in pairs.items()
        if len(leaf.shape) == 2 and "weight" in leaf.kind and leaf.kind != "weight"
    }
    axes = {layer: len(leaf.shape) for layer, leaf in images.items()}
    return packed | {layer for layer, number in axes.items() if number < max(axes.values())}


def _inputs(leaf: Leaf) -> int:
    return leaf.shape[-2] if leaf.is_kernel else leaf.shape[-1]


def _outputs(leaf: Leaf) -> int:
    return leaf.shape[-1] if leaf.is_kernel else leaf.shape[0]
