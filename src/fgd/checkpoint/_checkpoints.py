"""`Checkpoints`: states in a directory, found again whatever happened to it."""

import os
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from fgd import _checks
from fgd._checks import PyTree
from fgd.checkpoint import _arrays
from fgd.checkpoint._folder import About, Folder, MisfitError, locked
from fgd.checkpoint._json import decoded
from fgd.parallel._placement import agree, shared_mesh


@dataclass(frozen=True)
class Checkpoints:
    """A directory for the checkpoints of one run; `fgd.train(…, checkpoints=…)` fills it.

    Called again with the same arguments, by the same program started again, `train` goes on from
    the newest checkpoint and ends where it would have ended, bit for bit. A checkpoint is the
    state, written by Orbax, with a digest for each array; beside it lies the history. One that is
    damaged is seen to be, and the newest before it is taken.

    Attributes:
      directory: made when the first checkpoint is. One directory, one run.
      every: steps between two checkpoints; there is one at the start and one at the end, too. A run
        that is killed repeats fewer steps than that.
      keep: how many of the newest stay.
      best: the name of what is evaluated ("loss", or a metric) of which the best one stays as well;
        it is saved when it is reached.
      maximize: whether the greatest is the best.
      strict: refuse to go on with other data, another batch size, loss or optimizer than the
        checkpoint's, or on another version of JAX; False: go on with a warning that names them.

    Example:
      >>> import fgd, jax.numpy as jnp, tempfile
      >>> step = fgd.train_step(lambda w, x: jnp.mean((w - x) ** 2), fgd.sgd(0.1))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoints = fgd.Checkpoints(folder, every=10)
      ...     state, _ = fgd.train(
      ...         step, step.init(0.0), jnp.arange(4.0), num_steps=25, checkpoints=checkpoints
      ...     )
      ...     again = checkpoints.restore(step.init(0.0))
      >>> int(again.step), bool(again.params == state.params)
      (25, True)
    """

    directory: str | os.PathLike[str]
    _: KW_ONLY
    every: int = 1000
    keep: int = 3
    best: str | None = None
    maximize: bool = False
    strict: bool = True

    def __post_init__(self) -> None:
        for name, kind, expected in (
            ("directory", str | os.PathLike, "a str or a Path"),
            ("best", str | None, 'the name of a metric, such as "loss"'),
            ("maximize", bool, "True or False"),
            ("strict", bool, "True or False"),
        ):
            if not isinstance(getattr(self, name), kind):
                given = _checks.describe(getattr(self, name))
                raise TypeError(f"Checkpoints: {name} must be {expected}, got {given}")
        for name in ("every", "keep"):
            _checks.count("Checkpoints", name, getattr(self, name), least=1)
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(
                f"Checkpoints: expected a directory or a new path, but {self.path} is a file"
            )
        object.__setattr__(self, "directory", self.path)  # wherever the program goes

    @property
    def path(self) -> Path:
        """The directory, as an absolute path."""
        return Path(self.directory).expanduser().absolute()

    def latest(self) -> int | None:
        """The step of the newest checkpoint that can be read; None if there is none."""
        folder = Folder(self.path)
        for step in reversed(folder.steps()):
            try:
                folder.about(step)
            except MisfitError:
                raise
            except (OSError, ValueError):
                continue
            return step
        return None

    def save(self, state: PyTree) -> None:
        """Writes a state now; if it is spread over processes, all of them call this.

        Args:
          state: of a run, whose `step` names the checkpoint.

        Raises:
          FileExistsError: there is a checkpoint of that step.
          BlockingIOError: a run is using the directory.
          OSError: it can't be written; those that were there stay.
        """
        caller, step = "checkpoints.save", int(_step(state))
        with locked(caller, self.path, shared_mesh(state)) as folder:
            if step in folder.steps():
                raise FileExistsError(f"{caller}: {self.directory} has a checkpoint of step {step}")
            folder.save(caller, step, state, {})
            self.prune(folder, step)

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """The newest state that is as it was saved.

        Args:
          like: a state of the same kind, such as `step.init(params)`: arrays or shapes. Where its
            arrays lie on a mesh, so will the result's.
          step: of which checkpoint; None: the newest. If that is damaged, the newest before it,
            with a warning that says what is wrong with the others.

        Raises:
          FileNotFoundError: there is no checkpoint, or none of that step.
          ValueError: all are damaged, or they are of another model or optimizer: says which array
            is missing, left over, or of another shape or dtype; or a newer fgd wrote them.
        """
        caller, folder = "checkpoints.restore", Folder(self.path)
        steps = [x for x in folder.steps() if step is None or x == step]
        if not steps:
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{caller}: there is {which} in {self.directory}")
        mesh = shared_mesh(like)

        def read(about: About) -> PyTree:
            if problem := _arrays.misfit(about["leaves"], like):
                raise MisfitError(f"{caller}: {self.directory} does not fit like: {problem}")
            return folder.load(caller, about, like)

        _, state, damaged = newest_intact(folder, steps, mesh, read)
        if state is None:
            raise ValueError(
                f"{caller}: nothing in {self.directory} is whole: {'; '.join(damaged)}"
            )
        warn_damaged(damaged)
        return state

    def prune(self, folder: Folder, newest: int) -> None:
        """Removes all but the newest few up to a step, and the best."""
        steps = [step for step in folder.steps() if step <= newest]
        stay = set(steps[-self.keep :])
        if self.best is not None and (best := self._best(folder, steps)) is not None:
            stay.add(best)
        for step in steps:
            if step not in stay:
                folder.remove(step)

    def _best(self, folder: Folder, steps: list[int]) -> int | None:
        values = {}
        for step in steps:
            try:
                value = decoded(folder.about(step).get("value"))
            except (OSError, ValueError):
                continue
            if value is not None:
                values[step] = -value if self.maximize else value
        return min(values, key=lambda step: (values[step], step), default=None)


def newest_intact(
    folder: Folder, steps: list[int], mesh: Mesh | None, read: Callable[[About], Any]
) -> tuple[About | None, Any, list[str]]:
    """The newest checkpoint that every process can read, what was read, and the others' faults."""
    damaged = []
    for step in reversed(steps):
        fault, refusal, about, value = "", None, None, None
        try:
            about = folder.about(step)
            value = read(about)
        except MisfitError as error:
            refusal = error
        except Exception as error:  # whatever Orbax makes of damaged files
            fault = str(error).splitlines()[0] if str(error) else type(error).__name__
        _, refused, failed = agree(mesh, 0.0, refusal is not None, bool(fault))
        if refusal is not None:
            raise refusal
        if refused:
            raise ValueError(f"checkpoints: another process refused step {step}; see what it wrote")
        if not failed:
            return about, value, damaged
        damaged.append(f"step {step}: {fault or 'damaged for another process'}")
    return None, None, damaged


def warn_damaged(damaged: list[str]) -> None:
    """One warning for all checkpoints that were passed over."""
    if damaged:
        warnings.warn(
            f"checkpoints: an older one is used, for {'; '.join(damaged)}",
            RuntimeWarning,
            stacklevel=3,
        )


def _step(state: Any) -> Any:
    step = getattr(state, "step", None)
    if step is None or np.ndim(step) != 0:
        raise TypeError(
            "checkpoints.save: expected the state of a run, a TrainState, got "
            f"{_checks.describe(state)}"
        )
    return step
