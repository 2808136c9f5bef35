"""What a run will do, settled from its arguments before anything is compiled."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P

from fgd._checks import count, count_rows, is_concrete
from fgd._mesh import AXIS, data_mesh, hold, replicated, split
from fgd._step import Step
from fgd._types import PyTree, TrainState
from fgd.data._shuffle import shuffle as shuffled


class Plan(NamedTuple):
    """The static part of a run: with the shapes of state and data, it decides the program."""

    rows: int
    batch_size: int | None
    shuffle: bool
    record_every: int
    mesh: Mesh | None = None
    specs: tuple[P | None, ...] = ()  # of the state on the mesh

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the data; a full batch is an epoch."""
        return 1 if self.batch_size is None else self.rows // self.batch_size

    def batch(self, state: TrainState, data: PyTree) -> PyTree:
        """The rows of `data` that the step after `state` sees: a function of (key, step)."""
        batch = data if self.batch_size is None else self._gather(self.batch_size, state, data)
        return (
            batch
            if self.mesh is None
            else jax.lax.with_sharding_constraint(batch, split(self.mesh))
        )

    def hold(self, state: TrainState) -> TrainState:
        """`state` on the devices where its caller placed it."""
        return state if self.mesh is None else hold(self.mesh, self.specs, state)

    def _gather(self, size: int, state: TrainState, data: PyTree) -> PyTree:
        within = jnp.arange(size, dtype=jnp.int32)
        if self.shuffle:
            epoch, i = jnp.divmod(state.step, self.steps_per_epoch)
            rows = shuffled(state.key, epoch, i * size + within, self.rows)
        else:
            start = _times_modulo(state.step, size, self.rows)
            rows = (start + within.astype(jnp.uint32)) % self.rows
        if self.mesh is not None:  # every device finds all of the rows' numbers, and asks no other
            rows = jax.lax.with_sharding_constraint(rows, replicated(self.mesh))
        return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), data)


def plan_run(
    caller: str,
    step: Any,
    state: Any,
    data: PyTree,
    batch_size: Any,
    num_steps: Any,
    num_epochs: Any,
    shuffle: Any,
    record_every: Any,
    mesh: Any,
) -> tuple[Plan, int]:
    """Checks the arguments of `fit` and `train`; returns the plan and the number of steps.

    No data: it comes as a stream, batch by batch.
    """
    if not isinstance(step, Step):
        raise TypeError(f"{caller}: step must come from fgd.train_step, got {step!r}")
    if not isinstance(state, TrainState):
        raise TypeError(f"{caller}: state must come from step.init(params), got {state!r}")
    if data is None:
        for name, value in (("batch_size", batch_size), ("num_epochs", num_epochs)):
            if value is not None:
                raise ValueError(
                    f"{caller}: {name}={value} is for arrays, but data is a stream: its batches "
                    "are as they come, and num_steps counts them"
                )
    rows = 0 if data is None else count_rows(caller, data)
    if batch_size is not None:
        batch_size = count(caller, "batch_size", batch_size, least=1)
        if batch_size > rows:
            raise ValueError(
                f"{caller}: batch_size={batch_size} is larger than the data's {rows} rows; "
                "use batch_size=None for full-batch descent"
            )
    if not isinstance(shuffle, bool):
        raise TypeError(f"{caller}: shuffle must be True or False, got {shuffle!r}")
    record_every = count(caller, "record_every", record_every, least=1)
    mesh = None if mesh is None else data_mesh(caller, mesh)
    if mesh and data is not None and (batch_size or rows) % mesh.shape[AXIS]:
        given = f"batch_size={batch_size}" if batch_size else f"a batch of all {rows} rows"
        raise ValueError(
            f"{caller}: {given} does not divide over the {mesh.shape[AXIS]} devices of the mesh's "
            'axis "data"'
        )
    plan = Plan(rows, batch_size, shuffle, record_every, mesh)
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(
            f"{caller}: give exactly one of num_steps and num_epochs, "
            f"got num_steps={num_steps}, num_epochs={num_epochs}"
        )
    if num_steps is not None:
        total = count(caller, "num_steps", num_steps, least=0)
    else:
        total = count(caller, "num_epochs", num_epochs, least=0) * plan.steps_per_epoch
    if total % record_every:
        raise ValueError(
            f"{caller}: record_every={record_every} does not divide the run's {total} steps"
        )
    done = _completed(state.step)
    if done + total >= 2**31:
        raise ValueError(
            f"{caller}: {total} steps after step {done} would pass 2³¹ − 1, where the counter ends"
        )
    return plan, total


def _completed(step: Any) -> int:
    """The steps behind a run, 0 while they can't be known: traced, mapped, or not computed yet.

    (Waiting for them would make a run start only when the one before it has ended.)
    """
    known = is_concrete(step) and step.ndim == 0 and step.is_ready()
    return int(step) if known else 0


def _times_modulo(a: jax.Array, b: int, n: int) -> jax.Array:
    """a · b mod n in 32 bits, for n < 2³¹: Horner's rule over the bits of b."""
    n_, a_ = jnp.uint32(n), a.astype(jnp.uint32) % jnp.uint32(n)
    product = jnp.uint32(0)
    for bit in f"{b:b}":
        product = 2 * product % n_
        if bit == "1":
            product = (product + a_) % n_
    return product
