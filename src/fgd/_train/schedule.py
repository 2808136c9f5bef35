"""When `train` evaluates, and how many steps a compiled call takes."""

from typing import Any, NamedTuple

from fgd._checks import count
from fgd._run.data import Stream
from fgd._run.plan import Run

SECONDS = 0.5  # what a call should take, so that progress is seen and interrupts are heard
CAPACITY = 2**16  # entries of history that one compiled call can make


class Schedule(NamedTuple):
    """Steps at which a run is looked at: multiples of `every` since step 0, and its end.

    Attributes:
      first: steps that were completed before this run.
      total: steps of this run.
      every: steps between two evaluations; None: there are none.
    """

    first: int
    total: int
    every: int | None

    @property
    def ahead(self) -> int:
        """Steps since the last evaluation before this run."""
        return self.first % self.every if self.every else 0

    def next_stop(self, done: int) -> int:
        """The steps of this run at which to look next, after `done` of them."""
        if not self.every:
            return self.total
        return min(self.total, done + self.every - (self.ahead + done) % self.every)

    def check(self, record_every: int, what: str) -> None:
        """ValueError where evaluations would come between two entries of the history."""
        every = self.every
        if not every or every >= self.ahead + self.total:  # one evaluation, at the end
            return
        if every % record_every or self.ahead % record_every:
            raise ValueError(
                f"train: record_every={record_every} does not divide the {every} steps of {what}"
                + (f", or the {self.first} steps before" if self.ahead else "")
            )


class Pace:
    """How many entries of history a call should make: what `SECONDS` allow, found by growing."""

    def __init__(self) -> None:
        self.records = 1
        self._is_first = True

    def learn(self, records: int, seconds: float) -> None:
        """Learns from a call; the first one compiled, so its time says nothing."""
        fitting = int(records * SECONDS / max(seconds, 1e-9))
        grown = 8 * records if self._is_first else min(fitting, 8 * records)
        self.records, self._is_first = max(1, min(grown, CAPACITY)), False


def schedule_of(run: Run, watched: bool, evaluate_every: Any) -> Schedule:
    """When to look at a run; ValueError if that makes no sense."""
    if evaluate_every is not None:
        evaluate_every = count("train", "evaluate_every", evaluate_every, least=1)
        if not watched:
            raise ValueError(
                f"train: evaluate_every={evaluate_every} says when to evaluate, but there is "
                "neither evaluate nor stop_when"
            )
    elif watched and isinstance(run.data, Stream):
        raise ValueError(
            "train: a stream has no epochs; give evaluate_every, the steps between two evaluations"
        )
    every = evaluate_every or (run.plan.steps_per_epoch if watched else None)
    schedule = Schedule(int(run.state.step), run.steps, every)
    what = "evaluate_every" if evaluate_every else "an epoch; give evaluate_every"
    schedule.check(run.plan.record_every, what)
    return schedule
