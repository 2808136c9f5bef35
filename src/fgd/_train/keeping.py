"""What a run's checkpoints keep of its evaluations: the best, and what `stop_when` remembers."""

import dataclasses
import warnings
from typing import Any

from jax.sharding import Mesh

from fgd._checks import describe
from fgd._run.plan import Run
from fgd._run.state import TrainState
from fgd._run.step import Step
from fgd._run.supervised import Supervised
from fgd._train.patience import Patience
from fgd.checkpoint._checkpoints import Checkpoints
from fgd.checkpoint._folder import About, Folder
from fgd.checkpoint._json import decoded, encoded
from fgd.parallel._agreement import digest
from fgd.parallel._placement import is_multi_process


def facts(mesh: Any, *, evaluate: Any, **looks: Any) -> dict[str, Any]:
    """What `train` does between calls, in which processes must be alike: values, and a digest.

    Args:
      mesh: of the run, or None.
      evaluate, looks: the arguments of `train`.
    """
    kind_of = None if evaluate is None else "a function" if callable(evaluate) else "rows"
    known = {"evaluate": kind_of, **looks}
    if kind_of == "rows" and isinstance(mesh, Mesh) and is_multi_process(mesh):
        known["evaluation"] = digest(evaluate)
    for name, kind, parts in (
        ("checkpoints", Checkpoints, ("every", "keep", "best", "maximize", "strict")),
        ("stop_when", Patience, ("metric", "evaluations", "maximize")),
    ):
        given = looks[name]
        known[name] = given is not None
        if isinstance(given, kind):
            known |= {f"{name}.{part}": getattr(given, part) for part in parts}
    return known


def fitting(
    checkpoints: Any, step: Step, run: Run, evaluate: Any, stop_when: Any
) -> Checkpoints | None:
    """The checkpoints of a run; with `Patience`, those that keep its best.

    Raises:
      TypeError, ValueError: they are none, or this run can't keep them.
    """
    if checkpoints is None:
        return None
    if not isinstance(checkpoints, Checkpoints):
        raise TypeError(
            f"train: checkpoints must be fgd.Checkpoints(directory), got {describe(checkpoints)}"
        )
    first, record_every = int(run.state.step), run.plan.record_every
    before_end = checkpoints.every < run.steps + first % checkpoints.every
    if before_end and (checkpoints.every % record_every or first % record_every):
        raise ValueError(
            f"train: record_every={record_every} does not divide the {checkpoints.every} steps "
            "between two checkpoints"
            + (f", or the {first} steps before" if first % record_every else "")
        )
    best = checkpoints.best
    if best is not None and evaluate is None:
        raise ValueError(
            f"train: checkpoints keep the best {best!r}, but nothing is evaluated; give evaluate"
        )
    if best is not None:
        require_known("checkpoints keep the best", best, step, evaluate)
    if not isinstance(stop_when, Patience):
        return checkpoints
    ours, theirs = stop_when.metric, (best, checkpoints.maximize)
    if best is not None and theirs != (ours, stop_when.maximize):
        raise ValueError(
            f"train: checkpoints keep the best {best!r} (maximize={checkpoints.maximize}), "
            f"Patience that of {ours!r} (maximize={stop_when.maximize}); leave out the "
            "checkpoints' best"
        )
    return dataclasses.replace(checkpoints, best=ours, maximize=stop_when.maximize)


def require_known(what: str, name: str, step: Step, evaluate: Any) -> None:
    """ValueError, if rows are evaluated, for what is neither the loss nor one of its metrics."""
    if evaluate is not None and not callable(evaluate) and isinstance(step.loss_fn, Supervised):
        known = ["loss", *step.loss_fn.metrics]
        if name not in known:
            raise ValueError(
                f"train: {what} {name!r}, but the loss of this step has "
                f"{', '.join(map(repr, known))}"
            )


def memory(stop_when: Any) -> Any:
    """What `stop_when` remembers, as JSON can hold it; None if it has no `get_state`."""
    if not hasattr(stop_when, "get_state"):
        return None
    return encoded("what stop_when remembers", stop_when.get_state())


def is_stopped(stop_when: Any, about: About) -> bool:
    """Whether a run that `stop_when` ended at a checkpoint is at its end still."""
    if isinstance(stop_when, Patience):
        return about["stopped"] and stop_when.is_over
    return about["stopped"] and stop_when is not None


def recall(stop_when: Any, about: About, folder: Folder, state: TrainState) -> None:
    """Gives `stop_when` what it remembered at a checkpoint, and `Patience` its best state."""
    remembered = about.get("stop_when")
    if remembered is None or not hasattr(stop_when, "set_state"):
        return
    stop_when.set_state(decoded(remembered))
    if not isinstance(stop_when, Patience) or stop_when.best_step is None:
        return
    if stop_when.best_step == about["step"]:
        stop_when.best_state = state
        return
    try:
        best = folder.about(stop_when.best_step)
        stop_when.best_state = folder.load("train", best, state)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"train: the best state so far, of step {stop_when.best_step}, can't be had from the "
            f"checkpoints ({error}); Patience has it only if the run gets better than that",
            RuntimeWarning,
            stacklevel=2,
        )
