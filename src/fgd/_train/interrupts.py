"""Ctrl-C and SIGTERM during a run: heard between compiled calls, so that no state is lost."""

import signal
import sys
import threading
import warnings
from typing import Any

import jax


class Interrupts:
    """Within it, Ctrl-C and SIGTERM set `asked`, at which the run looks between calls.

    An interrupt between a compiled call and the name given to its result would lose the result. A
    second Ctrl-C raises KeyboardInterrupt as soon as Python runs. Outside the main thread, where
    Python hears no signals, this does nothing, and a program's own handler of SIGTERM stays.

    Attributes:
      asked: the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._hear(signal.SIGINT)
            if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None):
                self._hear(signal.SIGTERM)
        return self

    def _hear(self, number: signal.Signals) -> None:
        self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self.asked:
            raise KeyboardInterrupt
        self.asked = max(self.asked, number)  # SIGTERM counts more

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            # None: a handler that was not installed from Python, which can't be put back.
            plain = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, plain if before is None else before)


def end(asked: int, done: int, total: int, kept: str | None) -> None:
    """Ends a run as a signal asked: a warning, KeyboardInterrupt, or the exit of a process.

    Args:
      asked: the signal, or 0.
      done, total: steps of the run.
      kept: where its checkpoints are, or None.
    """
    if asked == signal.SIGINT:
        if done == total:  # nothing is left of the run to be stopped: the program is meant
            raise KeyboardInterrupt
        warnings.warn(
            f"train: interrupted after {done} of {total} steps; train again from the returned "
            "state to go on",
            RuntimeWarning,
            stacklevel=4,
        )
    if asked == signal.SIGTERM:
        advice = (
            f"the state is in {kept}; start the same program again to go on"
            if kept
            else "the state is lost unless the program catches this SystemExit, which has it; "
            "train(…, checkpoints=fgd.Checkpoints(directory)) keeps it"
        )
        if sys.stderr is not None:
            said = f"train: ended by SIGTERM after {done} of {total} steps; {advice}"
            print(said, file=sys.stderr, flush=True)
        raise SystemExit(128 + asked)


def wait(results: Any) -> Any:
    """`jax.block_until_ready`, from which a second Ctrl-C can escape.

    What JAX computes goes on in its own threads. What it computes in the caller's, as it does with
    the smallest programs, is computed before this is called.
    """
    if threading.current_thread() is threading.main_thread():
        done = threading.Event()

        def look() -> None:
            try:
                jax.block_until_ready(results)
            except Exception:  # it is raised below
                pass
            finally:
                done.set()

        threading.Thread(target=look, daemon=True).start()
        done.wait()
    return jax.block_until_ready(results)
