"""`fit`: a whole training run as one compiled, pure function."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fgd._checks import PyTree
from fgd._run.data import Stream, as_data
from fgd._run.loop import Body, scan
from fgd._run.plan import Options, Plan, prepare
from fgd._run.state import Metrics, TrainState
from fgd._run.step import Step, Update
from fgd.parallel._placement import block_on_cpu, within
from fgd.parallel._watch import together


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

    It can't be interrupted: Ctrl-C is heard when JAX is done. `fgd.train` hears it on the way.

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
      >>> step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.5))
      >>> state = step.init(model.init(1))
      >>> state, history = fgd.fit(step, state, (x, y), batch_size=10, num_epochs=20)
      >>> history["loss"].shape, bool(history["loss"][-1] < 1e-4)
      ((200,), True)
    """
    data = as_data("fit", data)
    if isinstance(data, Stream):
        raise TypeError(
            "fit: data is an iterator, expected arrays whose leading axis is rows; fgd.train takes "
            "streams of batches"
        )
    options = Options(batch_size, num_steps, num_epochs, shuffle, record_every, mesh)
    with together("fit", mesh):
        ready = prepare("fit", step, state, data, options)
        program = step.program(run, static_argnames=("plan", "records"))
        with within(ready.plan.mesh):
            results = program(
                ready.state, ready.data, plan=ready.plan, records=ready.steps // record_every
            )
        return block_on_cpu(ready.plan.mesh, results)


def run(
    update: Update, state: TrainState, data: PyTree, *, plan: Plan, records: int
) -> tuple[TrainState, Metrics]:
    """`fit`, its arguments settled."""
    state, history = scan(recorded(update, data, plan), state, records)
    return plan.constrain(state), history


def recorded(update: Update, data: PyTree, plan: Plan) -> Body:
    """The steps that make one entry of the history."""

    def one_step(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        state, metrics = update(state, plan.batch(state, data))
        return plan.constrain(state), metrics

    def their_mean(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        state, metrics = scan(one_step, state, plan.record_every)
        return state, jax.tree.map(jnp.mean, metrics)

    return one_step if plan.record_every == 1 else their_mean
