"""`per_example`: optimizers that want the gradient of each example, not their mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgd._checks import PyTree, require_optimizer
from fgd._run.loss import Objective
from fgd._run.state import TrainState
from fgd._trees import count_rows


class PerExample(optax.GradientTransformationExtraArgs):
    """An optimizer of gradients with a leading axis of examples; made by `per_example`."""


def per_example(optimizer: optax.GradientTransformation) -> PerExample:
    r"""`optimizer`, for `train_step` to give it the gradient of every example of a batch.

    Instead of ∇θ loss(θ, batch), of the shapes of θ, it receives gᵢ = ∇θ loss(θ, rowᵢ), stacked
    along a leading axis of rows, where rowᵢ is a batch of one row; and it must combine them.
    Differentially private descent clips them and adds noise before it takes their mean:

    g = (Σᵢ gᵢ · min(1, C / ‖gᵢ‖) + σ C ξ) / rows, with ξ from N(0, I).

    With such an optimizer, in `step`, `fit`, `train` and `sweep` alike:

    - the loss must mean something for one row, as a mean or a sum over rows does. What mixes rows
      (contrastive losses, the statistics of BatchNorm) has no gradient of one example. In a mean
      that is weighted by row, the weight of a single row cancels: multiply instead;
    - the recorded loss, and each metric, is the mean of its values for single rows;
    - a loss that takes a `key` gets one for each row, `fold_in(the step's key, its place)`;
    - a step keeps the gradients of all its rows: memory for rows × parameters.

    Batches are of a shuffled order, not the independent draws (Poisson sampling) that most privacy
    accountants assume; fgd makes no statement of privacy.

    Args:
      optimizer: an optax transformation that begins with one of gradients by example, such as
        `optax.contrib.differentially_private_aggregate`. Its whole chain: within a chain,
        `per_example` is not seen.

    Raises:
      TypeError: no optax transformation.

    Example:
      >>> import fgd, jax, optax
      >>> private = optax.contrib.differentially_private_aggregate(
      ...     l2_norm_clip=1.0, noise_multiplier=0.1, key=jax.random.key(1))
      >>> optimizer = fgd.per_example(optax.chain(private, fgd.adam(0.1)))
      >>> model = fgd.models.linear(1, 1)
      >>> step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), optimizer)
      >>> data = fgd.data.linear(jax.random.key(0), 100)
      >>> state = step.init(model.init(0))
      >>> state, history = fgd.fit(step, state, data, batch_size=50, num_steps=99)
      >>> bool(history["loss"][-1] < 0.1 * history["loss"][0])
      True

    Source:
      Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, "Deep Learning with Differential
      Privacy", CCS 2016, algorithm 1.
    """
    require_optimizer("per_example", optimizer)
    return PerExample(*optax.with_extra_args_support(optimizer))


def by_example(objective: Objective) -> tuple[Objective, Callable[..., Any]]:
    """Of one row after the other: the mean of `objective`, and its `gradient_of`.

    The latter's loss, aux included, is the mean, and its gradient has one leading axis, the rows.
    """

    def of_rows(
        function: Callable[..., Any], params: PyTree, state: TrainState, batch: PyTree
    ) -> Any:
        def of_one(place: jax.Array, row: PyTree) -> Any:
            return function(params, state, jax.tree.map(lambda x: x[None], row), place)

        rows = count_rows("train_step", batch, "batch")
        return jax.vmap(of_one)(jnp.arange(rows), batch)

    def mean(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), tree)

    def value(params: PyTree, state: TrainState, batch: PyTree) -> Any:
        return mean(of_rows(objective, params, state, batch))

    def gradient(params: PyTree, state: TrainState, batch: PyTree) -> Any:
        each = jax.value_and_grad(objective, has_aux=True)
        values, grads = of_rows(each, params, state, batch)
        return *mean(values), grads, None

    return value, gradient


def wants_examples(opt_state: PyTree) -> bool:
    """Whether optax's own transformation of gradients by example is in an optimizer's state."""

    def is_private(x: Any) -> bool:
        return isinstance(x, optax.contrib.DifferentiallyPrivateAggregateState)

    return any(map(is_private, jax.tree.leaves(opt_state, is_leaf=is_private)))
