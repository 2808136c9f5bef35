"""Which points of a sweep are computed side by side, and which one batch after the other."""

import math
from typing import NamedTuple


class Plan(NamedTuple):
    """How the points of a product of axes are computed.

    Attributes:
      outer: names of axes mapped together: a batch of points after the other, on every device.
      inner: names of axes mapped by a `vmap` each, within that of the name before.
      batches, size: on each device, and how many points of `outer` are in one.
    """

    outer: tuple[str, ...]
    inner: tuple[str, ...]
    batches: int
    size: int

    @property
    def vmaps(self) -> list[tuple[str, ...]]:
        """What each maps, outermost first."""
        return [self.outer] * (self.size > 1) + [(name,) for name in self.inner]


def plan_for(sizes: dict[str, int], max_parallel: int | None, devices: int | None) -> Plan:
    """Args: max_parallel: runs side by side on each device; devices: None without a mesh."""
    outer, inner = (), tuple(sizes)
    while inner and (devices or math.prod(sizes[n] for n in inner) > (max_parallel or math.inf)):
        outer, inner = (*outer, inner[0]), inner[1:]
    # Every device takes as many batches, of one size.
    per_device = -(-math.prod(sizes[n] for n in outer) // (devices or 1))
    together = math.prod(sizes[n] for n in inner)
    batches = -(-per_device // (max_parallel // together)) if max_parallel else 1
    return Plan(outer, inner, batches, -(-per_device // batches))
