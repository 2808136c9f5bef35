"""Devices in a mesh, and what lies where on them."""

import hashlib
from contextlib import nullcontext
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from fgd._checks import PyTree, is_concrete, is_key

AXIS = "data"


def data_mesh(caller: str, mesh: Any) -> Mesh:
    """`mesh` with axes of the Auto type, whatever they were; it must have one named "data"."""
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{caller}: mesh must be a jax.sharding.Mesh, got {mesh!r}; jax.make_mesh((n,), "
            '("data",)) makes one of n devices'
        )
    if AXIS not in mesh.axis_names:
        raise ValueError(
            f'{caller}: mesh has axes {mesh.axis_names}, expected one named "data", over which '
            'rows are split; jax.make_mesh((n,), ("data",)) makes it'
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, P())


def split(mesh: Mesh) -> NamedSharding:
    """Every device holds its share of the rows."""
    return NamedSharding(mesh, P(AXIS))


def within(mesh: Mesh | None) -> Any:
    """The context of a program on `mesh`, whatever mesh of other axis types its caller set."""
    return nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def across(mesh: Mesh | None) -> TypeGuard[Mesh]:
    """Whether a run on `mesh` is one that several processes share."""
    return mesh is not None and mesh.is_multi_process


def place(caller: str, mesh: Mesh, tree: PyTree) -> PyTree:
    """`tree` on the devices of `mesh`: as its caller placed it there, or else replicated."""

    def placed(leaf: Any) -> Any:
        if not is_concrete(leaf):
            return leaf
        if is_key(leaf):
            data = placed(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        own = getattr(leaf, "sharding", None)
        if isinstance(own, NamedSharding) and own.device_set == set(mesh.devices.flat):
            return jax.device_put(leaf, NamedSharding(mesh, own.spec))
        if not across(mesh):
            return jax.device_put(leaf, replicated(mesh))
        whole = np.asarray(leaf)
        return jax.make_array_from_process_local_data(replicated(mesh), whole, whole.shape)

    if across(mesh):
        _require_equal(caller, tree)
    return jax.tree.map(placed, tree)


def specs(tree: PyTree) -> tuple[P | None, ...]:
    """How each leaf of a placed tree is split; None where that can't be known."""
    return tuple(x.sharding.spec if is_concrete(x) else None for x in jax.tree.leaves(tree))


def hold(mesh: Mesh, specs: tuple[P | None, ...], tree: PyTree) -> PyTree:
    """`tree`, inside a program, where it was: XLA may not split what its caller did not."""
    leaves, treedef = jax.tree.flatten(tree)
    held = [
        leaf if spec is None else jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))
        for leaf, spec in zip(leaves, specs, strict=True)
    ]
    return treedef.unflatten(held)


def _require_equal(caller: str, tree: PyTree) -> None:
    """ValueError where processes bring values of their own, from which their runs would diverge."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_concrete(leaf) and getattr(leaf, "is_fully_addressable", True):
            whole = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {whole.dtype} {whole.shape}".encode())
            digest.update(whole.tobytes())
    digests = process_allgather(np.frombuffer(digest.digest(), np.uint8))
    if (digests != digests[0]).any():
        raise ValueError(
            f"{caller}: state and data must be the same on every process, but differ on processes "
            f"{np.flatnonzero((digests != digests[0]).any(axis=1)).tolist()} from those on process "
            "0; give each the whole of them, or train on a stream of each one's own share"
        )


def settled(mesh: Mesh | None, results: PyTree) -> PyTree:
    """`results`, computed already where two programs in flight could wait for ever.

    On CPU a message to another process holds one of few threads until it is answered: programs that
    run at once may take them in another order there, and each process waits for the other's.
    """
    if across(mesh) and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready([x for x in jax.tree.leaves(results) if is_concrete(x)])
    return results


def agreed(mesh: Mesh | None, seconds: float, wish: bool) -> tuple[float, bool]:
    """What all processes take for true: the seconds of process 0, and a wish that any of them has.

    They must decide alike, or one would wait for ever in a step that another does not take.
    """
    if not across(mesh):
        return seconds, wish
    said = process_allgather(np.array([seconds, wish], np.float32))
    return float(said[0, 0]), bool(said[:, 1].any())


def local(tree: PyTree) -> PyTree:
    """`tree` on one device of this process, where every device has all of it."""

    def here(leaf: jax.Array) -> jax.Array:
        alike = leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) > 1
        return leaf.addressable_data(0) if alike else leaf

    return jax.tree.map(here, tree)
