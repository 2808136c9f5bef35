"""Checkpoints of a run: where it goes on, and what it leaves on the way."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fgd._checks import PyTree
from fgd._run.data import Stream
from fgd._run.plan import Run
from fgd._run.step import Step
from fgd._train.identity import differences, identity, program, program_differs
from fgd._train.keeping import is_stopped, memory, recall
from fgd._train.log import Place
from fgd._train.position import move, position
from fgd._train.record import Record
from fgd._train.values import is_better, value_of
from fgd.checkpoint import _arrays
from fgd.checkpoint._checkpoints import Checkpoints, newest_intact, warn_damaged
from fgd.checkpoint._folder import About, Folder, MisfitError, locked
from fgd.checkpoint._journal import Journal, Mark
from fgd.checkpoint._json import decoded, encoded
from fgd.parallel._placement import attempt, leads, shared_mesh


@contextmanager
def saving(
    checkpoints: Checkpoints | None, step: Step, run: Run, stop_when: Any
) -> Iterator["Saver | None"]:
    """What keeps a run's checkpoints, while it holds the directory's lock; None of None."""
    if checkpoints is None:
        yield None
        return
    with locked("train", checkpoints.path, shared_mesh(run.state)) as folder:
        yield Saver(checkpoints, folder, step, run, stop_when)


class Saver:
    """Takes a record back to the newest checkpoint, and makes others.

    Attributes:
      resumed: the step of that checkpoint; None: the run begins.
      stopped: whether the run was ended there by `stop_when`.
    """

    def __init__(
        self, checkpoints: Checkpoints, folder: Folder, step: Step, run: Run, stop_when: Any
    ) -> None:
        self._checkpoints, self._folder, self._step, self._run = checkpoints, folder, step, run
        self._stop_when = stop_when
        self._first = int(run.state.step)
        self._mesh = shared_mesh(run.state)
        self._journal = Journal(folder.path / "history")
        self._ours = identity(step, run)
        self._saved: int | None = None
        self._best: float | None = None
        best = checkpoints.best
        self._best_of = None if best is None else [best, checkpoints.maximize]
        self.resumed: int | None = None
        self.stopped = False

    def next_stop(self, done: int) -> int:
        """The steps of this run at which the next checkpoint is due, after `done` of them."""
        every = self._checkpoints.every
        return done + every - (self._first + done) % every

    def resume(self, record: Record) -> tuple[Place | None, int | None]:
        """Takes the record to the newest intact checkpoint of this run, if there is one.

        Returns:
          Where the log stood then, and the checkpoint's step; None if the run begins.

        Raises:
          ValueError: the directory is another run's; nothing in it is whole.
        """
        folder, end = self._folder, self._first + self._run.steps
        steps = folder.steps()
        if not steps:
            return None, None
        if steps[-1] > end:
            raise ValueError(
                f"train: {folder.path} has checkpoints up to step {steps[-1]}, beyond the end of "
                f"this run at {end}; one directory is for one run: give another, or more steps"
            )
        usable = [step for step in steps if step >= self._first]
        about, found, damaged = newest_intact(folder, usable, self._mesh, self._read)
        if about is None:
            what = "; ".join(damaged) or f"the newest is of step {steps[-1]}"
            raise ValueError(
                f"train: no checkpoint in {folder.path} is whole and of step {self._first} or "
                f"later ({what}); give another directory, or remove it to begin again"
            )
        warn_damaged(damaged)
        state, pieces = found
        record.restore(state, about["step"], about["run"]["start"], pieces, about["unseen"])
        if isinstance(self._run.data, Stream):
            move(self._run.data, about, self._first, self._mesh)
        mark = Mark(*about["history"])

        def clear() -> None:
            for step in usable:
                if step > about["step"]:
                    folder.set_aside(step)
            self._journal.cut(mark)

        attempt("train", self._mesh, clear if self._leads else None)
        self._journal.mark = mark
        known = ("start", "leaves", "program") if self._is_stream else ("start", "leaves")
        self._ours |= {name: about["run"][name] for name in known}
        self._saved = self.resumed = about["step"]
        self._best = decoded(about["best"])
        recall(self._stop_when, about, folder, state)
        self.stopped = is_stopped(self._stop_when, about) and about["step"] > self._first
        return about["log"], self.resumed

    def begin(self, record: Record) -> None:
        """The first checkpoint is the start itself, if the run was not resumed."""
        if self.resumed is None:
            if self._leads:
                self._journal.cut(Mark())
            self.save(record)

    def save(self, record: Record, value: float | None = None, stopped: bool = False) -> None:
        """A checkpoint of what is reached, if it is not the newest one already."""
        step = self._first + record.done
        if step == self._saved and not stopped:
            return
        piece, unseen = record.take()

        def keep_history() -> None:
            self._journal.append(piece)

        attempt("train", self._mesh, keep_history if self._leads else None)
        extra = {
            "run": self._ours,
            "history": self._journal.mark,
            "unseen": unseen,
            "log": record.log.place() if record.log is not None else None,
            "value": encoded("what is evaluated", value),
            "best": encoded("the best", self._best),
            "best_of": self._best_of,
            "stopped": stopped,
            "stop_when": memory(self._stop_when),
        }
        self._folder.save("train", step, record.state, extra, position(self._run.data))
        if self._leads:
            self._checkpoints.prune(self._folder, step)
        self._saved = step

    def value(self, metrics: dict[str, Any] | None) -> tuple[float | None, bool]:
        """What `best` names, of what a look at the run gave, and whether it is the best so far."""
        best = self._checkpoints.best
        if best is None or metrics is None:
            return None, False
        value = value_of("checkpoints keep the best", best, metrics)
        maximize = self._checkpoints.maximize
        if not is_better(value, self._best, maximize):
            return None if math.isnan(value) else value, False
        self._best = value
        return value, True

    def saw(self, batch: PyTree) -> None:
        """Learns the program from a stream's first batch, and compares it with the checkpoint's."""
        theirs = dict(self._ours)
        self._ours["program"] = program(self._step, self._run.state, batch)
        self._judge(program_differs(self._ours, theirs))

    @property
    def _leads(self) -> bool:
        return leads(self._mesh)

    @property
    def _is_stream(self) -> bool:
        return isinstance(self._run.data, Stream)

    def _read(self, about: About) -> tuple[PyTree, list[Any]]:
        """State and history of a checkpoint; MisfitError if it is not one of this run's."""
        if "run" not in about:
            raise MisfitError(
                f"train: {self._folder.path} has states that were saved by hand; give another "
                "directory, and train from what checkpoints.restore gives"
            )
        if problem := _arrays.misfit(about["leaves"], self._run.state):
            raise MisfitError(
                f"train: {self._folder.path} is of another model or optimizer: {problem}"
            )
        theirs = about["run"]
        if self._first == theirs["start"]:
            begun = theirs["leaves"]
        elif self._first in self._folder.steps():
            begun = self._folder.about(self._first)["leaves"]
        else:
            raise MisfitError(
                f"train: {self._folder.path} is of a run that began at step {theirs['start']} and "
                f"has no checkpoint of step {self._first}, where the state given stands; give the "
                "state that the run began from, or another directory"
            )
        if others := _arrays.differences(self._ours["leaves"], begun):
            names = ", ".join(others[:4]) + (", …" if len(others) > 4 else "")
            raise MisfitError(
                f"train: {self._folder.path} is another run's: the state given differs from its "
                f"state of step {self._first} in {names}; give each run a directory of its own"
            )
        if (of := about["best_of"]) is not None and self._best_of not in (None, of):
            raise MisfitError(
                f"train: {self._folder.path} keeps the {_extreme(*of)}, now the "
                f"{_extreme(*self._best_of)} is asked for; give another directory"
            )
        self._judge(differences(self._ours, theirs))
        state = self._folder.load("train", about, self._run.state)
        return state, self._journal.read(Mark(*about["history"]))

    def _judge(self, found: list[str]) -> None:
        if not found:
            return
        said = f"train: since the checkpoints in {self._folder.path} were made, {'; '.join(found)}"
        if self._checkpoints.strict:
            raise MisfitError(
                f"{said}; the run would not be the one that was begun. Give another directory, or "
                "fgd.Checkpoints(…, strict=False) to go on all the same"
            )
        warnings.warn(said, RuntimeWarning, stacklevel=2)


def _extreme(metric: str, maximize: bool) -> str:
    return f"{'greatest' if maximize else 'least'} {metric!r}"
