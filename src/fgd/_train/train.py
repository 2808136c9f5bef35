"""`train`: the program around a run. It shows, evaluates, logs and stops; the run is `fit`'s."""

import time
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import jax
from jax.sharding import Mesh

from fgd._checks import PyTree, count, is_concrete, replaced, require_callable
from fgd._run.evaluate import evaluate as evaluated
from fgd._run.plan import Options, Run, Stream, as_data, prepare
from fgd._run.state import TrainState
from fgd._run.step import Step
from fgd._run.supervised import Supervised
from fgd._train.bar import Bar
from fgd._train.feed import of_arrays, of_stream
from fgd._train.interrupts import Interrupts, warn_interrupted
from fgd._train.log import Writer, open_log
from fgd._train.record import Record
from fgd._train.schedule import Pace, Schedule
from fgd._trees import count_rows, leaves, on_device
from fgd.parallel._placement import agree, is_multi_process, local

Evaluate = Callable[[TrainState], dict[str, Any]]
StopWhen = Callable[[TrainState, dict[str, Any]], Any]


@replaced(
    "train", chunk="evaluate_every is the steps between two evaluations; calls pace themselves"
)
def train(
    step: Step,
    state: TrainState,
    data: PyTree | Iterable[PyTree],
    *,
    batch_size: int | None = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    shuffle: bool = True,
    record_every: int = 1,
    mesh: Mesh | None = None,
    evaluate: PyTree | Evaluate = None,
    evaluate_every: int | None = None,
    log: str | PathLike[str] | Writer | Any = None,
    progress: bool | None = None,
    stop_when: StopWhen | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains as `fit` does, and shows progress, evaluates, logs and stops on the way.

    The state and the history are `fit`'s, bit for bit on CPU. The run is a sequence of compiled
    calls of about half a second; one program serves every number of steps, so that a longer or
    second run compiles nothing. Inside `jit`, `vmap` and `grad`, use `fit`.

    Ctrl-C ends the run after the current call with a warning, and what was reached is returned. Any
    error has what was reached as its attributes `state` and `history`.

    Args:
      step, state, batch_size, num_steps, num_epochs, shuffle, record_every, mesh: as in `fit`.
      data: arrays as in `fit`; or a stream, any iterator or loader of equal batches, whose steps
        `num_steps` counts. It is asked for those batches alone, so that an iterator can go on.
        With a mesh of several processes, each one's stream gives its share of every batch.
      evaluate: rows, arrays as `data` is, on which the loss and metrics of a `fgd.supervised` loss
        are evaluated; or a function `evaluate(state) -> {name: value}`. It is done whenever the
        steps completed are a multiple of `evaluate_every`, and at the end.
      evaluate_every: steps between two evaluations; None: an epoch.
      log: where to write every entry of the history, and evaluations as "evaluate/name": a file
        ending in .jsonl or .csv, to which lines are added; a directory for TensorBoard; a function
        of (step, {name: value}); or TensorBoard's own writer. Process 0 writes.
      progress: show a bar with loss and steps per second on standard error; None: if that is a
        terminal.
      stop_when: `stop_when(state, metrics) -> bool`, called when `evaluate` would be, with the
        means since the last time, and under "evaluate" what that returned; True ends the run.

    Returns:
      The state reached, and `fit`'s history as NumPy arrays; with `evaluate` also "evaluate": what
      it returned, stacked, beside "step", the steps completed at each time.

    Raises:
      TypeError, ValueError: as `fit`; rows to evaluate and a loss that is not `fgd.supervised`;
        evaluations between two entries of the history; a stream that ends early or changes its
        shapes.

    Example:
      >>> import fgd, jax
      >>> data = fgd.data.linear(jax.random.key(0), 100)
      >>> train, valid = fgd.data.split(jax.random.key(1), data, 0.8)
      >>> model = fgd.models.linear(1, 1)
      >>> step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.5))
      >>> state = step.init(model.init(0))
      >>> state, history = fgd.train(
      ...     step, state, train, num_steps=9, evaluate=valid, evaluate_every=3
      ... )
      >>> history["evaluate"]["step"].tolist(), history["evaluate"]["loss"].shape
      ([3, 6, 9], (3,))
    """
    data = as_data("train", data)
    options = Options(batch_size, num_steps, num_epochs, shuffle, record_every, mesh)
    arrays = () if isinstance(data, Stream) else data
    known = [leaf for _, leaf in leaves("train", "data", arrays)] + jax.tree.leaves(state)
    if not all(map(is_concrete, known)):
        raise TypeError("train: inside jit, vmap or grad, use fit; train is a program around it")
    run = prepare("train", step, state, data, options)
    look = _look(step, evaluate, stop_when)
    schedule = _schedule(run, look is not None, evaluate_every)
    if is_multi_process(run.plan.mesh) and jax.process_index() > 0:  # process 0 speaks for all
        progress, log = False, None
    with Interrupts() as interrupts, Bar(run.steps, progress) as bar, open_log(log) as write:
        record = Record(run.state, schedule.first, run.plan.record_every, bar, write)
        try:
            _drive(step, run, schedule, record, interrupts, look)
        except BaseException as error:
            _leave(error, record)
            raise
    return record.state, record.history()


def _drive(
    step: Step,
    run: Run,
    schedule: Schedule,
    record: Record,
    interrupts: Interrupts,
    look: Callable[[Record], bool] | None,
) -> None:
    """Call after call, to the end of the run or to what ends it before."""
    mesh, every, pace = run.plan.mesh, run.plan.record_every, Pace()
    if isinstance(run.data, Stream):
        advance = of_stream(step, run.data.batches, run.plan, run.steps)
    else:
        advance = of_arrays(step, run.data, run.plan)
    while True:
        stop_at = schedule.next_stop(record.done)
        records = min((stop_at - record.done) // every, pace.records)
        start = time.perf_counter()
        advance(record, records)
        seconds, asked = agree(mesh, time.perf_counter() - start, interrupts.asked)
        pace.learn(records, seconds)
        if asked and record.done < run.steps:
            warn_interrupted(record.done, run.steps)
            return
        if look is not None and record.done == stop_at:
            _, stop = agree(mesh, 0.0, look(record))
            if stop:
                return
        if record.done >= run.steps:
            return


def _schedule(run: Run, watched: bool, evaluate_every: Any) -> Schedule:
    if evaluate_every is not None:
        evaluate_every = count("train", "evaluate_every", evaluate_every, least=1)
        if not watched:
            raise ValueError(
                f"train: evaluate_every={evaluate_every} says when to evaluate, but there is "
                "neither evaluate nor stop_when"
            )
    elif watched and isinstance(run.data, Stream):
        raise ValueError(
            "train: a stream has no epochs; give evaluate_every, the steps between two evaluations"
        )
    every = evaluate_every or (run.plan.steps_per_epoch if watched else None)
    schedule = Schedule(int(run.state.step), run.steps, every)
    what = "evaluate_every" if evaluate_every else "an epoch; give evaluate_every"
    schedule.check(run.plan.record_every, what)
    return schedule


def _look(step: Step, evaluate: Any, stop_when: Any) -> Callable[[Record], bool] | None:
    """Evaluates what a run has reached, and asks whether that is enough; None: nothing is asked."""
    if stop_when is not None:
        require_callable("train", "stop_when", stop_when, " of (state, metrics)")
    if evaluate is None and stop_when is None:
        return None
    measure = None if evaluate is None else _measure(step, evaluate)

    def look(record: Record) -> bool:
        metrics: dict[str, Any] = record.means()
        if measure is not None:
            metrics["evaluate"] = record.evaluated(measure(local(record.state)))
        return stop_when is not None and bool(stop_when(record.state, metrics))

    return look


def _measure(step: Step, evaluate: Any) -> Evaluate:
    if callable(evaluate):
        function: Any = evaluate
        return function
    if not isinstance(step.loss_fn, Supervised):
        raise TypeError(
            "train: evaluate is rows, but the loss of this step does not know its values row by "
            "row; make it with fgd.supervised, or give a function evaluate(state) -> dict"
        )
    count_rows("train", evaluate, "evaluate")
    rows = on_device("train", "evaluate", evaluate)
    return lambda state: evaluated(step.loss_fn, state, rows)


def _leave(error: BaseException, record: Record) -> None:
    """Leaves what was reached with the caller, whatever ended the run."""
    vars(error).update(state=record.state, history=record.history())
    error.add_note("The error's attributes `state` and `history` are what was reached before it.")
