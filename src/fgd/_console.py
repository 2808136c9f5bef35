"""What a person at the terminal sees of a run, and how they end it."""

import signal
import sys
import threading
import warnings
from typing import Any

import numpy as np


class Bar:
    """tqdm's bar, or nothing; loaded only when it is shown."""

    def __init__(self, total: int, show: bool | None) -> None:
        self._tqdm: Any = None
        if show or (show is None and sys.stderr.isatty()):
            from tqdm import tqdm

            self._tqdm = tqdm(total=total, unit="step", unit_scale=True, file=sys.stderr)

    def __enter__(self) -> "Bar":
        return self

    def __call__(self, steps: int, losses: np.ndarray) -> None:
        if self._tqdm is not None:
            if losses.size:
                self._tqdm.set_postfix(loss=f"{losses.mean():.4g}", refresh=False)
            self._tqdm.update(steps)

    def __exit__(self, *_: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()


class Interrupts:
    """Within it, Ctrl-C is a wish that the run looks at between calls; the second one is at once.

    An interrupt between a call that uses up a state and the name given to its result would lose
    both. Outside the main thread, where Python hears no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Interrupts":
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)


def warn_interrupted(done: int, total: int) -> None:
    """Says that a run was ended before its time."""
    warnings.warn(
        f"train: interrupted after {done} of {total} steps; train again from the returned state to "
        "go on",
        RuntimeWarning,
        stacklevel=3,
    )
