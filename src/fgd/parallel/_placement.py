"""Devices in a mesh, and what lies where on them."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jax.tree_util import keystr

from fgd import _jax
from fgd._checks import PyTree, describe, is_concrete
from fgd._keys import has_keys

AXIS = "data"


def data_mesh(caller: str, mesh: Any) -> Mesh:
    """`mesh` with axes of the Auto type, whatever they were; it must have one named "data"."""
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{caller}: mesh must be a jax.sharding.Mesh, got {describe(mesh)}; jax.make_mesh("
            '(n,), ("data",)) makes one of n devices'
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


def is_multi_process(mesh: Mesh | None) -> TypeGuard[Mesh]:
    """Whether several processes share a run on `mesh`."""
    return mesh is not None and mesh.is_multi_process


def require_devices_in_common(caller: str, **trees: PyTree) -> None:
    """ValueError, without a mesh, for arrays that their caller put on different devices."""

    def chosen(leaf: Any) -> bool:
        return is_concrete(leaf) and leaf.committed

    if not any(map(chosen, jax.tree.leaves(trees))):
        return
    places = {
        f"{name}{keystr(path)}": ", ".join(sorted(map(str, leaf.devices())))
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if chosen(leaf)
    }
    (first, there), *others = places.items()
    for other, where in others:
        if where != there:
            raise ValueError(
                f"{caller}: {first} is on {there} but {other} is on {where}; jax.device_put one "
                "of them, or give mesh"
            )


def place(caller: str, mesh: Mesh, tree: PyTree) -> PyTree:
    """`tree` on the devices of `mesh`: as its caller placed it there, or else replicated."""

    def placed(leaf: Any) -> Any:
        if not is_concrete(leaf):
            return leaf
        if has_keys(leaf):
            data = placed(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        own = getattr(leaf, "sharding", None)
        if isinstance(own, NamedSharding) and own.device_set == set(mesh.devices.flat):
            return jax.device_put(leaf, NamedSharding(mesh, own.spec))
        if not is_multi_process(mesh):
            return jax.device_put(leaf, replicated(mesh))
        whole = np.asarray(leaf)
        return jax.make_array_from_process_local_data(replicated(mesh), whole, whole.shape)

    if is_multi_process(mesh):
        _require_equal(caller, tree)
    return jax.tree.map(placed, tree)


def specs(tree: PyTree) -> tuple[P | None, ...]:
    """How each leaf of a placed tree is split; None where that can't be known."""
    return tuple(x.sharding.spec if is_concrete(x) else None for x in jax.tree.leaves(tree))


def constrain(mesh: Mesh, specs: tuple[P | None, ...], tree: PyTree) -> PyTree:
    """`tree`, inside a program, split as `specs` says: XLA may not split it otherwise."""
    leaves, treedef = jax.tree.flatten(tree)
    constrained = [
        leaf if spec is None else jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))
        for leaf, spec in zip(leaves, specs, strict=True)
    ]
    return treedef.unflatten(constrained)


def _require_equal(caller: str, tree: PyTree) -> None:
    """ValueError where processes bring values of their own, from which their runs would diverge."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_concrete(leaf) and getattr(leaf, "is_fully_addressable", True):
            whole = np.asarray(jax.random.key_data(leaf) if has_keys(leaf) else leaf)
            digest.update(f"{keystr(path)} {whole.dtype} {whole.shape}".encode())
            digest.update(whole.tobytes())
    digests = _jax.all_gather(np.frombuffer(digest.digest(), np.uint8))
    if (digests != digests[0]).any():
        raise ValueError(
            f"{caller}: state and data must be the same on every process, but differ on processes "
            f"{np.flatnonzero((digests != digests[0]).any(axis=1)).tolist()} from those on process "
            "0; give each the whole of them, or train on a stream of each one's own share"
        )


def block_on_cpu(mesh: Mesh | None, results: PyTree) -> PyTree:
    """`results`; computed already, where several processes share a mesh of CPUs.

    There a message to another process occupies one of few threads until it is answered. Two
    programs at once may send theirs in different orders on two processes, which then deadlock.
    """
    if is_multi_process(mesh) and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready([x for x in jax.tree.leaves(results) if is_concrete(x)])
    return results


def agree(mesh: Mesh | None, seconds: float, stop: bool) -> tuple[float, bool]:
    """The same on every process: the seconds of process 0, and whether any of them wants to stop.

    They must decide alike, or one would wait for ever in a step that another does not take.
    """
    if not is_multi_process(mesh):
        return seconds, stop
    all_of_them = _jax.all_gather(np.array([seconds, stop], np.float32))
    return float(all_of_them[0, 0]), bool(all_of_them[:, 1].any())


def is_spread(tree: PyTree) -> bool:
    """Whether some array of a tree lies on several processes, which then act together."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return any(not leaf.is_fully_addressable for leaf in arrays)


def on_all(spread: bool, *flags: bool) -> tuple[bool, ...]:
    """Each flag, true where it is on any process of a spread run."""
    if not spread:
        return flags
    return tuple(bool(x) for x in _jax.all_gather(np.array(flags)).any(axis=0))


def attempt(caller: str, spread: bool, action: Callable[[], None] | None) -> None:
    """`action()`; all processes of a spread run learn of it if it fails on one of them."""
    failure = None
    try:
        if action is not None:
            action()
    except Exception as error:
        failure = error
    (failed,) = on_all(spread, failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise RuntimeError(f"{caller}: it failed on another process; see what that one wrote")


def local(tree: PyTree) -> PyTree:
    """`tree` on one device of this process, where every device has all of it."""

    def on_one(leaf: jax.Array) -> jax.Array:
        alike = leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) > 1
        return leaf.addressable_data(0) if alike else leaf

    return jax.tree.map(on_one, tree)
