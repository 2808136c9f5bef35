"""`train`: the program around a run. It shows, evaluates, logs and stops; the run is `fit`'s."""

import signal
import time
from collections.abc import Iterable
from os import PathLike
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from fgd import _jax
from fgd._checks import PyTree, is_concrete, replaced
from fgd._run.data import Mapped, Stream, as_data, as_mapped
from fgd._run.plan import Options, Run, prepare
from fgd._run.state import TrainState
from fgd._run.step import Step
from fgd._train.bar import Bar
from fgd._train.divergence import DivergedError, fault
from fgd._train.feed import in_order, of_arrays, of_stream
from fgd._train.interrupts import Interrupts, end
from fgd._train.keeping import facts, fitting
from fgd._train.log import Writer, open_log
from fgd._train.look import Evaluate, Look, StopWhen, look_of
from fgd._train.record import Record
from fgd._train.saver import Saver, saving
from fgd._train.schedule import Pace, Schedule, schedule_of
from fgd._trees import leaves
from fgd.checkpoint._checkpoints import Checkpoints
from fgd.parallel._placement import agree, is_multi_process
from fgd.parallel._watch import together


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
    checkpoints: Checkpoints | None = None,
    log: str | PathLike[str] | Writer | Any = None,
    progress: bool | None = None,
    stop_when: StopWhen | None = None,
    on_divergence: Literal["raise", "continue"] = "raise",
) -> tuple[TrainState, dict[str, Any]]:
    """Trains as `fit` does, and shows progress, evaluates, logs and stops on the way.

    The state and the history are `fit`'s, bit for bit on CPU. The run is a sequence of compiled
    calls of about half a second; one program serves every number of steps, so that a longer or
    second run compiles nothing. Inside `jit`, `vmap` and `grad`, use `fit`.

    Ctrl-C ends the run after the current call with a warning, and what was reached is returned; in
    its last call it raises KeyboardInterrupt. A second one does so as soon as it can: what JAX
    computes goes on. SIGTERM ends the run likewise, and then the process, by SystemExit(143).
    Whatever error ends it has what was reached as its attributes `state` and `history`.

    Args:
      step, state, batch_size, num_steps, num_epochs, shuffle, record_every, mesh: as in `fit`.
      data: arrays as in `fit`, of which memory-mapped ones (`np.load(path, mmap_mode="r")`) stay in
        their file: with a batch size, each step reads its rows, those that `fit` would see; or a
        stream, any iterator or loader of equal batches, whose steps `num_steps` counts. It is asked
        for those batches alone, so that an iterator can go on; a loader is iterated over again
        when it ends, as for epochs. With a mesh of several processes, each one's stream gives its
        share of every batch.
      evaluate: rows, arrays as `data` is, on which the loss and metrics of a `fgd.supervised` loss
        are evaluated; or a function `evaluate(state) -> {name: value}`. It is done whenever the
        steps completed are a multiple of `evaluate_every`, and at the end.
      evaluate_every: steps between two evaluations; None: an epoch.
      checkpoints: where to keep states on disk, `fgd.Checkpoints(directory)`. If it has some of
        this run, the run goes on from the newest, and state and history are those of a run that
        was never ended.
      log: where to write every entry of the history, and evaluations as "evaluate/name": a file
        ending in .jsonl or .csv, to which lines are added; a directory for TensorBoard; a function
        of (step, {name: value}); or TensorBoard's own writer. Process 0 writes.
      progress: show a bar with loss and steps per second on standard error; None: if that is a
        terminal.
      stop_when: `stop_when(state, metrics) -> bool`, called when `evaluate` would be, with the
        means since the last time, and under "evaluate" what that returned; True ends the run.
        `fgd.Patience` is one. Whatever has `get_state`, giving what JSON can hold, and `set_state`
        goes on from checkpoints with what it remembered.
      on_divergence: what to do when loss or parameters are no longer finite, at which the run looks
        after each call: "raise" fgd.DivergedError, or "continue".

    Returns:
      The state reached, and `fit`'s history as NumPy arrays; with `evaluate` also "evaluate": what
      it returned, stacked, beside "step", the steps completed at each time.

    Raises:
      TypeError, ValueError: as `fit`; rows to evaluate and a loss that is not `fgd.supervised`;
        evaluations or checkpoints between two entries of the history; a stream that ends early or
        changes its shapes; checkpoints of another run.
      DivergedError: the loss or the parameters are not finite.
      OSError: a checkpoint or a log can't be written, or another run has the directory.

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
    looks = facts(
        mesh,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        stop_when=stop_when,
        checkpoints=checkpoints,
        on_divergence=on_divergence,
    )
    options = Options(batch_size, num_steps, num_epochs, shuffle, record_every, mesh, looks)
    with together("train", mesh):
        data = as_data("train", data)
        arrays = () if isinstance(data, Stream) else data
        data = as_mapped(data, batch_size)
        known = [leaf for _, leaf in leaves("train", "data", arrays)] + jax.tree.leaves(state)
        if _jax.is_tracing() or not all(map(is_concrete, known)):
            raise TypeError(
                "train: inside jit, vmap or grad, use fit; train is a program around it"
            )
        if on_divergence not in ("raise", "continue"):
            raise ValueError(
                f'train: on_divergence must be "raise" or "continue", got {on_divergence!r}'
            )
        run = prepare("train", step, state, data, options)
        look = look_of(step, run.state, evaluate, stop_when)
        schedule = schedule_of(run, look is not None, evaluate_every)
        checkpoints = fitting(checkpoints, step, run, evaluate, stop_when)
        if is_multi_process(run.plan.mesh) and jax.process_index() > 0:  # 0 speaks for all
            progress, log = False, None
        record = Record(run.state, schedule.first, run.plan.record_every)
        try:
            with Interrupts() as interrupts, saving(checkpoints, step, run, stop_when) as saver:
                place, resumed = saver.resume(record) if saver is not None else (None, None)
                with (
                    open_log(log, place, resumed) as record.log,
                    Bar(run.steps, progress, record.done) as record.bar,
                ):
                    check = on_divergence == "raise"
                    asked = _drive(step, run, schedule, record, interrupts, look, saver, check)
            kept = str(checkpoints.path) if checkpoints is not None else None
            end(asked or interrupts.asked, record.done, run.steps, kept)
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
    look: Look | None,
    saver: Saver | None,
    check: bool,
) -> int:
    """Call after call, to the end of the run or to the signal that ends it, which it returns."""
    mesh, every, pace = run.plan.mesh, run.plan.record_every, Pace()
    if isinstance(run.data, Stream):
        saw = saver.saw if saver is not None else None
        advance = of_stream(step, run.data.batches, run.plan, run.steps, check, saw)
    elif isinstance(run.data, Mapped):
        batches = in_order(run.data, run.plan, record.state)
        advance = of_stream(step, batches, run.plan._replace(order=None), run.steps, check, None)
    else:
        advance = of_arrays(step, run.data, run.plan, check)
    if check and (what := fault(run.plan, record.state, {})):
        raise DivergedError(what, schedule.first + record.done)
    if saver is not None:
        saver.begin(record)
        if saver.stopped or (saver.resumed is not None and record.done == run.steps):
            return 0
    while True:
        look_at = schedule.next_stop(record.done)
        save_at = min(saver.next_stop(record.done), run.steps) if saver is not None else run.steps
        stop_at = min(look_at, save_at)
        records = min((stop_at - record.done) // every, pace.records)
        start = time.perf_counter()
        advance(record, records)
        seconds = time.perf_counter() - start
        asked = interrupts.asked
        seen, stop = look(record) if look is not None and record.done == look_at else (None, False)
        value, is_best = saver.value(seen) if saver is not None else (None, False)
        seconds, asked, term, stop, is_best = agree(
            mesh, seconds, bool(asked), asked == signal.SIGTERM, stop, is_best
        )
        pace.learn(records, seconds)
        is_end = stop or asked or record.done >= run.steps
        if saver is not None and (is_end or is_best or record.done == save_at):
            saver.save(record, value, stop)
        if is_end:
            return signal.SIGTERM if term else signal.SIGINT if asked else 0


def _leave(error: BaseException, record: Record) -> None:
    """Leaves what was reached with the caller, whatever ended the run."""
    vars(error).update(state=record.state, history=record.history())
    error.add_note("The error's attributes `state` and `history` are what was reached before it.")
