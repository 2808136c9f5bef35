"""Devices in a mesh, and what lies where on them."""

from typing import Any

from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

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
    return NamedSharding(mesh, P())
