"""What a person at the terminal sees of a run."""

import sys
from typing import Any

import numpy as np


class Bar:
    """tqdm's bar, or nothing; loaded only when it is shown."""

    def __init__(self, total: int, show: bool | None, done: int = 0) -> None:
        self._tqdm: Any = None
        if show or (show is None and sys.stderr is not None and sys.stderr.isatty()):
            from tqdm import tqdm

            self._tqdm = tqdm(
                total=total, initial=done, unit="step", unit_scale=True, file=sys.stderr
            )

    def __enter__(self) -> "Bar":
        return self

    def __call__(self, steps: int, losses: np.ndarray) -> None:
        """Moves on by so many steps, and shows the mean of their losses."""
        if self._tqdm is not None:
            if losses.size:
                self._tqdm.set_postfix(loss=f"{losses.mean():.4g}", refresh=False)
            self._tqdm.update(steps)

    def __exit__(self, *_: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
