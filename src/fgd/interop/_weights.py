"""How PyTorch lays out a weight: its layer's type says it, or its name and shape, or nothing."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fgd._checks import count, describe, spec
from fgd.interop._layers import Leaf, layer_of, listed

_TRANSPOSED = {"ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"}
_TABLES = {"Embedding", "EmbeddingBag"}
_KERNELS = {"Linear", "Conv1d", "Conv2d", "Conv3d"}
_KNOWN = _KERNELS | _TRANSPOSED | _TABLES

# Whose weight may become a parameter of ours of this name. Equinox's "weight" is as PyTorch's.
_TYPES_FOR = {
    "w": _KERNELS | _TRANSPOSED,
    "kernel": _KERNELS | _TRANSPOSED,
    "embedding": _TABLES,
    "weight": _KERNELS | _TABLES,
}

# Names of layers that may be no Conv and no Linear. The second are Conv1D, [in, out], in Hugging
# Face's GPT-2, and Linear, [out, in], in others.
_TRANSPOSED_NAME = re.compile(r"transpose|deconv|convt|tconv|upconv", re.IGNORECASE)
_CONV1D_NAME = re.compile(r"(^|\.)(c_attn|c_fc|c_proj|q_attn)$")


class Source(NamedTuple):
    """A PyTorch model: arrays by key, and its layers' types; None if only arrays are given."""

    arrays: dict[str, Any]
    counters: dict[str, Any]  # how many batches each BatchNorm saw: no parameters
    types: dict[str, str] | None = None

    @property
    def transposed(self) -> set[str]:
        """The keys of what is known to be transposed convolutions'."""
        return {key for key in self.arrays if (self.types or {}).get(layer_of(key)) in _TRANSPOSED}


class Turn(NamedTuple):
    """How an array of PyTorch's becomes ours."""

    is_kernel: bool  # [out, in, …] becomes […, in, out]
    is_flipped: bool  # a transposed convolution's [in, out, …] does, and its window is mirrored
    channels: int  # rows in the order [channels, positions] become [positions, channels]


def read(caller: str, name: str, given: Any) -> Source:
    """What is known of a PyTorch model by the model itself, or by its state dict."""
    types = None
    if hasattr(given, "named_modules") and hasattr(given, "state_dict"):
        types = {x: _type(layer) for x, layer in given.named_modules(remove_duplicate=False)}
        given = given.state_dict()
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{caller}: {name} must be a PyTorch model or its state_dict(), got {describe(given)}"
        )
    for key, value in given.items():
        if not isinstance(key, str) or not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise TypeError(
                f"{caller}: {name}[{key!r}] is {describe(value)}, expected arrays by name, as "
                "model.state_dict() has them"
            )
    counters = {key: x for key, x in given.items() if key.endswith("num_batches_tracked")}
    return Source({key: x for key, x in given.items() if key not in counters}, counters, types)


def turns(
    caller: str, source: Source, pairs: Mapping[str, Leaf], flattened: Mapping[str, int] | None
) -> dict[str, Turn]:
    """How each array becomes ours; ValueError where that can't be known."""
    with_bias = {leaf.layer for leaf in pairs.values() if leaf.kind == "bias"}
    for key, leaf in pairs.items():
        if source.types is None:
            doubt = _doubt(key, leaf, leaf.layer in with_bias)
        else:
            doubt = _contradiction(key, leaf, source.types.get(layer_of(key), "unknown layer"))
        if doubt:
            raise ValueError(f"{caller}: {doubt}")
        if leaf.own == "scale" and len(leaf.shape) > 1 and len(set(leaf.shape)) == 1:
            raise ValueError(
                f"{caller}: {key} is {leaf.theirs()}, a norm's over several axes, and nothing says "
                "whether one is of channels, the first in PyTorch and the last here; leave the "
                "layer out, and convert it by hand"
            )
    channels = _channels(caller, pairs, flattened)
    flipped = {
        key
        for key in source.transposed & pairs.keys()
        if spec(source.arrays[key]) == pairs[key].theirs(transposed=True) != pairs[key].theirs()
    }
    return {
        key: Turn(leaf.is_kernel, key in flipped, channels.get(key, 1))
        for key, leaf in pairs.items()
    }


def _type(layer: Any) -> str:
    """The type of PyTorch's own that a layer is, or its own."""
    for kind in type(layer).__mro__:
        if kind.__module__.startswith("torch.nn.modules.") and kind.__name__ in _KNOWN:
            is_grouped = kind.__name__ in _TRANSPOSED and layer.groups > 1
            return f"grouped {kind.__name__}" if is_grouped else kind.__name__
    return type(layer).__name__


