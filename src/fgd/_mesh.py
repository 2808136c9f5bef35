"""Devices in a mesh, and what lies where on them."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from fgd._checks import PyTree, is_concrete

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


def place(mesh: Mesh, tree: PyTree) -> PyTree:
    """`tree` on the devices of `mesh`: as its caller placed it there, or else replicated."""

    def placed(leaf: Any) -> Any:
        if not is_concrete(leaf):
            return leaf
        own = getattr(leaf, "sharding", None)
        spec = P()
        if isinstance(own, NamedSharding) and own.device_set == set(mesh.devices.flat):
            spec = own.spec
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(placed, tree)


def local(tree: PyTree) -> PyTree:
    """`tree` on one device of this process, where every device has all of it."""

    def here(leaf: jax.Array) -> jax.Array:
        alike = leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) > 1
        return leaf.addressable_data(0) if alike else leaf

    return jax.tree.map(here, tree)
