"""Weights in and out: safetensors files, PyTorch's state dicts."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from fgd import _files, _names
from fgd._checks import PyTree
from fgd._torch import from_torch as from_torch, to_torch as to_torch

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def save(path: str | os.PathLike[str], tree: PyTree, *, overwrite: bool = False) -> None:
    """Writes a tree of arrays, such as parameters or a whole TrainState, to a safetensors file.

    An array's name is the keys on the way to it, joined by dots: `params.0.w`. PRNG keys are
    written as their data, with the name of their kind beside them; so is a digest, since the format
    has none. The file appears when it is whole. Like `jnp.save`, it takes the path first.

    Args:
      path: the file; `.safetensors` is the custom.
      tree: pytree of arrays: booleans, integers, floats up to 64 bits, complex64, typed keys.
      overwrite: replace an existing file.

    Raises:
      FileExistsError: the file exists and `overwrite` is False.
      FileNotFoundError: its directory does not exist.
      TypeError: a leaf is no array, or of a dtype that the format lacks; says which.
      ValueError: two leaves with one name, `{"a.b": …, "a": {"b": …}}`.

    Example:
      >>> import fgd, jax.numpy as jnp, tempfile
      >>> params = [{"w": jnp.ones([2, 3]), "b": jnp.zeros(3)}]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     fgd.interop.save(f"{folder}/w.safetensors", params)
      ...     sorted(fgd.interop.load(f"{folder}/w.safetensors"))
      ['0.b', '0.w']

    Source: https://huggingface.co/docs/safetensors.
    """
    _files.require("interop.save", "safetensors", "interop")
    from safetensors.numpy import save_file

    with _files.atomic("interop.save", path, overwrite) as temporary:
        arrays, keys = _arrays(tree)
        metadata = {"keys": json.dumps(keys), "sha256": _digest(arrays, keys)}
        save_file(arrays, temporary, metadata)


def load(path: str | os.PathLike[str], like: PyTree = None) -> PyTree:
    """Reads a safetensors file, of any origin.

    Args:
      path: the file.
      like: the tree to fill: arrays, or shapes such as `jax.eval_shape(model.init, key)` gives.

    Returns:
      A tree like `like`, of JAX arrays; without it {name: NumPy array}, keys as their data.

    Raises:
      ValueError: the file is not whole, or not safetensors; it does not fit `like`: says what is
        missing, left over, or of another shape or dtype; float64 while JAX is without it.

    Example:
      >>> import fgd, jax, tempfile
      >>> model = fgd.models.mlp([4, 3, 2])
      >>> params = model.init(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     fgd.interop.save(f"{folder}/w.safetensors", params)
      ...     like = jax.eval_shape(model.init, jax.random.key(0))
      ...     loaded = fgd.interop.load(f"{folder}/w.safetensors", like)
      >>> bool((loaded[1]["w"] == params[1]["w"]).all())
      True
    """
    arrays, keys = _read(Path(path))
    if like is None:
        return arrays
    wanted = _names.named("interop.load", like)
    shapes = {name: _names.shape(leaf) for name, leaf in wanted.items()}
    problem = _names.misfit(
        [name for name in wanted if name not in arrays],
        [name for name in arrays if name not in wanted],
        [
            f"{name} is {_names.spec(arrays[name])}, expected {_names.spec(shape)}"
            for name, shape in shapes.items()
            if name in arrays and _names.spec(arrays[name]) != _names.spec(shape)
        ],
    )
    if problem:
        raise ValueError(f"interop.load: {path} does not fit like: {problem}")

    def leaf(name: str, wanted: Any) -> jax.Array:
        value = _names.on_device("interop.load", name, arrays[name])
        if not _names.has_keys(wanted):
            return value
        known = jax.random.key_impl(wanted) if isinstance(wanted, jax.Array) else None
        key = jax.random.wrap_key_data(value, impl=keys.get(name, known))
        if key.dtype != wanted.dtype:
            raise ValueError(f"interop.load: {path}: {name} is {key.dtype}, not {wanted.dtype}")
        return key

    leaves = [leaf(name, wanted) for name, wanted in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _arrays(tree: PyTree) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a file holds: the arrays, and the kinds of those that are PRNG keys."""
    leaves = _names.named("interop.save", tree)
    arrays = {name: _names.array("interop.save", name, leaf) for name, leaf in leaves.items()}
    for name, value in arrays.items():
        if value.dtype.name not in _DTYPES.values():
            raise TypeError(f"interop.save: {name} is {value.dtype}, which safetensors lacks")
        if name == "__metadata__":
            raise ValueError("interop.save: safetensors reserves the name __metadata__")
    return arrays, {
        name: str(jax.random.key_impl(leaf))
        for name, leaf in leaves.items()
        if _names.has_keys(leaf)
    }


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What `_arrays` made a file of."""
    _files.require("interop.load", "safetensors", "interop")
    import safetensors

    content = path.read_bytes()
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"interop.load: {path} is no whole safetensors file: {error}") from error
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise ValueError(f"interop.load: {path}: {name} is {tensor['dtype']}, unknown here")
        dtype = np.dtype(getattr(ml_dtypes, _DTYPES[tensor["dtype"]], _DTYPES[tensor["dtype"]]))
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    if "sha256" not in metadata:  # another program's file
        return arrays, {}
    try:
        keys = json.loads(metadata.get("keys", ""))
    except ValueError:
        keys = None
    if not isinstance(keys, dict) or metadata["sha256"] != _digest(arrays, keys):
        raise ValueError(f"interop.load: {path} is damaged: its content is not what was saved")
    return arrays, keys


def _digest(arrays: dict[str, np.ndarray], keys: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(keys, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name}\n{_names.spec(arrays[name])}\n".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
