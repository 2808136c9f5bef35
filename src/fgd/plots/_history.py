"""A run as it went: training and evaluations, and the best of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fgd._checks import count, describe, require_flag
from fgd.plots._axes import axes, grid, log_scale, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def history(
    history: Mapping[str, Any],
    *,
    metric: str = "loss",
    maximize: bool = False,
    every: int = 1,
    ax: "Axes | None" = None,
) -> "Axes":
    """Training and evaluation over steps, the best evaluation marked.

    Args:
      history: what `train` or `fit` returns, with "evaluate" or without.
      metric: what to draw: "loss", or a metric of either.
      maximize: whether the greatest is the best.
      every: steps between two entries of training, the run's `record_every`.
      ax: where to draw; None, on a new figure.

    Raises:
      TypeError, ValueError: no history, or one without that metric: says which it has.

    Example:
      >>> import fgd, numpy as np
      >>> ax = fgd.plots.history({
      ...     "loss": np.array([4.0, 2.0, 1.0, 0.5]),
      ...     "evaluate": {"step": np.array([2, 4]), "loss": np.array([2.5, 3.0])},
      ... })
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['training', 'evaluation', 'best: 2.5 at step 2']
    """
    if not isinstance(history, Mapping):
        raise TypeError(f"history: expected a run's history, a dict, got {describe(history)}")
    if not isinstance(metric, str):
        raise TypeError(f"history: metric must be a name, got {describe(metric)}")
    require_flag("history", maximize=maximize)
    every = count("history", "every", every, least=1)
    evaluations = history.get("evaluate", {})
    if not isinstance(evaluations, Mapping):
        raise TypeError(f'history: "evaluate" is {describe(evaluations)}, expected a dict')
    if metric not in history and metric not in evaluations:
        known = sorted({*history, *evaluations} - {"evaluate", "step"}, key=str)
        raise ValueError(
            f"history: there is no {metric!r}, but {', '.join(map(repr, known)) or 'nothing'}"
        )
    if evaluations and "step" not in evaluations:
        raise ValueError('history: "evaluate" has no "step", the steps of its entries')
    steps = numbers("history", "step", evaluations["step"], "evaluations") if evaluations else None
    trained = numbers("history", metric, history[metric], "records") if metric in history else None
    evaluated = None
    if metric in evaluations and steps is not None:
        evaluated = numbers("history", metric, evaluations[metric], "evaluations")
        if len(evaluated) != len(steps):
            raise ValueError(
                f'history: "evaluate" has {len(evaluated)} values of {metric!r} at {len(steps)} '
                "steps"
            )
    ax = axes("history", ax)
    if trained is not None:
        # A run that goes on from another ends where it was evaluated last.
        end = len(trained) * every if steps is None else int(steps[-1])
        at = end - every * np.arange(len(trained))[::-1]
        ax.plot(at, trained, linewidth=1, alpha=0.7, label="training")
    if evaluated is not None and steps is not None:
        ax.plot(steps, evaluated, "o-", color="C1", markersize=3, label="evaluation")
        if not np.isnan(evaluated).all():
            best = int(np.nanargmax(evaluated) if maximize else np.nanargmin(evaluated))
            ax.plot(
                steps[best],
                evaluated[best],
                "o",
                color="C3",
                fillstyle="none",
                markersize=10,
                label=f"best: {evaluated[best]:.4g} at step {steps[best]}",
            )
    together = np.concatenate([x for x in (trained, evaluated) if x is not None])
    if metric == "loss" and (together[np.isfinite(together)] > 0).all():
        log_scale(ax)
    ax.set(xlabel="step", ylabel=metric)
    grid(ax)
    ax.legend()
    return ax
