"""A directory of checkpoints, each of them whole or not there."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from fgd import _files
from fgd._checks import PyTree
from fgd.checkpoint import _arrays
from fgd.parallel._placement import attempt, leads, participants, shared_mesh

FORMAT = 1
_ABOUT, _ARRAYS, _LOCK = "about.json", "arrays", "lock"
_STEP, _UNFINISHED = re.compile(r"\d{10}"), re.compile(r"\.\d{10}\.(tmp|old)")
_MOST = 2**26  # bytes of an about.json that are read
_SMALL = 2**14  # bytes of what Orbax says of arrays, and of the smallest arrays

_in_use: set[Path] = set()
_guard = threading.Lock()

About = dict[str, Any]  # what a checkpoint says of itself


class MisfitError(ValueError):
    """A checkpoint of something else than was asked for: no older one would fit better."""


class Folder:
    """The checkpoints in a directory, by step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> list[int]:
        """The steps of all checkpoints, in order, damaged ones among them."""
        if not self.path.exists():
            return []
        return sorted(int(x.name) for x in self.path.iterdir() if _STEP.fullmatch(x.name))

    def about(self, step: int) -> About:
        """What a checkpoint says of itself; ValueError or OSError if it is damaged.

        Raises:
          MisfitError: a newer fgd wrote it.
        """
        path = _files.regular("checkpoints", self._of(step) / _ABOUT)
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
        try:
            about = json.loads(content)
            digest = about.pop("sha256")
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"{_ABOUT} can't be read") from error
        if digest != _digest(about) or about["step"] != step:
            raise ValueError(f"{_ABOUT} is not what was saved")
        if about["format"] > FORMAT:
            raise MisfitError(
                f"{self._of(step)} was written by fgd {about['fgd']}, whose format is newer than "
                "this one reads; update fgd"
            )
        return about

    def load(self, caller: str, about: About, like: PyTree) -> PyTree:
        """The state of a checkpoint; an exception of any kind if it is damaged."""
        folder = self._of(about["step"]) / _ARRAYS
        for name, (size, digest) in about["files"].items():
            path = _files.regular(caller, folder / name)
            if path.stat().st_size != size or digest != _small_digest(path, size):
                raise ValueError(f"{name} is not what was saved")
        return _arrays.load(caller, folder, about["leaves"], like)

    def save(self, caller: str, step: int, tree: PyTree, extra: About, own: Any = None) -> None:
        """Writes a checkpoint, in place of one of the same step; OSError if it can't.

        Where the arrays are spread over processes, all of them call it, and all fail alike.

        Args:
          caller: the public function, for messages.
          step: of the state.
          tree: its arrays.
          extra: what else the checkpoint says of itself; that of process 0 counts.
          own: what each process has of its own.
        """
        mesh = shared_mesh(tree)
        everyone = {jax.process_index()} if mesh is None else set(participants(mesh))
        new, folder = self.path / f".{step:010d}.tmp", self._of(step)

        def begin() -> None:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()

        def store() -> None:
            _arrays.save(caller, new / _ARRAYS, tree, everyone)
            part = json.dumps([_arrays.describe(caller, tree), own])
            (new / f"part-{jax.process_index():06d}").write_text(part)

        def finish() -> None:
            parts = sorted(new.glob("part-*"))
            leaves, owned = zip(*(json.loads(part.read_text()) for part in parts), strict=True)
            about = {"format": FORMAT, "fgd": version("fgd"), "step": step, **extra}
            about |= {
                "leaves": _arrays.merge(leaves),
                "own": owned,
                "files": _manifest(new / _ARRAYS),
            }
            with (new / _ABOUT).open("w") as file:
                json.dump(about | {"sha256": _digest(about)}, file, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            for part in parts:
                part.unlink()
            self.remove(step)
            new.rename(folder)
            _sync(self.path)

        try:
            attempt(caller, mesh, begin if leads(mesh) else None)
            attempt(caller, mesh, store)
            attempt(caller, mesh, finish if leads(mesh) else None)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def remove(self, step: int) -> None:
        """Removes a checkpoint; one that is half removed is no checkpoint."""
        old = self.path / f".{step:010d}.old"
        shutil.rmtree(old, ignore_errors=True)
        if self._of(step).exists():
            self._of(step).rename(old)
            shutil.rmtree(old, ignore_errors=True)

    def set_aside(self, step: int) -> None:
        """Keeps a damaged checkpoint out of the way, for whoever wants to look at it."""
        target = self.path / f"damaged-{step:010d}"
        shutil.rmtree(target, ignore_errors=True)
        self._of(step).rename(target)

    def sweep(self) -> None:
        """Removes what a killed process left unfinished."""
        for path in self.path.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _of(self, step: int) -> Path:
        return self.path / f"{step:010d}"


@contextmanager
def locked(caller: str, path: Path, mesh: Mesh | None) -> Iterator[Folder]:
    """The directory, made if need be, for one run at a time.

    One process holds the lock for all that share `mesh`. The system frees it when that one ends.

    Raises:
      BlockingIOError: another run has it.
      OSError: it can't be made or written to.
    """
    free: Callable[[], None] | None = None

    def acquire() -> None:
        nonlocal free
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{caller}: expected a directory or a new path, got {path}")
        path.mkdir(parents=True, exist_ok=True)
        free = _lock(caller, path)
        Folder(path).sweep()

    try:
        attempt(caller, mesh, acquire if leads(mesh) else None)
        yield Folder(path)
    finally:
        if free is not None:
            free()


def _lock(caller: str, path: Path) -> Callable[[], None]:
    """Takes the lock, and gives the function that frees it."""
    import fcntl

    real = path.resolve()
    said = (
        f"{caller}: another run is using {path}; wait until it has ended, or give each run a "
        "directory of its own"
    )
    with _guard:
        if real in _in_use:  # the system's lock is between processes alone
            raise BlockingIOError(said)
        file = (path / _LOCK).open("a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise BlockingIOError(said) from error
        _in_use.add(real)

    def free() -> None:
        with _guard:
            file.close()
            _in_use.discard(real)

    return free


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of every file: what Orbax would stumble over is found before it reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path: path.stat().st_size for path in files}
    return {
        path.relative_to(folder).as_posix(): (size, _small_digest(path, size))
        for path, size in sizes.items()
    }


def _small_digest(path: Path, size: int) -> str:
    """The digest of a small file; "" of a large one, whose numbers have digests of their own."""
    return sha256(path.read_bytes()).hexdigest() if size <= _SMALL else ""


def _digest(about: About) -> str:
    return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _sync(directory: Path) -> None:
    """So that a name that was given survives the loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
