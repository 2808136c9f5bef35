"""Where `train` writes what it sees: JSON Lines, CSV or TensorBoard."""

import csv
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

Writer = Callable[[int, Mapping[str, float]], None]
Place = dict[str, Any]  # where a log stood: its path, its size, the digest of its end

_END = 4096  # bytes before a place, by which it is known again


class Log:
    """A function `write(step, {name: value})`, and the file that it adds to, if it is one."""

    def __init__(self, write: Writer, path: Path | None = None) -> None:
        self.write, self._path = write, path

    def place(self) -> Place | None:
        """Where the log stands now; None if it is no file of lines."""
        if self._path is None:
            return None
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            return {"path": str(self._path), "size": size, "end": _end(file, size)}


def open_log(log: Any, place: Place | None = None, step: int | None = None) -> Any:
    """The `Log` of what `train` was given, as a context; None of None.

    Args:
      log: as given.
      place: where it stood at the checkpoint from which the run goes on: what was added to a file
        since then is cut off, for it will be logged again.
      step: that checkpoint's, if there is one.
    """
    if log is None:
        return nullcontext()
    if callable(log):
        write: Any = log
        return nullcontext(Log(write))
    if hasattr(log, "add_scalar"):
        return nullcontext(Log(_scalars(log)))
    if not isinstance(log, str | os.PathLike):
        raise TypeError(
            "train: log must be a path, a function of (step, values) or have add_scalar, as "
            f"TensorBoard's writers do, got {log!r}"
        )
    path = Path(log).absolute()
    suffix = path.suffix if path.suffix[1:].isalpha() else ""  # runs/rate=0.01
    if suffix not in (".jsonl", ".csv", ""):
        raise ValueError(
            f"train: log={str(log)!r} must end in .jsonl or .csv, or be a directory for "
            "TensorBoard, without a suffix"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not suffix:
        return _tensorboard(path, step)
    if place is not None and step is not None and place["path"] == str(path):
        _cut(path, place, step)
    return _lines(path, _CSV if suffix == ".csv" else _JSONL)


class _Format:
    """A line of a log: made of a step and its values, and its step read again."""

    header = ""

    def lines(self, step: int, values: Mapping[str, float]) -> str:
        """In JSON Lines a step is a line."""
        return json.dumps({k: _json(v) for k, v in values.items()} | {"step": step}) + "\n"

    def step_of(self, line: str) -> int:
        """ValueError, TypeError or KeyError if it is no line of a log."""
        return int(json.loads(line)["step"])


class _Csv(_Format):
    """A line for each number, so that evaluations need no columns that most steps lack."""

    header = "step,name,value"

    def lines(self, step: int, values: Mapping[str, float]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((step, k, v) for k, v in values.items())
        return text.getvalue()

    def step_of(self, line: str) -> int:
        return int(line.split(",")[0])


_JSONL, _CSV = _Format(), _Csv()


def _json(value: float) -> float | str | None:
    """What JSON has no number for: NaN is null, infinities are words."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


@contextmanager
def _lines(path: Path, kind: _Format) -> Iterator[Log]:
    with path.open("ab+", buffering=0) as file:
        with _alone(file):
            file.seek(0)
            first = file.readline(_END).decode(errors="replace").strip()
            if kind.header and first not in ("", kind.header):
                raise ValueError(
                    f"train: {path} begins with {first!r}, expected {kind.header!r}; is it another "
                    "file?"
                )
            if kind.header and not first:
                _write(file, kind.header + "\n")
            if file.seek(0, os.SEEK_END):  # a killed process may have left a line unfinished
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # no more: another may be adding lines
                    _write(file, "\n")

        yield Log(lambda step, values: _write(file, kind.lines(step, values)), path)


def _write(file: BinaryIO, text: str) -> None:
    """All of it, in one piece if the system can, so that two writers do not mix their lines."""
    content = text.encode()
    while content:
        content = content[file.write(content) :]


@contextmanager
def _alone(file: BinaryIO) -> Iterator[None]:
    """Within it no other thread or process begins the same log."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _end(file: BinaryIO, size: int) -> str:
    file.seek(max(0, size - _END))
    return sha256(file.read(min(size, _END))).hexdigest()


def _cut(path: Path, place: Place, step: int) -> None:
    """Removes the lines that were added after `place`, all of them of later steps."""
    if not path.exists() or path.stat().st_size < place["size"]:
        return
    kind = _CSV if path.suffix == ".csv" else _JSONL
    with path.open("rb+") as file:
        known = _end(file, place["size"]) == place["end"]
        file.seek(place["size"])
        *lines, _unfinished = file.read().decode(errors="replace").split("\n")
        try:
            ours = known and all(kind.step_of(line) > step for line in lines if line)
        except (ValueError, TypeError, KeyError):
            ours = False
        if ours:
            file.truncate(place["size"])
        else:
            warnings.warn(
                f"train: {path} has lines that this run did not write since step {step}; nothing "
                "is removed, so some steps are logged twice",
                RuntimeWarning,
                stacklevel=5,
            )


@contextmanager
def _tensorboard(path: Path, step: int | None) -> Iterator[Log]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "train: a log for TensorBoard needs tensorboardX: pip install 'fgd[tensorboard]'; or "
            "give a file that ends in .jsonl or .csv"
        ) from error
    # Its own file names are by the second: a run that follows quickly would overwrite.
    suffix = f".{time.time_ns()}"
    # What will be written again is hidden.
    purge_step = None if step is None else step + 1
    with SummaryWriter(str(path), filename_suffix=suffix, purge_step=purge_step) as writer:
        yield Log(_scalars(writer))


def _scalars(writer: Any) -> Writer:
    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write
