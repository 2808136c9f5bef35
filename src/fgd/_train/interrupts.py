"""Ctrl-C during a run: heard between compiled calls, so that no state is lost."""

import signal
import threading
import warnings


class Interrupts:
    """Within it, Ctrl-C sets `asked`, at which the run looks between calls.

    An interrupt between a compiled call and the name given to its result would lose the result. A
    second Ctrl-C raises KeyboardInterrupt, as soon as Python runs again: not within a compiled
    call. Outside the main thread, where Python hears no signals, this does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Interrupts":
        if self._in_main_thread:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self._in_main_thread:
            # None: a handler that was not installed from Python, which can't be put back.
            signal.signal(signal.SIGINT, self._before or signal.default_int_handler)


def warn_interrupted(done: int, total: int) -> None:
    """Says that a run was ended before its time."""
    warnings.warn(
        f"train: interrupted after {done} of {total} steps; train again from the returned state to "
        "go on",
        RuntimeWarning,
        stacklevel=4,
    )
