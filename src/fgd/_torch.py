"""PyTorch's state dicts as parameters, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fgd import _files, _names
from fgd._checks import PyTree
from fgd._layers import Leaf, channels_before, leaves_of, match

_COUNTER = "num_batches_tracked"  # how many batches a BatchNorm saw: no parameter


def from_torch(
    state_dict: Mapping[str, Any],
    like: PyTree,
    *,
    names: Mapping[str, Any] | None = None,
    channels_first: bool = True,
) -> PyTree:
    """A PyTorch model's weights as parameters of fgd's or Flax's.

    Dense weights [out, in] become kernels [in, out], convolutions' [out, in, height, width] become
    [height, width, in, out] (in one or three dimensions alike); biases, norms and embeddings stay
    as they are. BatchNorm's weight, bias, running_mean and running_var are scale, bias, mean and
    var; its num_batches_tracked is ignored. A transposed convolution's weight can't be told from
    another's: convert it by hand.

    A dense layer that follows a convolution reads an image flattened by channel, row, column;
    here it is row, column, channel, so its rows are put in that order.

    Args:
      state_dict: `model.state_dict()`, of tensors or of NumPy arrays, in the model's own order.
      like: the parameters to fill, arrays or shapes. Flax's may be the whole
        {"params": …, "batch_stats": …}, whose layers are named without the collection.
      names: {PyTorch's layer: layer of `like`}, as {"fc1": "Dense_0"}; others are named alike.
        None: layers of a list, fgd's own models, are taken in order; numbered layers of PyTorch
        (`nn.Sequential`) by number.
      channels_first: whether the PyTorch model flattens images by channel, row, column, as
        `nn.Flatten` does. False leaves the rows as they are.

    Returns:
      A tree like `like` of JAX arrays, which share no memory with the tensors.

    Raises:
      TypeError: `state_dict` is not a dict.
      ValueError: says, all at once, what is missing, left over, or of another shape or dtype.

    Example:
      >>> import fgd, jax, numpy as np
      >>> state_dict = {"weight": np.float32([[1, 2, 3]]), "bias": np.float32([4])}
      >>> model = fgd.models.linear(3, 1)
      >>> params = fgd.interop.from_torch(state_dict, jax.eval_shape(model.init, jax.random.key(0)))
      >>> params["w"].shape, float(model.apply(params, jax.numpy.ones([1, 3]))[0, 0])
      ((3, 1), 10.0)
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"from_torch: expected model.state_dict(), got {type(state_dict).__name__}")
    given = {key: _numpy(value) for key, value in state_dict.items() if not key.endswith(_COUNTER)}
    leaves = leaves_of("from_torch", like)
    pairs = match("from_torch: the state_dict does not fit like", given, leaves, names)
    channels = channels_before("from_torch", pairs, channels_first)
    values = {
        leaf.name: _names.on_device("from_torch", key, _to_jax(given[key], leaf, channels[key]))
        for key, leaf in pairs.items()
    }
    return jax.tree.unflatten(jax.tree.structure(like), [values[leaf.name] for leaf in leaves])


def to_torch(
    params: PyTree,
    like: Mapping[str, Any] | None = None,
    *,
    names: Mapping[str, Any] | None = None,
    channels_first: bool = True,
) -> dict[str, Any]:
    """Parameters as a PyTorch state dict; `from_torch`'s inverse, bit for bit.

    Args:
      params: parameters of fgd's or Flax's, as in `from_torch`.
      like: `model.state_dict()` of the PyTorch model to fill. None: layers keep their own names,
        or those that `names` gives.
      names: {PyTorch's layer: layer of `params`}, as in `from_torch`.
      channels_first: as in `from_torch`.

    Returns:
      {name: CPU tensor} for `model.load_state_dict`; num_batches_tracked comes from `like`.

    Raises:
      TypeError: `like` is not a dict.
      ValueError: the parameters do not fit `like`: says what is missing, left over, or of another
        shape or dtype; without `like`, convolutions and dense layers in a dict, whose order is not
        the model's.

    Example:
      >>> import fgd, jax
      >>> model = fgd.models.mlp([4, 3, 2])
      >>> params = model.init(jax.random.key(0))
      >>> state_dict = fgd.interop.to_torch(params, names={"0": "0", "2": "1"})  # doctest: +SKIP
      >>> list(state_dict)  # doctest: +SKIP
      ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    _files.require("to_torch", "torch", "torch")
    import torch

    if like is not None and not isinstance(like, Mapping):
        raise TypeError(f"to_torch: expected like=model.state_dict(), got {type(like).__name__}")
    leaves = leaves_of("to_torch", params)
    if like is None:
        own = {str(ours): theirs for theirs, ours in (names or {}).items()}
        pairs = {".".join(filter(None, [own.get(x.layer, x.layer), x.kind])): x for x in leaves}
        if len(pairs) < len(leaves):
            raise ValueError(f"to_torch: names={names} gives two layers one name")
        unordered = [leaf for leaf in leaves if leaf.is_kernel and not leaf.is_listed]
        if channels_first and len({len(leaf.shape) == 2 for leaf in unordered}) == 2:
            raise ValueError(
                "to_torch: which dense layer follows a convolution can't be seen in a dict; give "
                "like=model.state_dict(), or channels_first=False to leave the rows as they are"
            )
    else:
        given = {key: value for key, value in like.items() if not key.endswith(_COUNTER)}
        pairs = match("to_torch: params do not fit like", given, leaves, names)
    channels = channels_before("to_torch", pairs, channels_first)

    def tensor(key: str) -> Any:
        if like is not None and key not in pairs:
            return like[key].clone()
        leaf = pairs[key]
        value = _names.array("to_torch", leaf.name, leaf.value)
        value = np.array(_to_torch(value, leaf, channels[key]), order="C")
        try:
            return torch.from_numpy(value)
        except TypeError:  # NumPy has it from ml_dtypes, PyTorch under the same name
            bits = torch.from_numpy(value.view(f"i{value.itemsize}"))
            return bits.view(getattr(torch, value.dtype.name))

    return {key: tensor(key) for key in (pairs if like is None else like)}


def _numpy(value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    try:
        return value.numpy()
    except TypeError:  # bfloat16 and smaller
        return np.asarray(jax.dlpack.from_dlpack(value.contiguous()))


def _to_jax(value: np.ndarray, leaf: Leaf, channels: int) -> np.ndarray:
    """[out, in, …] as […, in, out], rows [channels, positions] as [positions, channels]."""
    if not leaf.is_kernel:
        return value
    value = np.moveaxis(value, (0, 1), (-1, -2))
    if channels == 1:
        return value
    return value.reshape(channels, -1, value.shape[-1]).swapaxes(0, 1).reshape(value.shape)


def _to_torch(value: np.ndarray, leaf: Leaf, channels: int) -> np.ndarray:
    """`_to_jax`'s inverse."""
    if not leaf.is_kernel:
        return value
    if channels > 1:
        value = value.reshape(-1, channels, value.shape[-1]).swapaxes(0, 1).reshape(value.shape)
    return np.moveaxis(value, (-1, -2), (0, 1))
