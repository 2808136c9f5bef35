"""PyTorch's weights as parameters, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fgd import _files, _trees
from fgd._checks import PyTree, describe, replaced
from fgd.interop._layers import match
from fgd.interop._leaves import leaves_of, listed
from fgd.interop._weights import Source, Turn, read, turns

_FLATTENED = (
    "name the layers that read a flattened image, and the image's channels, as in "
    'flattened={"fc": 16}, or flattened={} if none does'
)


@replaced("from_torch", channels_first=_FLATTENED)
def from_torch(
    state_dict: Any,
    like: PyTree,
    *,
    names: Mapping[str, Any] | None = None,
    flattened: Mapping[str, int] | None = None,
) -> PyTree:
    """A PyTorch model's weights as parameters of fgd's or Flax's.

    Dense weights [out, in] become kernels [in, out], convolutions' [out, in, height, width] become
    [height, width, in, out] (in one or three dimensions alike); biases, norms and embeddings stay
    as they are. BatchNorm's weight, bias, running_mean and running_var are scale, bias, mean and
    var; its num_batches_tracked is ignored. What can be read in two ways is refused by name:

    *Which layer is which.* They go by name. Only where `like` has nothing but lists, as fgd's own
    models have, and PyTorch's layers are numbers under one name, as in an `nn.Sequential`, they go
    by number. The order of the dict never matters: files are sorted by name.

    *How a weight is laid out.* The types of the model's layers say it, so give the model itself if
    there are others than dense layers, convolutions and embeddings. A transposed convolution's
    weight then is mirrored for Flax's default, or kept for `transpose_kernel=True`, whichever its
    shape fits; with as many channels out as in it is refused. A state dict has names and shapes
    only: what becomes "w" or "kernel" is read as a dense layer's or a convolution's, everything
    else stays as it is. Refused is what may be another layer's of PyTorch's own: a square "w"
    without a bias (an Embedding's), a square c_attn, c_fc, c_proj or q_attn (GPT-2's Conv1D,
    [in, out]), and a convolution (or transposed, or grouped) with as many channels out as in, or
    some times as many, unless a name says "conv" and none says, say, "up", or `like` is a list of
    convolutions and then dense layers, as `fgd.models.cnn` has. So is a cube that is no kernel: its
    channels may come first or last.

    *Which layers read a flattened image.* PyTorch flattens it by channel, row, column; here it is
    row, column, channel, and the rows of a kernel are put in that order. Neither names nor types
    say of which, so a model with convolutions and layers that may read one needs `flattened`.

    Args:
      state_dict: the PyTorch model, or its `state_dict()`: tensors or NumPy arrays by name.
      like: the parameters to fill, arrays or shapes. Flax's may be the whole
        {"params": …, "batch_stats": …}, whose layers are named without the collection.
      names: {PyTorch's layer: layer of `like`}, as {"fc1": "Dense_0"}; others are named alike. ""
        is what stands outside any layer. Two may become one if their values are equal, as those of
        tied layers are: {"head": "table"}.
      flattened: {PyTorch's layer: channels}, as {"fc": 16}: the dense layers (or norms) whose
        inputs are one flattened image of so many channels, and nothing else; {} if there are none.
        Inputs that are an image and more, and results that become an image, keep PyTorch's order:
        in JAX, flatten `jnp.moveaxis(x, -1, 1)`, and move the axis back after a reshape.

    Returns:
      A tree like `like` of JAX arrays, which share no memory with the tensors.

    Raises:
      TypeError: `state_dict` is neither of the two, `like` has no names, `flattened` no ints.
      ValueError: says, all at once, what is missing, left over, or of another shape or dtype; or
        what can be read in two ways, and what to write.

    Example:
      >>> import fgd, jax, numpy as np
      >>> state_dict = {"weight": np.float32([[1, 2, 3]]), "bias": np.float32([4])}
      >>> model = fgd.models.linear(3, 1)
      >>> params = fgd.interop.from_torch(state_dict, model.init(0))
      >>> params["w"].shape, float(model.apply(params, jax.numpy.ones([1, 3]))[0, 0])
      ((3, 1), 10.0)
    """
    _check_names("from_torch", names)
    source = read("from_torch", "state_dict", state_dict)
    given = {key: _host(key, value) for key, value in source.arrays.items()}
    leaves = leaves_of("from_torch", like)
    problem = "from_torch: the state_dict does not fit like"
    pairs = match(problem, given, leaves, names, source.transposed)
    owners = {key: leaf.name for key, leaf in pairs.items()}
    _require_one("from_torch: names makes one of two layers that are not equal", owners, given)
    how = turns("from_torch", source, pairs, flattened)
    values = {
        leaf.name: _trees.exactly("from_torch", key, _to_jax(given[key], how[key]))
        for key, leaf in pairs.items()
    }
    return jax.tree.unflatten(jax.tree.structure(like), [values[leaf.name] for leaf in leaves])


@replaced("to_torch", channels_first=_FLATTENED)
def to_torch(
    params: PyTree,
    like: Any = None,
    *,
    names: Mapping[str, Any] | None = None,
    flattened: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Parameters as a PyTorch state dict; `from_torch`'s inverse, bit for bit.

    Args:
      params: parameters of fgd's or Flax's, as in `from_torch`.
      like: the PyTorch model to fill, or its `state_dict()`. None: layers keep their own names, or
        those that `names` gives.
      names: {PyTorch's layer: layer of `params`}, as in `from_torch`.
      flattened: {PyTorch's layer: channels}, as in `from_torch`.

    Returns:
      {name: CPU tensor} for `model.load_state_dict`; num_batches_tracked comes from `like`.

    Raises:
      TypeError: `like` is neither of the two, `params` has no names, `flattened` no ints.
      ValueError: the parameters do not fit `like`: says what is missing, left over, or of another
        shape or dtype; or what can be read in two ways, as in `from_torch`.

    Example:
      >>> import fgd
      >>> model = fgd.models.mlp([4, 3, 2])
      >>> params = model.init(0)
      >>> state_dict = fgd.interop.to_torch(params, names={"0": "0", "2": "1"})  # doctest: +SKIP
      >>> list(state_dict)  # doctest: +SKIP
      ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    _files.require("to_torch", "torch", "torch")
    import torch

    _check_names("to_torch", names)
    leaves = leaves_of("to_torch", params)
    if like is None:
        source = Source({}, {})
        theirs: dict[str, list[str]] = {}
        for layer, ours in (names or {}).items():
            theirs.setdefault(str(ours), []).append(str(layer))
        if unknown := theirs.keys() - {leaf.layer for leaf in leaves}:
            raise ValueError(f"to_torch: names has {listed(unknown)}, no layer of params")
        named = [
            (".".join(filter(None, [layer, leaf.kind])), leaf)
            for leaf in leaves
            for layer in theirs.get(leaf.layer, [leaf.layer])
        ]
        pairs = dict(named)
        if len(pairs) < len(named):
            raise ValueError(f"to_torch: names={names} gives two layers one name")
    else:
        source = read("to_torch", "like", like)
        problem = "to_torch: params do not fit like"
        pairs = match(problem, source.arrays, leaves, names, source.transposed)
    how = turns("to_torch", source, pairs, flattened)

    values = {
        key: np.array(
            _to_torch(_trees.array("to_torch", leaf.name, leaf.value), how[key]), order="C"
        )
        for key, leaf in pairs.items()
    }
    owners = {key: _memory(value) or key for key, value in source.arrays.items()}
    _require_one("to_torch: what is one tensor in like has two values here", owners, values)

    def tensor(value: np.ndarray) -> Any:
        try:
            return torch.from_numpy(value)
        except TypeError:  # NumPy has it from ml_dtypes, PyTorch under the same name
            bits = torch.from_numpy(value.view(f"i{value.itemsize}"))
            return bits.view(getattr(torch, value.dtype.name))

    counters = {
        key: torch.zeros(x.shape, dtype=x.dtype)
        if getattr(x, "is_meta", False)
        else torch.asarray(x, copy=True)
        for key, x in source.counters.items()
    }
    return {key: tensor(value) for key, value in values.items()} | counters


def _host(key: str, value: Any) -> np.ndarray:
    """The numbers of one of PyTorch's arrays."""
    try:
        return _trees.host(value)
    except Exception as error:  # of as many types as there are kinds of tensors
        raise ValueError(
            f"from_torch: {key} is {describe(value)}, whose numbers can't be read ({error}); give "
            "a model that is loaded, not on the device meta, and dense tensors: a sparse one's "
            "to_dense(), a quantized one's dequantize()"
        ) from error


def _memory(value: Any) -> Any:
    """Where a tensor's numbers lie; None of what has none, or not in memory of its own."""
    try:
        return (value.data_ptr(), value.shape, value.stride()) if value.data_ptr() else None
    except (AttributeError, RuntimeError):  # NumPy's; a sparse tensor
        return None


def _require_one(problem: str, owners: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """ValueError where keys of one owner have different values."""
    first: dict[Any, str] = {}
    for key, owner in owners.items():
        other = first.setdefault(owner, key)
        if values[key].tobytes() != values[other].tobytes():
            raise ValueError(f"{problem}: {other} and {key} differ")


def _check_names(caller: str, names: Any) -> None:
    if not isinstance(names, Mapping | None):
        raise TypeError(
            f"{caller}: names must be a dict {{PyTorch's layer: layer of ours}}, got "
            f"{describe(names)}"
        )


def _to_jax(value: np.ndarray, turn: Turn) -> np.ndarray:
    """[out, in, …] as […, in, out], rows [channels, positions] as [positions, channels]."""
    if turn.is_flipped:
        value = np.flip(value, tuple(range(2, value.ndim))).swapaxes(0, 1)
    if turn.is_kernel:
        value = np.moveaxis(value, (0, 1), (-1, -2))
    if turn.channels > 1:
        rows = value.reshape(turn.channels, -1, *value.shape[1:])
        value = rows.swapaxes(0, 1).reshape(value.shape)
    return value


def _to_torch(value: np.ndarray, turn: Turn) -> np.ndarray:
    """`_to_jax`'s inverse."""
    if turn.channels > 1:
        rows = value.reshape(-1, turn.channels, *value.shape[1:])
        value = rows.swapaxes(0, 1).reshape(value.shape)
    if turn.is_kernel:
        value = np.moveaxis(value, (-1, -2), (0, 1))
    if turn.is_flipped:
        value = np.flip(value, tuple(range(2, value.ndim))).swapaxes(0, 1)
    return value
