"""The arrays of a state on disk: Orbax writes them, and a digest of each says what they were."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from fgd import _trees
from fgd._checks import PyTree, spec
from fgd._keys import has_keys

# {name: {"dtype", "shape", "key": kind or None, "regions": [{"at": [[start, stop], …], "sha256"}]}}
Leaves = dict[str, dict[str, Any]]


def describe(caller: str, tree: PyTree) -> Leaves:
    """What is known of every array of a tree: dtype, shape, and digests of what this process holds.

    A region is what one device holds of an array that is spread over processes, or all of it.
    """
    return {
        name: {
            "dtype": _trees.shape(leaf).dtype.name,
            "shape": list(_trees.shape(leaf).shape),
            "key": str(jax.random.key_impl(leaf)) if has_keys(leaf) else None,
            "regions": [
                {"at": at, "sha256": sha256(values)} for at, values in _regions(_data(leaf))
            ],
        }
        for name, leaf in _trees.named(caller, tree).items()
    }


def merge(parts: Iterable[Leaves]) -> Leaves:
    """What several processes hold of one tree, together."""
    first, *others = parts
    for other in others:
        for name, leaf in other.items():
            known = first[name]["regions"]
            known += [region for region in leaf["regions"] if region not in known]
    return first


def save(caller: str, folder: Path, tree: PyTree, participants: set[int]) -> None:
    """Writes the arrays of a tree into a new folder, as Orbax does; OSError if it can't.

    Args:
      caller: the public function, for messages.
      folder: where; it is made.
      tree: arrays of JAX's.
      participants: the processes that call this together.
    """
    arrays = {name: _data(leaf) for name, leaf in _trees.named(caller, tree).items()}
    values = {_file(name): _whole(x) for name, x in arrays.items() if x.size}  # Orbax's limit
    handler, args, path = _orbax(folder, participants)
    try:
        handler.save(path, args=args.PyTreeSave(values))
    except Exception as error:  # of many kinds, by Orbax and by what it stands on
        raise OSError(f"{caller}: {folder} could not be written: {error}") from error


def load(caller: str, folder: Path, leaves: Leaves, like: PyTree) -> PyTree:
    """The tree in a folder, placed as `like` is; ValueError unless it is what was saved.

    Every process reads all of it, so that digests say the same whichever regions were written.
    """
    problem = misfit(leaves, like)
    if problem:
        raise ValueError(f"{caller}: {problem}")
    files = {name: _file(name) for name, leaf in leaves.items() if math.prod(leaf["shape"])}
    handler, args, path = _orbax(folder, {jax.process_index()})
    import orbax.checkpoint as ocp

    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    found = handler.restore(
        path, args=args.PyTreeRestore(restore_args=dict.fromkeys(files.values(), kind))
    )

    def one(name: str, wanted: Any) -> jax.Array:
        leaf = leaves[name]
        empty = np.zeros(leaf["shape"], jnp.dtype(leaf["dtype"]))
        value = found[files[name]] if name in files else empty
        _verify(name, leaf, value)
        return _placed(caller, name, value, leaf["key"], wanted)

    named = _trees.named(caller, like)
    return jax.tree.unflatten(
        jax.tree.structure(like), [one(name, wanted) for name, wanted in named.items()]
    )


def misfit(leaves: Leaves, like: PyTree) -> str:
    """What keeps saved arrays from filling `like`, in words; empty if nothing does."""
    wanted = _trees.named("checkpoints", like)
    shapes = {name: _trees.shape(leaf) for name, leaf in wanted.items()}
    have = {
        name: jax.ShapeDtypeStruct(tuple(x["shape"]), jnp.dtype(x["dtype"]))
        for name, x in leaves.items()
    }
    return _trees.misfit(
        [name for name in wanted if name not in leaves],
        [name for name in leaves if name not in wanted],
        [
            f"{name} is {spec(have[name])}, expected {spec(shape)}"
            for name, shape in shapes.items()
            if name in have and spec(have[name]) != spec(shape)
        ],
    )


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The names of arrays that both sides hold whole, and whose content differs."""

    def whole(leaf: Any) -> str | None:
        regions = leaf["regions"]
        is_whole = len(regions) == 1 and regions[0]["at"] == [[0, n] for n in leaf["shape"]]
        return regions[0]["sha256"] if is_whole else None

    both = [(name, whole(ours[name]), whole(theirs[name])) for name in ours if name in theirs]
    return [name for name, a, b in both if a and b and a != b] + sorted(ours.keys() ^ theirs.keys())


def sha256(values: np.ndarray | np.generic) -> str:
    """The digest of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()


def _verify(name: str, leaf: dict[str, Any], value: np.ndarray) -> None:
    size = 0
    for region in leaf["regions"]:
        part = value[tuple(slice(start, stop) for start, stop in region["at"])]
        size += part.size
        if sha256(part) != region["sha256"]:
            raise ValueError(f"{name} is not what was saved")
    if size < value.size:
        raise ValueError(f"{name} has no digest for all of it")


def _placed(caller: str, name: str, value: np.ndarray, kind: str | None, wanted: Any) -> jax.Array:
    if has_keys(wanted):
        key = jax.random.wrap_key_data(jnp.asarray(value), impl=kind)
        if key.dtype != wanted.dtype:
            raise ValueError(f"{caller}: {name} is {key.dtype}, expected {wanted.dtype}")
        known = isinstance(wanted, jax.Array)
        data = _placed(caller, name, value, None, jax.random.key_data(wanted) if known else value)
        return jax.random.wrap_key_data(data, impl=kind)
    sharding = getattr(wanted, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    array = _trees.exactly(caller, name, value)
    return jax.device_put(array, sharding) if getattr(wanted, "committed", False) else array


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if has_keys(leaf) else jnp.asarray(leaf)


def _whole(array: jax.Array) -> Any:
    """The array on the host, where this process can see all of it: Orbax is quicker then."""
    seen = array.is_fully_addressable or array.is_fully_replicated
    return np.asarray(array) if seen else array


def _regions(array: jax.Array) -> list[tuple[list[list[int]], np.ndarray]]:
    whole = _whole(array)
    if isinstance(whole, np.ndarray):
        return [([[0, n] for n in whole.shape], whole)]
    return [
        ([list(i.indices(n)[:2]) for i, n in zip(shard.index, array.shape, strict=True)],
         np.asarray(shard.data))
        for shard in array.addressable_shards
        if shard.replica_id == 0
    ]  # fmt: skip


def _file(name: str) -> str:
    """A name that is one file's, whatever the keys of a tree are."""
    quoted = quote(name, safe=" ")
    return quoted if len(quoted) <= 200 else hashlib.sha256(name.encode()).hexdigest()


def _orbax(folder: Path, participants: set[int]) -> tuple[Any, Any, Any]:
    """Orbax's handler of trees, its arguments, and the folder in its words."""
    import orbax.checkpoint as ocp
    from etils import epath

    together = ocp.options.MultiprocessingOptions(
        primary_host=min(participants),
        active_processes=participants,
        barrier_sync_key_prefix=f"fgd{'-'.join(map(str, sorted(participants)))}",
    )
    # One file for each array: OCDBT, for thousands of them, took four times as long for 1 GB.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_zarr3=True,
        use_compression=False,
        multiprocessing_options=together,
    )
    return handler, ocp.args, epath.Path(folder)
