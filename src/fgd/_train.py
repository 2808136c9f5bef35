"""`train`: the program around a run. It shows progress and evaluates; the run itself is `fit`'s."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import count, is_concrete
from fgd._fit import recorded
from fgd._plan import Plan, plan_run
from fgd._step import Step, Update
from fgd._types import PyTree, TrainState

_SECONDS = 0.5  # what a compiled call should take, so that progress is seen and interrupts heard
_CAPACITY = 2**16  # entries of history that one compiled call can make


def train(
    step: Step,
    state: TrainState,
    data: PyTree,
    *,
    batch_size: int | None = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    shuffle: bool = True,
    record_every: int = 1,
    chunk: int | None = None,
    evaluate: Callable[[PyTree], dict[str, Any]] | None = None,
    progress: bool | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains as `fit` does, in chunks, with a progress bar and evaluation between them.

    The state and the history are `fit`'s, bit for bit on CPU. One program serves every number of
    steps: a longer or second run compiles nothing. Inside `jit`, `vmap` and `grad`, use `fit`.

    Args:
      step, state, data, batch_size, num_steps, num_epochs, shuffle, record_every: as in `fit`.
      chunk: steps per compiled call, a multiple of `record_every`. None: about half a second's.
      evaluate: `evaluate(params) -> {name: value}`, called whenever the steps completed are a
        multiple of `chunk` (of an epoch's if that is None), and at the end. The parameters are a
        copy that it may keep.
      progress: show a bar with loss and steps per second on standard error; None: if that is a
        terminal.

    Returns:
      The state reached, and `fit`'s history; with `evaluate` also "evaluate": what it returned,
      stacked, beside "step", the steps completed at each time.

    Raises:
      TypeError, ValueError: as `fit`; or a chunk that `record_every` does not divide.

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
    plan, total = plan_run(
        "train", step, state, data, batch_size, num_steps, num_epochs, shuffle, record_every
    )
    if not is_concrete(state.step):
        raise TypeError("train: inside jit, vmap or grad, use fit; train is a program around it")
    if chunk is not None:
        chunk = count("train", "chunk", chunk, least=1)
    period = chunk or (plan.steps_per_epoch if evaluate else None)
    # Evaluations are at multiples of the period since step 0, so that a resumed run has the same.
    first = int(state.step) if evaluate else 0
    if period and (period % record_every or first % record_every) and period < total:
        raise ValueError(
            f"train: record_every={record_every} does not divide the {period} steps of "
            + ("a chunk" if chunk else "an epoch, after which evaluate is called; give chunk")
            + (f", or the {first} steps before" if first else "")
        )
    program = step.program(_chunk, static_argnames="plan", donate_argnums=0)
    data = jax.tree.map(jnp.asarray, data)  # on the device once, not for every chunk
    state = _copy(state)  # the caller keeps its own; the program takes what it is given
    done, pace, parts, evaluations = 0, _Pace(), [], []
    with _Bar(total, progress) as bar:
        while done < total or not parts:
            until = min(total, done + period - (first + done) % period) if period else total
            records = (until - done) // record_every
            records = min(records, _CAPACITY if chunk else pace.records)
            start = time.perf_counter()
            state, history = program(state, data, jnp.int32(records), plan=plan)
            # Copies: a view would keep the whole buffer.
            history = {name: np.array(values)[:records].copy() for name, values in history.items()}
            pace.saw(records, time.perf_counter() - start)
            parts.append(history)
            done += records * record_every
            bar(records * record_every, history["loss"])
            if evaluate and done == until:
                evaluated = _values(evaluate(_copy(state.params)))
                evaluations.append({"step": np.int32(first + done), **evaluated})
    result: dict[str, Any] = {
        name: jax.device_put(np.concatenate([part[name] for part in parts])) for name in parts[0]
    }
    if evaluate:
        result["evaluate"] = jax.tree.map(lambda *values: jnp.stack(values), *evaluations)
    return state, result


def _chunk(
    update: Update, state: TrainState, data: PyTree, records: jax.Array, *, plan: Plan
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`fit` for a number of records that the program learns when it runs."""
    record = recorded(update, data, plan)
    _, shapes = jax.eval_shape(record, state, None)
    history = jax.tree.map(lambda x: jnp.zeros(_CAPACITY, x.dtype), shapes)

    def body(i: jax.Array, carry: Any) -> Any:
        state, history = carry
        state, metrics = record(state, None)
        return state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

    return jax.lax.fori_loop(0, records, body, (state, history))


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _values(evaluated: Any) -> dict[str, Any]:
    """What `evaluate` returned, off the device."""
    if not isinstance(evaluated, dict) or "step" in evaluated:
        raise TypeError(
            f'train: evaluate must return a dict without the name "step", got {evaluated!r}'
        )
    return jax.tree.map(np.array, evaluated)


class _Pace:
    """How many records a call should make: as many as `_SECONDS` allow, found by growing."""

    def __init__(self) -> None:
        self.records = 1
        self._first = True

    def saw(self, records: int, seconds: float) -> None:
        """Learns from a call; the first one compiled, so its time says nothing."""
        fitting = int(records * _SECONDS / max(seconds, 1e-9))
        self.records = max(1, min(8 * records if self._first else fitting, 8 * records, _CAPACITY))
        self._first = False


class _Bar:
    """tqdm's bar, or nothing; loaded only when it is shown."""

    def __init__(self, total: int, show: bool | None) -> None:
        self._tqdm: Any = None
        if show or (show is None and sys.stderr.isatty()):
            from tqdm import tqdm

            self._tqdm = tqdm(total=total, unit="step", unit_scale=True, file=sys.stderr)

    def __enter__(self) -> "_Bar":
        return self

    def __call__(self, steps: int, losses: np.ndarray) -> None:
        if self._tqdm is not None:
            if losses.size:
                self._tqdm.set_postfix(loss=f"{losses.mean():.4g}", refresh=False)
            self._tqdm.update(steps)

    def __exit__(self, *_: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
