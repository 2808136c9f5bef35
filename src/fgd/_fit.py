"""`fit`: a whole training run as one compiled, pure function."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import Mesh

from fgd._mesh import place, settled, specs, within
from fgd._plan import Plan, plan_run
from fgd._step import Step, Update
from fgd._types import Metrics, PyTree, TrainState

Body = Callable[[Any, None], tuple[Any, Any]]


def fit(
    step: Step,
    state: TrainState,
    data: PyTree,
    *,
    batch_size: int | None = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    shuffle: bool = True,
    record_every: int = 1,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains for a number of steps, as one compiled program.

    A pure function of its arguments: `jax.jit`, `jax.vmap` and `jax.grad` go through it (in memory
    that grows as √steps). `fit` for m steps and then for n equals `fit` for m + n, bit for bit on
    CPU, wherever it is split.

    Args:
      step: made by `fgd.train_step`.
      state: where to start, from `step.init` or an earlier run. It stays as it is.
      data: pytree of arrays that share their leading axis, the rows. NumPy arrays are copied to
        the device by every call; `jnp.asarray` does it once.
      batch_size: rows a step sees; None, all of them (batch gradient descent).
      num_steps: steps to take, or
      num_epochs: epochs to take, of `rows // batch_size` steps each. Exactly one of the two.
      shuffle: visit the rows of each epoch in a fresh uniform order, none twice; False, in the
        order they stand, going round.
      record_every: steps over which each recorded value is the mean; divides the steps.
      mesh: devices among which each batch is split, along the mesh's axis "data"; `batch_size`
        must be a multiple of their number. Data is copied to each of them, and the state too
        unless it lies on them already, as its caller placed it. None: where the data is.

    Returns:
      The state reached, and the history: a dict of float arrays [steps // record_every], "loss"
      and the loss's own metrics.

    Raises:
      TypeError, ValueError: an argument makes no sense; says which, before anything is compiled.

    Example:
      >>> import fgd, jax
      >>> x, y = fgd.data.linear(jax.random.key(0), 100)
      >>> model = fgd.models.linear(1, 1)
      >>> step = fgd.train_step(fgd.supervised(model.apply, fgd.losses.mse), fgd.sgd(0.5))
      >>> state = step.init(model.init(jax.random.key(1)))
      >>> state, history = fgd.fit(step, state, (x, y), batch_size=10, num_epochs=20)
      >>> history["loss"].shape, bool(history["loss"][-1] < 1e-4)
      ((200,), True)
    """
    plan, total = plan_run(
        "fit", step, state, data, batch_size, num_steps, num_epochs, shuffle, record_every, mesh
    )
    if plan.mesh:
        state, data = place("fit", plan.mesh, (state, data))
        plan = plan._replace(specs=specs(state))
    program = step.program(run, static_argnames=("plan", "records"))
    with within(plan.mesh):
        results = program(state, data, plan=plan, records=total // plan.record_every)
    return settled(plan.mesh, results)


def run(
    update: Update, state: TrainState, data: PyTree, *, plan: Plan, records: int
) -> tuple[TrainState, Metrics]:
    """`fit`, its arguments settled."""
    return _scan(recorded(update, data, plan), state, records)


def recorded(update: Update, data: PyTree, plan: Plan) -> Body:
    """The part of a run that makes one entry of its history."""

    def one_step(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        state, metrics = update(state, plan.batch(state, data))
        return plan.hold(state), metrics

    def window(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        state, metrics = _scan(one_step, state, plan.record_every)
        return state, jax.tree.map(jnp.mean, metrics)

    return one_step if plan.record_every == 1 else window


def _scan(body: Body, state: Any, length: int) -> tuple[Any, Any]:
    """`lax.scan`, whose derivative keeps about 2√length states: it recomputes window by window."""
    window = _window(length)
    if window == 1:
        return _loop(body, state, length)

    def windowed(state: Any, _: None) -> tuple[Any, Any]:
        return _loop(body, state, window)

    # Inside a loop, XLA has nothing to merge a recomputation with, so it need not be kept from it.
    remat = jax.checkpoint(windowed, prevent_cse=False)
    state, outputs = _loop(remat, state, length // window)
    outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
    if rest := length % window:
        state, last = _loop(body, state, rest)
        outputs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), outputs, last)
    return state, outputs


def _window(length: int) -> int:
    """The steps of a window: near √length, and a divisor if there is one; 1 in short loops."""
    root = math.isqrt(length)
    if root < 4:
        return 1
    return next((k for k in range(root, root // 2, -1) if length % k == 0), root)


def _loop(body: Body, state: Any, length: int) -> tuple[Any, Any]:
    """`lax.scan`, kept a loop when it runs once.

    XLA unrolls a loop of one iteration into its surroundings, fuses it with them and rounds
    differently. Composition bit for bit needs every step to be compiled as the same loop body.
    """
    if length != 1:
        return jax.lax.scan(body, state, length=length)
    with set_xla_metadata(**{"skip-simplify-while-loops_trip-count-one": "true"}):
        return jax.lax.scan(body, state, length=length)
