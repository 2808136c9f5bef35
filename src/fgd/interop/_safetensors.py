"""Trees of arrays in safetensors files."""

import hashlib
import json
import os
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import ml_dtypes
import numpy as np

from fgd import _files, _trees
from fgd._checks import PyTree, require_array, spec
from fgd._keys import has_keys

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_LONGEST = 100_000_000  # header, as the format has it


def save(path: str | os.PathLike[str], tree: PyTree, *, overwrite: bool = False) -> None:
    """Writes a tree of arrays, such as parameters or a whole TrainState, to a safetensors file.

    An array's name is the keys on the way to it, joined by dots: `params.0.w`. PRNG keys are
    written as their data, with the name of their kind beside them; so is a digest, since the format
    has none. The file appears when it is whole, with the permissions that `open` would give it.
    Like `jnp.save`, it takes the path first.

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

    Its header is checked before anything else is read: a file of any size that is not what it
    should be, or does not fit `like`, is refused at once.

    Args:
      path: the file.
      like: the tree to fill: arrays, or shapes such as `jax.eval_shape(model.init, key)` gives.

    Returns:
      A tree like `like`, of JAX arrays; without it {name: NumPy array}, keys as their data.

    Raises:
      OSError: the file does not exist (FileNotFoundError) or can't be read.
      ValueError: it is a directory or a pipe, is not whole, or not safetensors; it does not fit
        `like`: says what is missing, left over, or of another shape or dtype; float64 while JAX is
        without it.

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
    path = _files.regular("interop.load", _files.as_path("interop.load", path))
    with open(path, "rb") as file:
        entries, metadata = _header(path, file)
        wanted = None if like is None else _trees.named("interop.load", like)
        if wanted is not None:
            for name, leaf in wanted.items():
                if not has_keys(leaf):
                    require_array("interop.load", f"like.{name}".rstrip("."), leaf)
            _require_fit(path, entries, wanted)
        arrays = {name: _values(path, file, name, entry) for name, entry in entries.items()}
    keys = _kinds_of_keys(path, arrays, metadata)
    if wanted is None:
        return arrays

    def leaf(name: str, wanted: Any) -> jax.Array:
        value = _trees.exactly("interop.load", name, arrays[name])
        if not has_keys(wanted):
            return value
        known = jax.random.key_impl(wanted) if isinstance(wanted, jax.Array) else None
        try:
            key = jax.random.wrap_key_data(value, impl=keys.get(name, known))
        except (TypeError, ValueError) as error:  # an unknown kind, or one of another length
            raise ValueError(f"interop.load: {path}: {name} is no key: {error}") from error
        if key.dtype != wanted.dtype:
            raise ValueError(f"interop.load: {path}: {name} is {key.dtype}, not {wanted.dtype}")
        return key

    leaves = [leaf(name, wanted) for name, wanted in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _arrays(tree: PyTree) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a file holds: the arrays, and the kinds of those that are PRNG keys."""
    leaves = _trees.named("interop.save", tree)
    arrays = {name: _trees.array("interop.save", name, leaf) for name, leaf in leaves.items()}
    for name, value in arrays.items():
        if value.dtype.name not in _DTYPES.values():
            raise TypeError(f"interop.save: {name} is {value.dtype}, which safetensors lacks")
        if name == "__metadata__":
            raise ValueError("interop.save: safetensors reserves the name __metadata__")
    return arrays, {
        name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if has_keys(leaf)
    }


class _Entry(NamedTuple):
    shape: list[int]
    dtype: np.dtype[Any]
    begin: int  # of its bytes in the file
    end: int


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, _Entry], dict[str, str]]:
    """What a file says that it holds, if its length and the format agree; reads no more of it."""
    there = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    try:
        if length > _LONGEST or start > there:
            raise ValueError(f"of {there} bytes, {length} should be its header")
        header = json.loads(file.read(length).decode())
        metadata = header.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        "".join(header).encode()  # a name of half a character is none
        entries = {name: _entry(start, **entry) for name, entry in header.items()}
        end = start
        for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
            if entry.begin != end or entry.end - end != entry.dtype.itemsize * prod(entry.shape):
                raise ValueError(f"{name!r} is not where it should be, or not as long")
            end = entry.end
        if end != there:
            raise ValueError(f"it has {there} bytes, its arrays end at {end}")
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not texts")
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        what = str(error)[:200]  # it may quote the header
        raise ValueError(f"interop.load: {path} is no whole safetensors file: {what}") from error
    return entries, metadata


def _entry(start: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> _Entry:
    name = _DTYPES.get(dtype)
    if name is None:
        raise ValueError(f"{dtype!r} is a dtype unknown here")
    begin, end = data_offsets
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"{shape} and {data_offsets} are not all counts")
    return _Entry(shape, np.dtype(getattr(ml_dtypes, name, name)), start + begin, start + end)


def _require_fit(path: Path, entries: dict[str, _Entry], wanted: dict[str, Any]) -> None:
    shapes = {name: _trees.shape(leaf) for name, leaf in wanted.items()}
    problem = _trees.misfit(
        [name for name in wanted if name not in entries],
        [name for name in entries if name not in wanted],
        [
            f"{name} is {spec(entries[name])}, expected {spec(shape)}"
            for name, shape in shapes.items()
            if name in entries and spec(entries[name]) != spec(shape)
        ],
    )
    if problem:
        raise ValueError(f"interop.load: {path} does not fit like: {problem}")


def _values(path: Path, file: BinaryIO, name: str, entry: _Entry) -> np.ndarray:
    file.seek(entry.begin)
    values = np.fromfile(file, entry.dtype, prod(entry.shape))
    try:
        return values.reshape(entry.shape)
    except (ValueError, OverflowError) as error:  # more axes than NumPy has, or longer ones
        raise ValueError(f"interop.load: {path}: {name}: {error}") from error


def _kinds_of_keys(
    path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> dict[str, str]:
    """Which arrays are PRNG keys, and of what kind, if the digest is that of what was saved."""
    if "sha256" not in metadata:  # another program's file
        return {}
    try:
        keys = json.loads(metadata.get("keys", ""))
    except (ValueError, RecursionError):
        keys = None
    if not isinstance(keys, dict) or metadata["sha256"] != _digest(arrays, keys):
        raise ValueError(f"interop.load: {path} is damaged: its content is not what was saved")
    return keys


def _digest(arrays: dict[str, np.ndarray], keys: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(keys, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name}\n{spec(arrays[name])}\n".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
