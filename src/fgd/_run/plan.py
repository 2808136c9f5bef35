"""What is settled before a run is compiled: its plan, and where its state and its data lie."""

from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec as P

from fgd import _jax
from fgd._checks import PyTree, count, describe, is_concrete
from fgd._run.alike import require_same_run, same_stream
from fgd._run.data import Mapped, Stream, arrays_of
from fgd._run.order import Order
from fgd._run.state import TrainState, require_state
from fgd._run.step import Step
from fgd._run.supervised import check_weights
from fgd._trees import count_rows, on_device
from fgd.parallel._placement import (
    AXIS,
    constrain,
    data_mesh,
    is_multi_process,
    place,
    replicated,
    require_devices_in_common,
    specs,
    split,
)


class Options(NamedTuple):
    """The arguments that `fit` and `train` share, as they were given.

    And `looks`: what `train` does between calls, at which processes must meet.
    """

    batch_size: Any = None
    num_steps: Any = None
    num_epochs: Any = None
    shuffle: Any = True
    record_every: Any = 1
    mesh: Any = None
    looks: Any = None


class Plan(NamedTuple):
    """The static part of a run: with the shapes of state and data, it decides the program.

    Attributes:
      order: the order in which steps visit rows; None: every step sees all of what it is given.
      record_every: steps between two entries of the history.
      mesh: the devices of the run, or None.
      specs: how each leaf of the state is split over the mesh.
    """

    order: Order | None = None
    record_every: int = 1
    mesh: Mesh | None = None
    specs: tuple[P | None, ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which all rows are visited; a full batch is an epoch."""
        return 1 if self.order is None else self.order.steps_per_epoch

    def batch(self, state: TrainState, data: PyTree) -> PyTree:
        """What the step after `state` sees of `data`."""
        if self.order is not None:
            rows = self.order.at(state.key, state.step)
            if self.mesh is not None:  # every device computes all row numbers and asks no other
                rows = jax.lax.with_sharding_constraint(rows, replicated(self.mesh))
            rows = checkpoint_name(rows, "rows")  # kept for the derivative; gathered again
            data = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), data)
        if self.mesh is None:
            return data
        return jax.lax.with_sharding_constraint(data, split(self.mesh))

    def constrain(self, state: TrainState) -> TrainState:
        """`state`, inside the program, on the devices where its caller placed it."""
        return state if self.mesh is None else constrain(self.mesh, self.specs, state)


class Run(NamedTuple):
    """A run that is ready to be compiled.

    Attributes:
      plan: its static part.
      state, data: on the devices of the run, as arrays of JAX's; but for what is read as it comes.
      steps: how many to take.
    """

    plan: Plan
    state: TrainState
    data: PyTree | Stream | Mapped
    steps: int


def prepare(caller: str, step: Any, state: Any, data: Any, options: Options) -> Run:
    """Checks the arguments of `fit` and `train`, and places state and data.

    Raises:
      TypeError, ValueError: an argument makes no sense; says which.
      RuntimeError: this process was forked from one in which JAX was at work.
    """
    if _jax.was_forked():
        raise RuntimeError(
            f"{caller}: this process was forked from one in which JAX was at work, and would wait "
            'for ever; start it by multiprocessing.get_context("spawn") or "forkserver"'
        )
    if not isinstance(step, Step):
        raise TypeError(f"{caller}: step must come from fgd.train_step, got {describe(step)}")
    require_state(caller, state)
    streamed, as_it_comes = isinstance(data, Stream), isinstance(data, Stream | Mapped)
    if isinstance(data, Stream):
        _refuse_for_streams(caller, options)
        order = None
    else:
        arrays = arrays_of(data)
        order = _order(caller, arrays, options)
        check_weights(caller, step.loss_fn, arrays)
    record_every = count(caller, "record_every", options.record_every, least=1)
    mesh = None if options.mesh is None else data_mesh(caller, options.mesh)
    plan = Plan(order, record_every, mesh)
    if mesh is not None and not streamed:
        _check_share(caller, mesh, order, data)
    steps = _steps(caller, plan, options)
    state = on_device(caller, "state", state)
    _check_counter(caller, state.step, steps)
    if not as_it_comes:
        data = on_device(caller, "data", data)
    if mesh is None:
        require_devices_in_common(caller, state=state, data=() if as_it_comes else data)
        return Run(plan, state, data, steps)
    if is_multi_process(mesh) and isinstance(data, Mapped):
        raise ValueError(
            f"{caller}: memory-mapped data on a mesh of several processes: give each process a "
            "stream of its share of every batch"
        )
    if is_multi_process(mesh) and not _jax.is_tracing():
        known = {
            "num_steps": steps,
            "record_every": record_every,
            "step": int(state.step),
            "devices": dict(mesh.shape),
            **(options.looks or {}),
        }
        if isinstance(data, Stream):
            data = data._replace(batches=same_stream(step, state, data.batches, mesh, known))
        else:
            require_same_run(caller, step, state, data, order, mesh, known)
    state = place(mesh, state)
    data = data if as_it_comes else place(mesh, data)
    return Run(plan._replace(specs=specs(state)), state, data, steps)


def _refuse_for_streams(caller: str, options: Options) -> None:
    for name in ("batch_size", "num_epochs"):
        if (value := getattr(options, name)) is not None:
            raise ValueError(
                f"{caller}: {name}={value} is for arrays, but data is a stream: its batches "
                "are as they come, and num_steps counts them"
            )


def _order(caller: str, data: PyTree, options: Options) -> Order | None:
    rows = count_rows(caller, data)
    if not isinstance(options.shuffle, bool):
        raise TypeError(f"{caller}: shuffle must be True or False, got {describe(options.shuffle)}")
    if options.batch_size is None:
        return None
    batch_size = count(caller, "batch_size", options.batch_size, least=1)
    if batch_size > rows:
        raise ValueError(
            f"{caller}: batch_size={batch_size} is larger than the data's {rows} rows; "
            "use batch_size=None for full-batch descent"
        )
    return Order(rows, batch_size, options.shuffle)


def _check_share(caller: str, mesh: Mesh, order: Order | None, data: PyTree) -> None:
    rows = count_rows(caller, data)
    if (order.batch_size if order else rows) % mesh.shape[AXIS]:
        given = f"batch_size={order.batch_size}" if order else f"a batch of all {rows} rows"
        raise ValueError(
            f"{caller}: {given} does not divide over the {mesh.shape[AXIS]} devices of the mesh's "
            'axis "data"'
        )


def _steps(caller: str, plan: Plan, options: Options) -> int:
    num_steps, num_epochs = options.num_steps, options.num_epochs
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(
            f"{caller}: give exactly one of num_steps and num_epochs, "
            f"got num_steps={num_steps}, num_epochs={num_epochs}"
        )
    if num_steps is not None:
        steps = count(caller, "num_steps", num_steps, least=0)
    else:
        steps = count(caller, "num_epochs", num_epochs, least=0) * plan.steps_per_epoch
    if steps % plan.record_every:
        raise ValueError(
            f"{caller}: record_every={plan.record_every} does not divide the run's {steps} steps"
        )
    return steps


def _check_counter(caller: str, step: jax.Array, steps: int) -> None:
    """ValueError if the counter would pass its end; traced or mapped, it can't be looked at.

    To look is to wait for the run before this one, which makes its state.
    """
    done = int(step) if is_concrete(step) and step.ndim == 0 else 0
    if done + steps >= 2**31:
        raise ValueError(
            f"{caller}: {steps} steps after step {done} would pass 2³¹ − 1, where the counter ends"
        )
