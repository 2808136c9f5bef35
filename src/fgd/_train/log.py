"""Where `train` writes what it sees: JSON Lines, CSV or TensorBoard."""

import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

Writer = Callable[[int, Mapping[str, float]], None]


@contextmanager
def open_log(log: Any) -> Iterator[Writer | None]:
    """A function `write(step, {name: value})` for what `train` was given as its log."""
    if log is None:
        yield None
    elif callable(log):
        write: Any = log
        yield write
    elif hasattr(log, "add_scalar"):
        yield _scalars(log)
    elif not isinstance(log, str | os.PathLike):
        raise TypeError(
            "train: log must be a path, a function of (step, values) or have add_scalar, as "
            f"TensorBoard's writers do, got {log!r}"
        )
    else:
        path = Path(log)
        suffix = path.suffix if path.suffix[1:].isalpha() else ""  # runs/rate=0.01
        openers: dict[str, Any] = {".jsonl": _jsonl, ".csv": _csv, "": _tensorboard}
        if suffix not in openers:
            raise ValueError(
                f"train: log={str(path)!r} must end in .jsonl or .csv, or be a directory for "
                "TensorBoard, without a suffix"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with openers[suffix](path) as write:
            yield write


@contextmanager
def _jsonl(path: Path) -> Iterator[Writer]:
    with path.open("a") as file:
        _end_last_line(path, file)
        yield lambda step, values: print(
            json.dumps({**values, "step": step}), file=file, flush=True
        )


def _end_last_line(path: Path, file: TextIO) -> None:
    """So that what is added does not continue a line that a killed process left unfinished."""
    with path.open("rb") as written:
        if not written.seek(0, os.SEEK_END):
            return
        written.seek(-1, os.SEEK_END)
        if written.read() != b"\n":
            file.write("\n")


@contextmanager
def _csv(path: Path) -> Iterator[Writer]:
    """One line for each number, so that evaluations need no columns that most steps lack."""
    header = ["step", "name", "value"]
    with path.open("a+", newline="") as file:
        file.seek(0)
        first = file.readline().strip()
        if first not in ("", ",".join(header)):
            raise ValueError(
                f"train: {path} begins with {first!r}, expected {','.join(header)!r}; is it "
                "another file?"
            )
        _end_last_line(path, file)
        rows = csv.writer(file)
        if not first:
            rows.writerow(header)

        def write(step: int, values: Mapping[str, float]) -> None:
            rows.writerows((step, name, value) for name, value in values.items())
            file.flush()

        yield write


@contextmanager
def _tensorboard(path: Path) -> Iterator[Writer]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "train: a log for TensorBoard needs tensorboardX: pip install 'fgd[tensorboard]'; or "
            "give a file that ends in .jsonl or .csv"
        ) from error
    # Its own file names are by the second: a run that follows quickly would overwrite.
    with SummaryWriter(str(path), filename_suffix=f".{time.time_ns()}") as writer:
        yield _scalars(writer)


def _scalars(writer: Any) -> Writer:
    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write
