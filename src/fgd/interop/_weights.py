"""How PyTorch lays out a weight: its layer's type says it, or its name and shape, or nothing."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fgd._checks import describe, spec
from fgd.interop._images import channels_of
from fgd.interop._leaves import Leaf, layer_of, own_of

_TRANSPOSED = {"ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"}
_TABLES = {"Embedding", "EmbeddingBag"}
_KERNELS = {"Linear", "Conv1d", "Conv2d", "Conv3d"}
_PER_CHANNEL = {"BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm2d", "InstanceNorm3d"}
_KNOWN = _KERNELS | _TRANSPOSED | _TABLES

# Whose weight may become a parameter of ours of this name. Equinox's "weight" is as PyTorch's.
_TYPES_FOR = {
    "w": _KERNELS | _TRANSPOSED,
    "kernel": _KERNELS | _TRANSPOSED,
    "embedding": _TABLES,
    "weight": _KERNELS | _TABLES,
}

# A convolution's name, and names that a transposed one has. Then those of layers that are Conv1D,
# [in, out], in Hugging Face's GPT-2, and Linear, [out, in], in others.
_CONV_NAME = re.compile(r"conv", re.IGNORECASE)
_TRANSPOSED_NAME = re.compile(
    r"trans|upconv|conv_?t(r|[._\d]|$)|(^|[._])(de_?conv|t_?conv|up|dec|gen)", re.IGNORECASE
)
_CONV1D_NAME = re.compile(r"(^|\.)(c_attn|c_fc|c_proj|q_attn)$")


class Source(NamedTuple):
    """A PyTorch model: arrays by key, and its layers' types; None if only arrays are given."""

    arrays: dict[str, Any]
    counters: dict[str, Any]  # how many batches each BatchNorm saw: no parameters
    types: dict[str, str] | None = None

    @property
    def transposed(self) -> set[str] | None:
        """The keys of transposed convolutions' weights; None if that is not known."""
        if self.types is None:
            return None
        return {key for key in self.arrays if self.types.get(layer_of(key)) in _TRANSPOSED}


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
    given = dict(given)
    for key, value in given.items():
        if not isinstance(key, str) or not hasattr(type(value), "shape"):
            raise TypeError(
                f"{caller}: {name}[{key!r}] is {describe(value)}, expected arrays by name, as "
                "model.state_dict() has them"
            )
        try:
            tuple(value.shape)
        except Exception as error:  # a lazy layer's, before it is used; a nested tensor's
            raise ValueError(f"{caller}: {name}[{key!r}] has no shape: {error}") from error
    counters = {key: x for key, x in given.items() if key.endswith("num_batches_tracked")}
    return Source({key: x for key, x in given.items() if key not in counters}, counters, types)


