"""Devices in a mesh, and what lies where on them."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jax.tree_util import keystr

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


def place(mesh: Mesh, tree: PyTree) -> PyTree:
    """`tree` on the devices of `mesh`: as its caller placed it there, or else replicated.

    Where several processes share the mesh, each must bring the same values.
    """

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


def block_on_cpu(mesh: Mesh | None, results: PyTree) -> PyTree:
    """`results`; computed already, where several processes share a mesh of CPUs.

    There a message to another process occupies one of few threads until it is answered. Two
    programs at once may send theirs in different orders on two processes, which then deadlock.
    """
    if is_multi_process(mesh) and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready([x for x in jax.tree.leaves(results) if is_concrete(x)])
    return results


def agree(mesh: Mesh | None, seconds: float, *flags: bool) -> tuple[float, *tuple[bool, ...]]:
    """The same on every process: the seconds of the first, and of each flag whether any has it.

    They must decide alike, or one would wait for ever in a step that another does not take.
    """
    if not is_multi_process(mesh):
        return seconds, *flags
    rows = np.stack([*gather(mesh, np.array([seconds, *flags], np.float32)).values()])
    return float(rows[0, 0]), *(bool(rows[:, i].any()) for i in range(1, 1 + len(flags)))


def gather(mesh: Mesh, value: np.ndarray) -> dict[int, np.ndarray]:
    """The values of all processes that share `mesh`, of one shape, by the number of the process."""
    first: dict[int, Any] = {}
    for device in mesh.devices.flat:
        first.setdefault(device.process_index, device)
    processes = sorted(first)
    line = Mesh(np.array([first[process] for process in processes]), (AXIS,))
    rows = jax.make_array_from_process_local_data(split(line), value[None])
    with within(line):
        everyone = np.asarray(jax.jit(_unchanged, out_shardings=replicated(line))(rows))
    return dict(zip(processes, everyone, strict=True))


def _unchanged(x: jax.Array) -> jax.Array:
    return x


def shared_mesh(tree: PyTree) -> Mesh | None:
    """The mesh of the processes among which a tree is spread; None: this one has all of it."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
    return None


def leads(mesh: Mesh | None) -> bool:
    """Whether this process acts for all that share `mesh`."""
    everyone = [jax.process_index()] if mesh is None else participants(mesh)
    return jax.process_index() == everyone[0]


def participants(mesh: Mesh) -> list[int]:
    """The processes that share a mesh, in order."""
    return sorted({device.process_index for device in mesh.devices.flat})


def attempt(caller: str, mesh: Mesh | None, action: Callable[[], None] | None) -> None:
    """`action()`; all processes that share `mesh` learn of it if it fails on one of them."""
    failure = None
    try:
        if action is not None:
            action()
    except Exception as error:
        failure = error
    _, failed = agree(mesh, 0.0, failure is not None)
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
