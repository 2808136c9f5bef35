"""`train_step`: a loss and an optimizer become one compiled step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr

from fgd._checks import PyTree, name_of, replaced, require_optimizer
from fgd._keys import as_key
from fgd._run.loss import ValueFn, gradient_of, objective_of
from fgd._run.per_example import PerExample, by_example, wants_examples
from fgd._run.programs import keep
from fgd._run.signature import read_signature
from fgd._run.state import Metrics, TrainState, require_state
from fgd._trees import mismatch, on_device, require_floats, strong
from fgd.models._model import Variables

Update = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]


@dataclass(frozen=True, eq=False, repr=False)
class Step:
    """One training step, `step(state, batch) -> (state, metrics)`; made by `fgd.train_step`.

    A step owns the programs compiled from it, and they die with it.

    Attributes:
      update: the step as a plain function, not compiled, for use inside other transformations.
      loss_fn: the loss as it was given.
      optimizer: the optax transformation it applies.
    """

    update: Update
    loss_fn: Callable[..., Any]
    optimizer: optax.GradientTransformation

    def init(
        self, params: PyTree, key: int | jax.Array = 0, *, model_state: PyTree = None
    ) -> TrainState:
        """The state before the first step.

        Args:
          params: pytree of float arrays (Python floats and NumPy arrays are converted), or the
            `Variables` of a model with arrays of its own.
          key: seed or typed PRNG key from which the whole run draws (shuffling, dropout).
          model_state: the model's own arrays, if the loss takes them and `params` are not
            `Variables`.

        Raises:
          TypeError: a parameter is not a float; `key` is neither a seed nor a typed key; the
            model's own arrays are missing, or given to a loss that does not take them.
        """
        if isinstance(params, Variables):
            if model_state is not None:
                raise TypeError("step.init: model_state is given twice, and within Variables")
            params, model_state = params
        takes = read_signature("train_step", "loss_fn", self.loss_fn).takes("model_state")
        if takes != (model_state is not None):
            raise TypeError(
                "step.init: the loss takes model_state, the model's own arrays: give "
                "step.init(model.init(0)), or step.init(params, model_state=…)"
                if takes
                else "step.init: there is a model_state, but the loss has no argument of that name"
            )
        require_floats("step.init", params)
        params = jax.tree.map(strong, on_device("step.init", "params", params))
        model_state = on_device("step.init", "model_state", model_state)
        return TrainState(
            params,
            jax.tree.map(strong, self.optimizer.init(params)),
            jnp.int32(0),
            as_key("step.init", key),
            jax.tree.map(strong, model_state),
        )

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        require_state("step", state)
        state, batch = on_device("step", "state", state), on_device("step", "batch", batch)
        return self.program(_once)(state, batch)

    def __repr__(self) -> str:
        return f"Step({name_of(self.loss_fn)})"

    def program(self, function: Callable[..., Any], **jit_options: Any) -> Any:
        """`function(update, …)` compiled for this step: made once, kept and freed with the step."""
        options = tuple(sorted(jit_options.items()))
        make = partial(jax.jit, partial(function, self.update), **jit_options)
        return keep(self, (function, options), make)


@replaced(
    "train_step",
    has_aux="return (loss, metrics) from loss_fn, and they are seen",
    stochastic="name an argument of loss_fn `key`, and it gets a fresh one in every step",
    stateful="name an argument of loss_fn `model_state`, and return (loss, model_state) or "
    "(loss, model_state, metrics)",
)
def train_step(loss_fn: Callable[..., Any], optimizer: optax.GradientTransformation) -> Step:
    r"""One compiled step of gradient descent.

    θ ← θ + update(∇θ loss(θ, batch)), where `update` is the optimizer's.

    Args:
      loss_fn: `loss_fn(params, batch) -> loss`, a float scalar, or `-> (loss, metrics)`: a dict of
        scalars that joins the history. Pure. An argument named `key` receives a fresh PRNG key in
        every step. One named `model_state` receives the model's own arrays (BatchNorm's running
        statistics), and then the result is `(loss, model_state)` or `(loss, model_state, metrics)`.
        The first argument is the parameters, the next of another name the batch; what has a default
        other than None is left alone.
      optimizer: an optax transformation of gradients, fgd's own included. Those that ask for them
        receive `value`, `grad` and `value_fn` (line searches, L-BFGS, reduce-on-plateau). Those
        that want the gradient of each example (private descent) are given as
        `fgd.per_example(optimizer)`. Those that want the parameters wrapped (lookahead) or
        gradients elsewhere (SAM) are not for it.

    Returns:
      `step`, with `step.init(params, key=0) -> state` and
      `step(state, batch) -> (state, {"loss": …, **metrics})`.

    Raises:
      TypeError: `loss_fn` is no function of params and a batch, `optimizer` no optax
        transformation; when the step is first traced, a loss or a metric of the wrong type.
      ValueError: when the step is first traced, a loss or metric that is not a scalar, a metric
        named "loss", "step" or "evaluate", an optimizer state that does not belong to the
        parameters, or updates of other shapes than theirs.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> step = fgd.train_step(lambda w, x: jnp.mean((w - x) ** 2), fgd.sgd(0.25))
      >>> state, metrics = step(step.init(0.0), jnp.array([1.0, 3.0]))
      >>> float(state.params), float(metrics["loss"])
      (1.0, 5.0)
    """
    wrapper = hasattr(optimizer, "gradient_transformation")  # optax.MultiSteps
    advice = "call its gradient_transformation()" if wrapper else "fgd.sgd(1e-2) makes one"
    require_optimizer("train_step", optimizer, f"; {advice}")
    objective = objective_of(loss_fn)
    gradient = gradient_of(objective)
    if isinstance(optimizer, PerExample):
        if read_signature("train_step", "loss_fn", loss_fn).takes("model_state"):
            raise TypeError(
                "train_step: per_example takes the gradient of each row alone, but the loss takes "
                "model_state, which is of a batch, as BatchNorm's statistics are; a model without "
                "it, with LayerNorm or GroupNorm, can be trained so"
            )
        objective, gradient = by_example(objective)
    extended = optax.with_extra_args_support(optimizer)

    def update(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        _check_optimizer_state(optimizer, state)
        loss, (model_state, metrics), grads, scaled_grad = gradient(state.params, state, batch)
        updates, opt_state = extended.update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            grad=grads,
            value_fn=ValueFn(lambda params: objective(params, state, batch)[0], scaled_grad),
        )
        _check_updates(optimizer, state.params, updates)
        params = optax.apply_updates(state.params, updates)
        after = TrainState(params, opt_state, state.step + 1, state.key, model_state)
        after = jax.tree.map(strong, after)
        if problem := mismatch(state, after):
            raise ValueError(f"train_step: a step must keep the state's types; state{problem}")
        return after, {"loss": strong(loss), **metrics}

    return Step(update, loss_fn, optimizer)


def _once(update: Update, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
    return update(state, batch)


def _check_optimizer_state(optimizer: optax.GradientTransformation, state: TrainState) -> None:
    """At trace time only: a state whose halves were not made for each other is refused by name."""
    require_state("step", state)
    # A function of its own, for JAX keeps a note for every trace of one that lives on, as optax's.
    expected = jax.eval_shape(lambda params: optimizer.init(params), state.params)
    if problem := mismatch(expected, state.opt_state):
        raise ValueError(
            f"step: opt_state does not belong to these params: opt_state{problem}; "
            "make both with step.init(params)"
        )
    if wants_examples(state.opt_state) and not isinstance(optimizer, PerExample):
        raise TypeError(f"train_step: {_TO_EXAMPLES}")


_TO_EXAMPLES = (
    "an optimizer that wants the gradient of each example, such as optax.contrib.dpsgd, is given "
    "as fgd.per_example(optimizer), its whole chain"
)


def _check_updates(
    optimizer: optax.GradientTransformation, params: PyTree, updates: PyTree
) -> None:
    """ValueError for updates that broadcasting alone would fit to the parameters."""
    wanted, found = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (params, updates))
    for path, leaf in wanted.items():
        if path not in found or jnp.shape(found[path]) != jnp.shape(leaf):
            got = f"shape {jnp.shape(found[path])}" if path in found else "no leaf"
            advice = (
                "per_example gives it the gradient of each example, which it must combine, as "
                "optax.contrib.differentially_private_aggregate does at the head of a chain"
                if isinstance(optimizer, PerExample)
                else _TO_EXAMPLES
            )
            raise ValueError(
                f"train_step: the optimizer's update of params{keystr(path)} has {got}, expected "
                f"{jnp.shape(leaf)}; {advice}"
            )
