"""Files that are whole or not there, and that nothing replaces by accident."""

import importlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(caller: str, path: Any, overwrite: bool) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is written, or is removed."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{caller}: path must be a str or a Path, got {type(path).__name__}")
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{caller}: {path} exists already; overwrite=True replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{caller}: there is no directory {path.parent}; make it first")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require(caller: str, package: str, extra: str) -> None:
    """ImportError that says what to install, if `package` is not."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{caller} needs {package}: pip install 'fgd[{extra}]'") from error
