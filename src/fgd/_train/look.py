"""What is evaluated on the way, and who is asked whether it is enough."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from fgd._checks import require_callable
from fgd._run.evaluate import evaluate as evaluated, program_of
from fgd._run.state import TrainState
from fgd._run.step import Step
from fgd._run.supervised import Supervised
from fgd._train.keeping import require_known
from fgd._train.patience import Patience
from fgd._train.record import Record
from fgd._trees import count_rows, on_device
from fgd.parallel._placement import local

Evaluate = Callable[[TrainState], dict[str, Any]]
StopWhen = Callable[[TrainState, dict[str, Any]], Any]
Look = Callable[[Record], tuple[dict[str, Any], bool]]  # what stop_when is told, and says


def look_of(step: Step, state: TrainState, evaluate: Any, stop_when: Any) -> Look | None:
    """Evaluates what a run has reached, and asks whether that is enough; None: nothing is asked.

    Args:
      state: at which the run begins.
      step, evaluate, stop_when: of `train`.
    """
    if stop_when is not None:
        require_callable("train", "stop_when", stop_when, " of (state, metrics)")
    if isinstance(stop_when, Patience):
        require_known("Patience waits for", stop_when.metric, step, evaluate)
        stop_when.set_state(None)
    if evaluate is None and stop_when is None:
        return None
    measure = None if evaluate is None else _measure(step, state, evaluate)

    def look(record: Record) -> tuple[dict[str, Any], bool]:
        metrics: dict[str, Any] = record.means()
        if measure is not None:
            metrics["evaluate"] = record.evaluated(measure(local(record.state)))
        stop = stop_when is not None and bool(stop_when(record.state, metrics))
        return metrics, stop

    return look


def _measure(step: Step, state: TrainState, evaluate: Any) -> Evaluate:
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
    compiling = _compiled_beside(*program_of(step.loss_fn, local(state), rows))

    def measure(state: TrainState) -> dict[str, Any]:
        compiling.join()
        return evaluated(step.loss_fn, state, rows)

    return measure


def _compiled_beside(program: Any, arguments: tuple[Any, ...]) -> threading.Thread:
    """Compiles what evaluates in a thread, beside what trains; JAX keeps it for the call.

    It is traced here: what does not fit fails before anything is compiled, and settings of JAX may
    be a thread's own.
    """
    lowered = program.lower(*arguments)

    def compile() -> None:
        with contextlib.suppress(Exception):  # which the call will raise
            lowered.compile()

    thread = threading.Thread(target=compile, name="fgd compiles evaluate")
    thread.start()
    return thread
