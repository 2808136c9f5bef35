"""`fit`: a whole training run as one compiled, pure function."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fgd import _jax
from fgd._checks import PyTree, count
from fgd._run.data import Stream, as_data
from fgd._run.loop import Body, scan
from fgd._run.memory import Memory, blocks_for, saving
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
    max_memory: int | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains for a number of steps, as one compiled program.

    It can't be interrupted: Ctrl-C is heard when JAX is done. `fgd.train` hears it on the way.

    A pure function of its arguments: `jax.jit`, `jax.vmap`, `jax.jvp` and `jax.grad` go through it.
    `jax.grad` keeps what the steps leave behind, or where that is much, computes blocks of them
    twice, in memory that grows as √steps. `fit` for m steps and then for n equals `fit` for m + n,
    bit for bit on CPU, wherever it is split.

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
      max_memory: bytes that the reverse-mode derivative of the run may keep of its steps (those of
        a single step come on top); under `vmap`, for each of the runs. The fewer, the more often
        steps are computed again: blocks are nested as deep as it takes. None: all that they leave
        if it is at most 256 MiB, or else about √steps states, and every step is computed twice.

    Returns:
      The state reached, and the history: a dict of float arrays [steps // record_every], "loss"
      and the loss's own metrics.

    Raises:
      TypeError, ValueError: an argument makes no sense; says which, before anything is compiled.
        `max_memory` is too little for a derivative, where there may be one: within a
        transformation of JAX's; says the least that will do.

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
    if max_memory is not None:
        max_memory = count("fit", "max_memory", max_memory, least=1)
    memory = Memory(max_memory) if _jax.is_tracing() else None
    with together("fit", mesh):
        ready = prepare("fit", step, state, data, options)
        program = step.program(run, static_argnames=("plan", "records", "memory"))
        records = ready.steps // record_every
        with within(ready.plan.mesh):
            results = program(
                ready.state, ready.data, plan=ready.plan, records=records, memory=memory
            )
        return block_on_cpu(ready.plan.mesh, results)


def run(
    update: Update,
    state: TrainState,
    data: PyTree,
    *,
    plan: Plan,
    records: int,
    memory: Memory | None = None,
) -> tuple[TrainState, Metrics]:
    """`fit`, its arguments settled; with a `memory` it may be differentiated."""
    step, blocks = one_step(update, data, plan), ((), ())
    if memory is not None:
        step = saving(step)
        blocks = blocks_for(step, state, records, plan.record_every, memory.most)
    state, history = scan(recorded(step, plan, blocks[1]), state, records, blocks[0])
    return plan.constrain(state), history


def one_step(update: Update, data: PyTree, plan: Plan) -> Body:
    def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        state, metrics = update(state, plan.batch(state, data))
        return plan.constrain(state), metrics

    return body


def recorded(step: Body, plan: Plan, blocks: tuple[int, ...] = ()) -> Body:
    """The steps that make one entry of the history."""

    def their_mean(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        state, metrics = scan(step, state, plan.record_every, blocks)
        return state, jax.tree.map(jnp.mean, metrics)

    return step if plan.record_every == 1 else their_mean
