"""Files that are whole or not there, and that nothing replaces by accident."""

import importlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgd._checks import require_flag


def as_path(caller: str, path: Any, name: str = "path") -> Path:
    """`path` as a Path; TypeError for what can't be one."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{caller}: {name} must be a str or a Path, got {type(path).__name__}")
    return Path(path)


@contextmanager
def atomic(caller: str, path: Any, overwrite: bool) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is written, or is removed."""
    path = as_path(caller, path)
    require_flag(caller, overwrite=overwrite)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{caller}: {path} exists already; overwrite=True replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{caller}: there is no directory {path.parent}; make it first")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.touch(exist_ok=False)
        mode = (path if path.exists() else temporary).stat().st_mode  # as open() would leave it
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(stat.S_IMODE(mode))  # some writers make a file of their own, for one user
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def regular(caller: str, path: Path) -> Path:
    """`path`, if a file is there: a pipe would wait for a writer, and a device may have no end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{caller}: there is no file {path}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{caller}: {path} is no file: a directory, a pipe or a device")
    return path


def require(caller: str, package: str, extra: str) -> None:
    """ImportError that says what to install, if `package` is not."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{caller} needs {package}: pip install 'fgd[{extra}]'") from error
