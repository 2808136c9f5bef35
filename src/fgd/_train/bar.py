"""What a person at the terminal or in a notebook sees of a run."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np


class Bar:
    """tqdm's bar, or nothing; loaded only when it is shown."""

    def __init__(self, total: int, show: bool | None, done: int = 0) -> None:
        self._tqdm: Any = None
        self._seen: dict[str, str] = {}
        in_notebook = _is_notebook()
        at_terminal = sys.stderr is not None and sys.stderr.isatty()
        if show or (show is None and (in_notebook or at_terminal)):
            with _unlocked():
                self._tqdm = _kind(in_notebook)(
                    total=total, initial=done, unit="step", unit_scale=True, file=sys.stderr
                )
                self._tqdm.set_description("compiling …")
                if widget := getattr(self._tqdm, "container", None):
                    widget.layout.flex_flow = "row wrap"  # long text goes below the bar

    def __enter__(self) -> "Bar":
        return self

    def __call__(self, steps: int, losses: np.ndarray) -> None:
        """Moves on by so many steps, and shows the mean of their losses."""
        if self._tqdm is None:
            return
        if losses.size:
            self._show({"loss": float(losses.mean())})
        with _unlocked():
            self._tqdm.set_description(refresh=False)
            self._tqdm.update(steps)

    def evaluated(self, values: dict[str, float]) -> None:
        """Shows what was evaluated, until it is again."""
        if self._tqdm is not None:
            self._show(values)
            with _unlocked():
                self._tqdm.refresh()

    def _show(self, values: dict[str, float]) -> None:
        self._seen |= {name: f"{value:.4g}" for name, value in values.items()}
        self._tqdm.set_postfix(self._seen, refresh=False)

    def __exit__(self, *_: object) -> None:
        if self._tqdm is not None:
            with _unlocked():
                self._tqdm.close()


@contextmanager
def _unlocked() -> Iterator[None]:
    """Frees tqdm's lock if an error leaves it held, at which all other bars would wait for ever.

    tqdm takes it to write, and gives it back only if it could.
    """
    try:
        yield
    except BaseException:
        from tqdm import tqdm

        for lock in getattr(tqdm.get_lock(), "locks", ()):
            with suppress(RuntimeError, AssertionError):  # it is not held
                lock.release()
        raise


def _is_notebook() -> bool:
    """Whether this is a kernel of Jupyter's, which has no terminal."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def _kind(in_notebook: bool) -> Any:
    """tqdm's widget, or its line of text where there are no widgets."""
    from tqdm import std

    if not in_notebook or importlib.util.find_spec("ipywidgets") is None:
        return std.tqdm
    from tqdm.notebook import tqdm_notebook

    return tqdm_notebook