def _contradiction(key: str, leaf: Leaf, kind: str) -> str | None:
    """Why a weight of a layer of this type can't be this parameter of ours."""
    if leaf.kind != "weight" or leaf.own not in _TYPES_FOR or len(leaf.shape) < 2:
        return None
    if kind in _TRANSPOSED and leaf.is_kernel and leaf.shape[-1] == leaf.shape[-2]:
        return (
            f"{key} is a {kind}'s with as many channels out as in, so nothing says whether "
            f"{leaf.name} is of Flax's transpose_kernel=True; leave it out, and convert it by hand"
        )
    if kind in _TYPES_FOR[leaf.own]:
        return None
    if kind in _TABLES:
        return f"{key} is an {kind}'s, which stays as it is: call {leaf.name} embedding"
    return (
        f"{key} is of a layer {kind}, which is not known to fit {leaf.name}; if it is laid out "
        "as a Linear's, [out, in], or a Conv's, give model.state_dict() in place of the model"
    )


def _doubt(key: str, leaf: Leaf, has_bias: bool) -> str | None:
    """Why a weight may be no Conv's and no Linear's, though its shape is as theirs."""
    if not leaf.is_kernel or leaf.shape[-1] != leaf.shape[-2]:
        return None
    advice = "give the PyTorch model itself, not its state_dict()"
    if len(leaf.shape) > 2 and _TRANSPOSED_NAME.search(f"{key} {leaf.name}"):
        other = "a Conv's or a ConvTranspose's"
    elif len(leaf.shape) == 2 and leaf.own == "w" and not has_bias:
        other = "a Linear's, [out, in], or an Embedding's"
        advice += f", or call {leaf.name} what it is, kernel or embedding"
    elif len(leaf.shape) == 2 and _CONV1D_NAME.search(layer_of(key)):
        other = "a Linear's, [out, in], or a GPT-2 Conv1D's, [in, out]"
    else:
        return None
    return f"{key} is {leaf.theirs()}, and nothing says whether that is {other}; {advice}"


def _channels(
    caller: str, pairs: Mapping[str, Leaf], flattened: Mapping[str, int] | None
) -> dict[str, int]:
    """By key, the channels of the flattened image whose order a parameter follows."""
    if flattened is None:
        if question := _question(pairs):
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
            )
    return result


def _question(pairs: Mapping[str, Leaf]) -> str | None:
    """What is to be said about flattened images, if there may be any."""
    weights = {layer_of(key): leaf for key, leaf in pairs.items() if leaf.kind == "weight"}
    kernels = {x: leaf for x, leaf in weights.items() if leaf.own in ("w", "kernel", "weight")}
    images = {x: leaf for x, leaf in kernels.items() if len(leaf.shape) > 2}
    dense = {x: leaf for x, leaf in kernels.items() if len(leaf.shape) == 2}
    if not images or not dense or not any(leaf.is_kernel for leaf in kernels.values()):
        return None  # where no kernel is turned, images are flattened as PyTorch's are
    channels = {_outputs(leaf) for leaf in images.values()}
    results = channels | {_outputs(leaf) for leaf in dense.values()}
    norms = {  # of something else than a layer's results: a flattened image, or the inputs
        x: leaf
        for x, leaf in weights.items()
        if len(leaf.shape) == 1 and _inputs(leaf) not in results
    }
    inputs = {layer: _inputs(leaf) for layer, leaf in (dense | norms).items()}
    readers = sorted(inputs, key=lambda layer: (-inputs[layer], layer))
    layer, number = next(
        ((x, n) for x in readers for n in sorted(channels, reverse=True) if inputs[x] % n == 0),
        (readers[0], "channels"),
    )
    return (
        "a layer after a convolution may read its image flattened, by channel, row, column; here "
        f"that is row, column, channel. Say which do, and the channels of their image, as in "
        f'flattened={{"{layer}": {number}}}, or flattened={{}} if none does. It may be '
        + ", ".join(f"{layer!r} ({inputs[layer]} inputs)" for layer in readers)
    )


def _inputs(leaf: Leaf) -> int:
    return leaf.shape[-2] if leaf.is_kernel else leaf.shape[-1]


def _outputs(leaf: Leaf) -> int:
    return leaf.shape[-1] if leaf.is_kernel else leaf.shape[0]