def turns(
    caller: str, source: Source, pairs: Mapping[str, Leaf], flattened: Mapping[str, int] | None
) -> dict[str, Turn]:
    """How each array becomes ours; ValueError where that can't be known."""
    biases = {leaf.layer: leaf for leaf in pairs.values() if leaf.kind == "bias"}
    is_cnn = _is_cnn(pairs)
    keys_of: dict[str, list[str]] = {}
    for key, leaf in pairs.items():
        keys_of.setdefault(leaf.name, []).append(key)
    for keys in keys_of.values():
        doubts = []
        for key in keys:
            leaf = pairs[key]
            if source.types is None:
                doubt = _doubt(key, leaf, biases.get(leaf.layer), is_cnn)
            else:
                doubt = _contradiction(key, leaf, source.types.get(layer_of(key), "unknown layer"))
            doubts += [doubt or _cube(key, leaf)]
        # A table that is tied to a dense layer is what the other of its keys says.
        if any(doubts) and (pairs[keys[0]].own != "embedding" or all(doubts)):
            raise ValueError(f"{caller}: {next(filter(None, doubts))}")
    per_channel = {layer for layer, kind in (source.types or {}).items() if kind in _PER_CHANNEL}
    channels = channels_of(caller, pairs, flattened, per_channel)
    flipped = {
        key
        for key in (source.transposed or set()) & pairs.keys()
        if spec(source.arrays[key]) == pairs[key].theirs(transposed=True) != pairs[key].theirs()
    }
    return {
        key: Turn(
            leaf.is_kernel,
            key in flipped,
            max(channels.get(twin, 1) for twin in keys_of[leaf.name]),
        )
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
        axes = ", ".join(map(str, range(2, len(leaf.shape))))
        return (
            f"{key} is a {kind}'s with as many channels out as in, so nothing says whether "
            f"{leaf.name} is of Flax's transpose_kernel=True; leave both out, of state_dict by w = "
            f"state_dict.pop({key!r}).numpy(), and turn it: w.transpose({axes}, 1, 0) if so, "
            f"np.flip(w, ({axes})).transpose({axes}, 0, 1) if not"
        )
    if kind in _TYPES_FOR[leaf.own]:
        return None
    if kind in _TABLES:
        return f"{key} is an {kind}'s, which stays as it is: call {leaf.name} embedding"
    return (
        f"{key} is of a layer {kind}, which is not known to fit {leaf.name}; give "
        "model.state_dict() in place of the model, if it is laid out as a Linear's, [out, in], or "
        "a Conv's there"
    )


def _doubt(key: str, leaf: Leaf, bias: Leaf | None, is_cnn: bool) -> str | None:
    """Why a weight may be no Conv's and no Linear's, though its shape is as theirs."""
    if not leaf.is_kernel:
        return None
    *window, n_in, n_out = leaf.shape
    advice = "give the PyTorch model itself, not its state_dict()"
    if bias is not None and len(bias.shape) > 1:
        return f"{key} has a bias {list(bias.shape)}, as a norm's has: call {leaf.name} scale"
    if window:
        names = f"{key} {leaf.name}"
        says_conv = _CONV_NAME.search(names) and not _TRANSPOSED_NAME.search(names)
        # Others have this shape if grouped, or, a Bilinear's, with the first two axes alike.
        if is_cnn or says_conv or (n_out % n_in and window != [n_in]):
            return None
        other = "a Conv's or a ConvTranspose's" + " or a Bilinear's" * (len(window) == 1)
        advice += f", or, if {layer_of(key)!r} is a Conv, let its name here or there say conv"
    elif n_in == n_out and leaf.own == "w" and bias is None:
        other = "a Linear's, [out, in], or an Embedding's"
        advice += f", or call {leaf.name} what it is, kernel or embedding"
    elif n_in == n_out and _CONV1D_NAME.search(layer_of(key)):
        other = "a Linear's, [out, in], or a GPT-2 Conv1D's, [in, out]"
        advice += (
            ", or, if it is a Conv1D's, its transpose under another name, as in "
            f"state_dict['linear.{own_of(key)}'] = state_dict.pop({key!r}).T with "
            f"names={{'linear': {leaf.layer!r}}}"
        )
    else:
        return None
    return f"{key} is {leaf.theirs()}, and nothing says whether that is {other}; {advice}"


def _is_cnn(pairs: Mapping[str, Leaf]) -> bool:
    """Whether ours is a list as `models.cnn` has: convolutions, then dense layers."""
    if not all(leaf.layer.isdecimal() and leaf.own in ("w", "b") for leaf in pairs.values()):
        return False
    kernels = {int(leaf.layer): leaf for leaf in pairs.values() if leaf.own == "w"}
    axes = [len(kernels[number].shape) for number in sorted(kernels)]
    return axes == sorted(axes, reverse=True) and axes[-1:] == [2]


def _cube(key: str, leaf: Leaf) -> str | None:
    """Why a parameter that is no kernel may have its channels first, or last as here."""
    sizes = [n for n in leaf.shape if n > 1]
    least = 2 if leaf.own in ("scale", "bias", "b", "mean", "var") else 3
    is_kept = leaf.is_kernel or leaf.own in ("embedding", "weight")
    if is_kept or len(sizes) < least or len(set(sizes)) > 1:
        return None
    return (
        f"{key} is {leaf.theirs()}, and nothing says whether one of its axes is of channels, the "
        f"first in PyTorch and the last here; leave it out, and convert it by hand: del "
        f"state_dict[{key!r}]"
    )
