"""No process waits in silence for one that has left: the runs that processes share, counted.

Every process counts the runs that it shares, for each set of processes that share one. A process
that leaves one by an error, or ends, leaves a note with JAX's coordination service. A thread of
every process looks there while that one is inside a run, and ends it if it waits in vain: what a
collective waits for can't be interrupted from Python.
"""

import atexit
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from fgd import _jax

_SECONDS = 0.5  # between two looks


class Shared(NamedTuple):
    """The `number`-th run that these processes share, counted from 1."""

    caller: str
    processes: tuple[int, ...]
    number: int

    @property
    def group(self) -> str:
        """A short name of the set of processes."""
        return hashlib.sha256(repr(self.processes).encode()).hexdigest()[:16]

    @property
    def notes(self) -> str:
        """Where those who leave it by an error say why."""
        return f"fgd/left/{self.group}/{self.number}"

    @property
    def counts(self) -> str:
        """Where each of its processes says how many runs it has entered."""
        return f"fgd/entered/{self.group}"


class _Watch:
    """This process's runs, and the thread that looks for those who have left them."""

    def __init__(self, patience: float) -> None:
        self.me, self.patience, self._process = jax.process_index(), patience, os.getpid()
        self._entered: dict[tuple[int, ...], int] = {}
        self._failed: dict[tuple[int, ...], Shared] = {}  # left by an error, and none entered since
        self._inside: list[Shared] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look_out, name="fgd-watch", daemon=True)
        self._thread.start()
        atexit.register(self._leave_a_note)  # before JAX's own, which waits for all processes

    def count(self, caller: str, processes: tuple[int, ...]) -> Shared:
        self._entered[processes] = number = self._entered.get(processes, 0) + 1
        return Shared(caller, processes, number)

    def enter(self, run: Shared) -> None:
        self._inside.append(run)
        if failed := self._failed.pop(run.processes, None):
            self._wait_for_others(failed)
        _jax.tell_processes(f"{run.counts}/{self.me}", str(run.number))

    def _wait_for_others(self, failed: Shared) -> None:
        """Until they have left it too: they must not take this run's messages for those of that."""
        while True:
            left, entered = (_jax.told_processes(x) for x in (failed.notes, failed.counts))
            out = {int(p) for p in left} | {
                int(p) for p, number in entered.items() if int(number) > failed.number
            }
            if out >= set(failed.processes):
                return
            time.sleep(0.05)

    def fail(self, run: Shared, error: BaseException) -> None:
        self._failed[run.processes] = run
        why, *_ = str(error).splitlines() or [""]
        with suppress(Exception):  # the coordinator is gone; JAX ends those who need it
            _jax.tell_processes(f"{run.notes}/{self.me}", f"{type(error).__name__}: {why}"[:300])

    def leave(self, run: Shared) -> None:
        self._inside.remove(run)

    def _look_out(self) -> None:
        since: dict[tuple[Shared, int], float] = {}
        while not self._ends.wait(_SECONDS):
            try:
                gone = {
                    (run, process): why
                    for run in tuple(self._inside)
                    for process, why in self._gone(run).items()
                }
            except Exception:  # the coordinator does not answer, of which JAX takes care
                continue
            now = time.monotonic()
            since = {who: since.get(who, now) for who in gone}
            for (run, process), first in since.items():
                if now - first >= self.patience and run in self._inside:
                    self._end(run, process, gone[run, process])

    def _gone(self, run: Shared) -> dict[int, str]:
        """Processes for which those inside the run wait in vain, and why."""
        left = {int(p): f"left it ({why})" for p, why in _jax.told_processes(run.notes).items()}
        for p, counts in _jax.told_processes("fgd/ended").items():
            if int(p) in run.processes and json.loads(counts).get(run.group, 0) < run.number:
                left[int(p)] = "ended without it"
        left.pop(self.me, None)
        return left

    def _end(self, run: Shared, process: int, why: str) -> None:
        text = (
            f"fgd: process {self.me} waits in {run.caller} for process {process}, which has {why}; "
            "it ends, for what it waits for will not come. Start all of them again, from the last "
            "checkpoint if there is one\n"
        )
        with suppress(OSError):
            os.write(2, text.encode())  # whatever became of sys.stderr
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(1)

    def _leave_a_note(self) -> None:
        if os.getpid() != self._process:  # a fork of it
            return
        self._ends.set()
        self._thread.join(2)
        counts = {Shared("", p, 0).group: number for p, number in self._entered.items()}
        with suppress(Exception):
            _jax.tell_processes(f"fgd/ended/{self.me}", json.dumps(counts))


_watch: list[_Watch] = []  # one, when there are several processes


def watch(heartbeat_timeout: float = 20.0) -> _Watch:
    """The watch of this process, which half of the timeout makes impatient; started once."""
    if not _watch:
        _watch.append(_Watch(heartbeat_timeout / 2))
    return _watch[0]


@contextmanager
def together(caller: str, mesh: Any) -> Iterator[None]:
    """A run on `mesh`: if several processes share it, none of them waits for one that has left."""
    alone = not isinstance(mesh, Mesh) or not mesh.is_multi_process
    if alone or _jax.is_tracing():
        yield
        return
    run = watch().count(caller, tuple(sorted({d.process_index for d in mesh.devices.flat})))
    try:
        watch().enter(run)
        yield
    except BaseException as error:
        watch().fail(run, error)
        raise
    finally:
        watch().leave(run)
