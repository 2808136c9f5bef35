"""The two ways in which data reaches `train`: whole, as arrays, or batch after batch, as a stream.

Each is a function `advance(state, records) -> (state, history, problem)`: it takes the steps of so
many entries of history and uses up the state it was given. A problem, such as a stream that ended,
comes back beside what was reached before it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import count_rows, mismatch
from fgd._fit import recorded, run
from fgd._mesh import AXIS, settled, split, within
from fgd._plan import Plan
from fgd._step import Step, Update
from fgd._types import Metrics, PyTree, TrainState

History = dict[str, np.ndarray]
Advance = Callable[[TrainState, int], tuple[TrainState, History, BaseException | None]]

CAPACITY = 2**16  # entries of history that one compiled call can make
AHEAD = 64  # steps that a stream may be ahead of the device
SECONDS = 0.5  # what a call should take, so that progress is seen and interrupts heard


def is_stream(data: Any) -> bool:
    """Whether `data` gives batches one after the other; TypeError for a list of batches."""
    if isinstance(data, list) and data and all(isinstance(x, tuple | list | dict) for x in data):
        raise TypeError(
            f"train: data is a list of {len(data)} {type(data[0]).__name__}s; give arrays whose "
            "leading axis is rows, or iter() of a list of batches to train on each in turn"
        )
    is_leaf = not hasattr(data, "shape") and jax.tree_util.all_leaves([data])
    return is_leaf and hasattr(data, "__iter__") and not isinstance(data, str)


def of_arrays(step: Step, data: PyTree, plan: Plan) -> Advance:
    """One compiled call for all of the steps, however many they are."""
    program = step.program(_many, static_argnames="plan", donate_argnums=0)

    def advance(state: TrainState, records: int) -> Any:
        with within(plan.mesh):
            state, history = program(state, data, np.int32(records), plan=plan)
        # Copies: a view would keep the whole buffer.
        return state, {name: np.array(x)[:records].copy() for name, x in history.items()}, None

    return advance


def of_stream(step: Step, batches: Iterator[PyTree], plan: Plan) -> Advance:
    """A compiled call for every step; the device works while the next batches are read and sent."""
    program = step.program(_one, static_argnames="plan", donate_argnums=0)
    likeness: list[PyTree] = []

    def next_batch() -> PyTree:
        # Copies, for a loader may fill its buffers again while the device still reads.
        batch = next(batches)
        if not likeness:
            _check_share(count_rows("train", batch, "batch"), plan)
        batch = jax.tree.map(lambda x: np.asarray(x).copy(), batch)
        if not likeness:
            likeness.append(batch)
        if problem := mismatch(likeness[0], batch):
            raise ValueError(f"a batch is unlike the first: batch{problem}")
        if plan.mesh is None:
            return jax.device_put(batch)
        share = split(plan.mesh)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(share, x), batch)

    def advance(state: TrainState, records: int) -> Any:
        history, window, problem = [], [], None
        while len(history) < records:
            try:
                batch = next_batch()
            except (Exception, KeyboardInterrupt) as error:
                problem = error
                break
            with within(plan.mesh):
                state, metrics = settled(plan.mesh, program(state, batch, plan=plan))
            window.append(metrics)
            if len(window) == plan.record_every:
                history.append(_mean(window))
                window = []
        names = history[0] if history else {"loss": None}
        values = {name: np.array([np.asarray(m[name]) for m in history]) for name in names}
        return state, values, problem

    return advance


def _check_share(rows: int, plan: Plan) -> None:
    if plan.mesh is None:
        return
    rows, devices = rows * jax.process_count(), plan.mesh.shape[AXIS]
    if rows % devices:
        raise ValueError(
            f"a global batch of {rows} rows does not divide over the {devices} devices of the "
            'mesh\'s axis "data"'
        )


def _many(
    update: Update, state: TrainState, data: PyTree, records: jax.Array, *, plan: Plan
) -> tuple[TrainState, Metrics]:
    """`fit` for a number of records that the program learns when it runs."""
    record = recorded(update, data, plan)
    _, shapes = jax.eval_shape(record, state, None)
    history = jax.tree.map(lambda x: jnp.zeros(CAPACITY, x.dtype), shapes)

    def body(i: jax.Array, carry: Any) -> Any:
        state, history = carry
        state, metrics = record(state, None)
        return state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

    return jax.lax.fori_loop(0, records, body, (state, history))


def _one(
    update: Update, state: TrainState, batch: PyTree, *, plan: Plan
) -> tuple[TrainState, Metrics]:
    """`fit` for one step on all of a batch."""
    state, history = run(update, state, batch, plan=plan._replace(record_every=1), records=1)
    return state, {name: values[0] for name, values in history.items()}


@jax.jit
def _mean(window: list[Metrics]) -> Metrics:
    return jax.tree.map(lambda *values: jnp.mean(jnp.stack(values)), *window)


class Pace:
    """How many records a call should make: as many as `SECONDS` allow, found by growing."""

    def __init__(self, most: int, *, fixed: bool) -> None:
        self.records = most if fixed else 1
        self._most, self._fixed, self._first = most, fixed, True

    def saw(self, records: int, seconds: float) -> None:
        """Learns from a call; the first one compiled, so its time says nothing."""
        if self._fixed:
            return
        fitting = int(records * SECONDS / max(seconds, 1e-9))
        grown = 8 * records if self._first else min(fitting, 8 * records)
        self.records, self._first = max(1, min(grown, self._most)), False
