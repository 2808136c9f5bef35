"""The two ways in which data reaches `train`: as arrays, or batch after batch, as a stream.

Each is a function `advance(record, records)`: from the record's state it takes the steps of so many
entries of history, and adds what it reached to the record, whatever stops it.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from fgd._checks import PyTree
from fgd._run.data import Mapped
from fgd._run.fit import one_step, recorded, run
from fgd._run.plan import Plan
from fgd._run.state import Metrics, TrainState
from fgd._run.step import Step, Update
from fgd._train.divergence import DivergedError, fault
from fgd._train.interrupts import wait
from fgd._train.record import Part, Record
from fgd._train.schedule import CAPACITY
from fgd._trees import count_rows, host, leaves, mismatch, require_fit, require_numbers
from fgd.parallel._placement import AXIS, block_on_cpu, split, within

Advance = Callable[[Record, int], None]

_ROWS_AHEAD = 256  # steps whose row numbers are computed at a time
_IN_FLIGHT = 8  # steps of a stream that are dispatched before the first of them is waited for


def of_arrays(step: Step, data: PyTree, plan: Plan, check: bool) -> Advance:
    """One compiled call for all of the steps, however many they are."""
    program = step.program(_many, static_argnames="plan")

    def call(state: TrainState, records: int) -> tuple[TrainState, Part]:
        with within(plan.mesh):
            state, history = wait(program(state, data, np.int32(records), plan=plan))
        # Copies: a view would keep the whole buffer.
        return state, {name: np.array(np.asarray(x)[:records]) for name, x in history.items()}

    def advance(record: Record, records: int) -> None:
        before = record.state
        state, part = call(before, records)
        what = fault(plan, state, part) if check else ""
        if not what:
            record.add(state, part, records * plan.record_every)
            return
        # By the law of composition a shorter call gives what this one passed through.
        finite, beyond = 0, records
        while beyond - finite > 1:
            middle = (finite + beyond) // 2
            if fault(plan, *call(before, middle)):
                beyond = middle
            else:
                finite = middle
        at = int(before.step) + beyond * plan.record_every
        what = fault(plan, *call(before, beyond))
        record.add(*call(before, finite), finite * plan.record_every)
        raise DivergedError(what, at)

    return advance


def of_stream(
    step: Step,
    batches: Iterator[PyTree],
    plan: Plan,
    total: int,
    check: bool,
    saw: Callable[[PyTree], None] | None,
) -> Advance:
    """A compiled call for every step; the device works while the next batches are read and sent."""
    program = step.program(_one, static_argnames="plan")
    first: list[PyTree] = []  # the first batch, like which all others must be

    def next_batch(taken: int) -> PyTree:
        try:
            given = next(batches)
        except StopIteration:
            raise ValueError(f"train: the stream ended after {taken} of {total} steps") from None
        found = leaves("train", "batch", given)
        # Copies, for a loader may fill its buffers again while the device still reads.
        arrays = [_copy(f"train: batch{keystr(path)}", leaf) for path, leaf in found]
        batch = jax.tree.unflatten(jax.tree.structure(given), arrays)
        if not first:
            _check_share(count_rows("train", batch, "batch"), plan)
            first.append(batch)
            if saw is not None:
                saw(batch)
        elif problem := mismatch(first[0], batch):
            raise ValueError(
                f"train: after {taken} steps of the stream, a batch is unlike the first: "
                f"batch{problem}"
            )
        if plan.mesh is None:
            return jax.device_put(batch)
        share = split(plan.mesh)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(share, x), batch)

    def advance(record: Record, records: int) -> None:
        state, taken = record.state, record.done
        history: list[Metrics] = []
        window: list[Metrics] = []  # of the steps since the last entry
        in_flight: deque[Metrics] = deque()
        try:
            while len(history) < records:
                batch = next_batch(taken)
                with within(plan.mesh):
                    state, metrics = block_on_cpu(plan.mesh, program(state, batch, plan=plan))
                taken += 1
                window.append(metrics)
                in_flight.append(metrics)
                if len(in_flight) > _IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                if len(window) == plan.record_every:
                    history.append(_mean(window))
                    window = []
        finally:
            names = history[0] if history else ()
            part = {name: np.array([np.asarray(x[name]) for x in history]) for name in names}
            state = wait(state)
            what = fault(plan, state, part) if check else ""
            if what:  # its batches are gone, so only where it began can be had again
                raise DivergedError(
                    what, _first_fault(record.state, part, plan, taken - record.done)
                )
            record.add(state, part, taken - record.done)

    return advance


def in_order(data: Mapped, plan: Plan, state: TrainState) -> Iterator[PyTree]:
    """The batches that follow a state, as `fit` would take them; read when they are asked for."""
    order: Any = plan.order
    cpu = jax.local_devices(backend="cpu")[0]
    key = jax.device_put(state.key.addressable_data(0), cpu)
    for start in itertools.count(int(state.step), _ROWS_AHEAD):
        with jax.default_device(cpu):
            steps = jnp.arange(_ROWS_AHEAD, dtype=jnp.int32) + start
            several = np.asarray(_rows(order, key, steps))
        for rows in several:
            yield jax.tree.map(lambda x, rows=rows: x[rows], data.arrays)


@partial(jax.jit, static_argnums=0)
def _rows(order: Any, key: jax.Array, steps: jax.Array) -> jax.Array:
    return jax.vmap(order.at, in_axes=(None, 0))(key, steps)


def _first_fault(before: TrainState, part: Part, plan: Plan, steps: int) -> int:
    """The step at which the loss, or else a parameter, was first seen not to be finite."""
    finite = np.isfinite(part.get("loss", np.zeros(0)))
    seen = steps if finite.all() else (int(np.argmin(finite)) + 1) * plan.record_every
    return int(before.step) + seen


def _copy(what: str, leaf: Any) -> np.ndarray:
    array = host(leaf)
    require_numbers(what, array)
    require_fit(what, array)
    return np.array(array)


def _check_share(rows: int, plan: Plan) -> None:
    if plan.mesh is None:
        return
    rows, devices = rows * jax.process_count(), plan.mesh.shape[AXIS]
    if rows % devices:
        raise ValueError(
            f"train: a global batch of {rows} rows does not divide over the {devices} devices of "
            'the mesh\'s axis "data"'
        )


def _many(
    update: Update, state: TrainState, data: PyTree, records: jax.Array, *, plan: Plan
) -> tuple[TrainState, Metrics]:
    """`fit` for a number of records that the program learns when it runs."""
    record = recorded(one_step(update, data, plan), plan)
    _, shapes = jax.eval_shape(record, state, None)
    history = jax.tree.map(lambda x: jnp.zeros(CAPACITY, x.dtype), shapes)

    def body(i: jax.Array, carry: Any) -> Any:
        state, history = carry
        state, metrics = record(state, None)
        return state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

    state, history = jax.lax.fori_loop(0, records, body, (state, history))
    return plan.constrain(state), history


def _one(
    update: Update, state: TrainState, batch: PyTree, *, plan: Plan
) -> tuple[TrainState, Metrics]:
    """`fit` for one step on all of a batch."""
    state, history = run(update, state, batch, plan=plan._replace(record_every=1), records=1)
    return state, {name: values[0] for name, values in history.items()}


@jax.jit
def _mean(window: list[Metrics]) -> Metrics:
    return jax.tree.map(lambda *values: jnp.mean(jnp.stack(values)), *window)
