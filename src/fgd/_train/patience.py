"""`Patience`: ends a run that gets no better, and keeps the best state."""

from typing import Any

from fgd._checks import count, describe, require_flag
from fgd._run.state import TrainState
from fgd._train.values import is_better, value_of


class Patience:
    """Ends a run when a metric has not been better for a number of evaluations.

    `fgd.train(…, evaluate=rows, stop_when=fgd.Patience("loss", 5))`. The best state is kept, with
    ties to the earliest; NaN is never the best. Every run begins with an empty memory; one that
    goes on from checkpoints goes on with what was remembered there, its best state included, which
    its checkpoints keep.

    Args:
      metric: the name of what is evaluated, "loss" or a metric; where nothing is evaluated, the
        mean of what is trained on.
      evaluations: how many, one after the other, may be no better than the best.
      maximize: whether the greatest is the best.

    Attributes:
      best_state: the state of the best evaluation; None before the first.
      best_value: its value.
      best_step: its step.

    Raises:
      TypeError, ValueError: `evaluations` is not a positive int; when called, there is no number of
        that name: says which there are.

    Example:
      >>> import fgd, jax
      >>> rows = fgd.data.linear(jax.random.key(0), 100)
      >>> train, valid = fgd.data.split(jax.random.key(1), rows, 0.8)
      >>> model = fgd.models.linear(1, 1)
      >>> step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.5))
      >>> patience = fgd.Patience("loss", 3)
      >>> state, _ = fgd.train(step, step.init(model.init(0)), train, batch_size=8, num_epochs=99,
      ...                      evaluate=valid, stop_when=patience)
      >>> int(state.step) == patience.best_step + 3 * 10
      True
    """

    def __init__(self, metric: str, evaluations: int, *, maximize: bool = False) -> None:
        if not isinstance(metric, str):
            raise TypeError(
                f'Patience: metric must be a name, such as "loss", got {describe(metric)}'
            )
        require_flag("Patience", maximize=maximize)
        self.metric, self.maximize = metric, maximize
        self.evaluations = count("Patience", "evaluations", evaluations, least=1)
        self.set_state(None)

    def __call__(self, state: TrainState, metrics: dict[str, Any]) -> bool:
        """Takes an evaluation; whether it was one too many."""
        value = value_of("Patience waits for", self.metric, metrics)
        if is_better(value, self.best_value, self.maximize):
            self.best_state, self.best_value, self.best_step = state, value, int(state.step)
            self._since = 0
        else:
            self._since += 1
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether it has waited long enough."""
        return self._since >= self.evaluations

    def get_state(self) -> dict[str, Any]:
        """What it remembers, for a checkpoint; but for `best_state`."""
        return {"value": self.best_value, "step": self.best_step, "since": self._since}

    def set_state(self, memory: dict[str, Any] | None) -> None:
        """Goes on from there; None: from nothing."""
        memory = memory or {"value": None, "step": None, "since": 0}
        self.best_state: TrainState | None = None
        self.best_value: float | None = memory["value"]
        self.best_step: int | None = memory["step"]
        self._since: int = memory["since"]

    def __repr__(self) -> str:
        best = "" if self.best_step is None else f": best {self.best_value:.6g} at {self.best_step}"
        return f"Patience({self.metric!r}, {self.evaluations}){best}"
