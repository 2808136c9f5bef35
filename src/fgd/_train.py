"""`train`: the program around a run. It shows, evaluates, logs and stops; the run is `fit`'s."""

import time
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fgd._checks import count, is_concrete
from fgd._console import Bar, Interrupts, warn_interrupted
from fgd._feed import AHEAD, CAPACITY, Pace, is_stream, of_arrays, of_stream
from fgd._log import Writer, open_log
from fgd._mesh import across, agreed, local, place, specs
from fgd._plan import plan_run
from fgd._record import Record
from fgd._step import Step
from fgd._types import PyTree, TrainState


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
    chunk: int | None = None,
    evaluate: Callable[[PyTree], dict[str, Any]] | None = None,
    log: str | PathLike[str] | Writer | Any = None,
    progress: bool | None = None,
    stop_when: Callable[[TrainState, dict[str, Any]], Any] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains as `fit` does, in chunks, and between them shows progress, evaluates, logs and stops.

    The state and the history are `fit`'s, bit for bit on CPU. One program serves every number of
    steps: a longer or second run compiles nothing. Inside `jit`, `vmap` and `grad`, use `fit`.

    Ctrl-C ends the run after the current chunk with a warning, and what was reached is returned; a
    second one raises at once.

    Args:
      step, state, batch_size, num_steps, num_epochs, shuffle, record_every, mesh: as in `fit`.
      data: arrays as in `fit`; or a stream, any iterator or loader of equal batches, whose steps
        `num_steps` counts. It is asked for those batches alone, so that an iterator can go on.
        With a mesh of several processes, each one's stream gives its share of every batch.
      chunk: steps per compiled call, a multiple of `record_every`. None: about half a second's.
      evaluate: `evaluate(params) -> {name: value}`, called whenever the steps completed are a
        multiple of `chunk` (of an epoch's if that is None), and at the end. The parameters are a
        copy that it may keep; with a model state they are the pair (params, model_state).
      log: where to write every entry of the history, and evaluations as "evaluate/name": a file
        ending in .jsonl or .csv, to which lines are added; a directory for TensorBoard; a function
        of (step, {name: value}); or TensorBoard's own writer. Process 0 writes.
      progress: show a bar with loss and steps per second on standard error; None: if that is a
        terminal.
      stop_when: `stop_when(state, metrics) -> bool`, called when `evaluate` would be, with the
        means since the last time, and under "evaluate" what that returned; True ends the run.

    Returns:
      The state reached, and `fit`'s history; with `evaluate` also "evaluate": what it returned,
      stacked, beside "step", the steps completed at each time.

    Raises:
      TypeError, ValueError: as `fit`; a chunk that `record_every` does not divide; a stream that
        ends early or changes its shapes. The last have attributes `state` and `history`: what was
        reached before.

    Example:
      >>> import fgd, jax
      >>> data = fgd.data.linear(jax.random.key(0), 100)
      >>> model = fgd.models.linear(1, 1)
      >>> step = fgd.train_step(fgd.supervised(model.apply, fgd.losses.mse), fgd.sgd(0.5))
      >>> state = step.init(model.init(jax.random.key(1)))
      >>> def slope(params):
      ...     return {"slope": params["w"][0, 0]}
      >>> state, history = fgd.train(step, state, data, num_steps=9, chunk=3, evaluate=slope)
      >>> history["evaluate"]["step"].tolist(), history["evaluate"]["slope"].shape
      ([3, 6, 9], (3,))
    """
    stream = is_stream(data)
    plan, total = plan_run(
        "train",
        step,
        state,
        None if stream else data,
        batch_size,
        num_steps,
        num_epochs,
        shuffle,
        record_every,
        mesh,
    )
    if not all(map(is_concrete, jax.tree.leaves((state, None if stream else data)))):
        raise TypeError("train: inside jit, vmap or grad, use fit; train is a program around it")
    if chunk is not None:
        chunk = count("train", "chunk", chunk, least=1)
    for name, function in (("evaluate", evaluate), ("stop_when", stop_when)):
        if function is not None and not callable(function):
            raise TypeError(f"train: {name} must be a function, got {function!r}")
    watched = evaluate is not None or stop_when is not None
    period = chunk or (plan.steps_per_epoch if watched else None)
    # Evaluations are at multiples of the period since step 0, so that a resumed run has the same.
    first = int(state.step) if watched or log is not None else 0
    ahead = first % period if watched and period else 0  # steps of a period that are behind already
    if period and (period % record_every or ahead % record_every) and period < ahead + total:
        raise ValueError(
            f"train: record_every={record_every} does not divide the {period} steps of "
            + ("a chunk" if chunk else "an epoch, after which evaluate is called; give chunk")
            + (f", or the {first} steps before" if ahead else "")
        )
    if watched and stream and not chunk:
        raise ValueError(
            "train: a stream has no epochs; give chunk, the steps between two evaluations"
        )
    if plan.mesh:
        state = place("train", plan.mesh, state)
        plan = plan._replace(specs=specs(state))
    state = copied(state)  # the caller keeps its own; the programs use up what they are given
    if stream:
        advance = of_stream(step, iter(data), plan)
    else:
        data = place("train", plan.mesh, data) if plan.mesh else jax.tree.map(jnp.asarray, data)
        advance = of_arrays(step, data, plan)
    if across(plan.mesh) and jax.process_index() > 0:  # process 0 speaks for all
        progress, log = False, None
    with Interrupts() as interrupts, Bar(total, progress) as bar, open_log(log) as write:
        record = Record(first, record_every, bar, write)
        pace = Pace(AHEAD if stream else CAPACITY, fixed=chunk is not None)
        while True:
            until = total
            if period:
                until = min(total, record.done + period - (ahead + record.done) % period)
            records = min((until - record.done) // record_every, pace.records)
            start = time.perf_counter()
            state, part, problem = advance(state, records)
            seconds, asked = time.perf_counter() - start, interrupts.asked
            if problem is None:  # else the others are within a step that this process won't take
                seconds, asked = agreed(plan.mesh, seconds, asked)
            pace.saw(records, seconds)
            record.add(part)
            stop = isinstance(problem, KeyboardInterrupt) or asked
            if stop and record.done < total:
                warn_interrupted(record.done, total)
            elif problem is not None:
                raise _failure(problem, record, total, state)
            elif watched and record.done == until:
                try:
                    stop = _stop(state, record, evaluate, stop_when)
                except Exception as error:
                    _reached(error, record, state)
                    raise
                _, stop = agreed(plan.mesh, 0.0, stop)
            if stop or record.done >= total:
                return state, record.history()


def _stop(state: TrainState, record: Record, evaluate: Any, stop_when: Any) -> bool:
    """Evaluates, and asks whether that was enough."""
    metrics: dict[str, Any] = record.means()
    if evaluate is not None:
        own = state.params, state.model_state
        own = own[0] if own[1] is None else own
        metrics["evaluate"] = record.evaluated(evaluate(local(copied(own))))
    return stop_when is not None and bool(stop_when(copied(state), metrics))


def _failure(
    problem: BaseException, record: Record, total: int, state: TrainState
) -> BaseException:
    """What to raise when a stream failed, with what was reached before."""
    if isinstance(problem, StopIteration):
        problem = ValueError(f"train: the stream ended after {record.done} of {total} steps")
    elif type(problem) is ValueError:
        cause = problem
        problem = ValueError(f"train: after {record.done} steps of the stream, {problem}")
        problem.__cause__ = cause
    return _reached(problem, record, state)


def _reached(problem: BaseException, record: Record, state: TrainState) -> BaseException:
    vars(problem).update(state=state, history=record.history())
    problem.add_note("The error's attributes `state` and `history` are what was reached before it.")
    return problem


@jax.jit
def copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
