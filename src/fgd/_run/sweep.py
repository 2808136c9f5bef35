"""`sweep`: many runs as one compiled program."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P

from fgd import _jax, _jaxpr
from fgd._checks import PyTree, count, require_callable
from fgd._run.arrangement import Plan, plan_for
from fgd._run.axes import as_axis, check_signature, runs_alone
from fgd._run.programs import keep, weak
from fgd._run.side_by_side import Run, Traced
from fgd._trees import nbytes
from fgd.parallel._agreement import digest, require_alike
from fgd.parallel._placement import (
    AXIS,
    block_on_cpu,
    data_mesh,
    is_multi_process,
    place,
    replicated,
)
from fgd.parallel._watch import together

# Where the loops of many runs side by side carry more than caches hold, a CPU is faster with a few
# at a time: 1.1 to 1.8 times, for networks of 1 to 600 kB on a Xeon.
CACHE = 2**23  # bytes
FEW = 16  # runs; large networks lose nothing by it


def sweep(
    run: Run,
    /,
    *,
    max_parallel: int | None = None,
    mesh: Mesh | None = None,
    **axes: PyTree,
) -> PyTree:
    """`run` at every point of a product of axes, as one compiled program.

    `sweep(run, a=a, b=b)[i, j]` is `run(a=a[i], b=b[j])`, up to the rounding of sums in another
    order. Arrays that `run` closes over are arguments of the program, not constants in it, and are
    read when it is first traced. A second sweep with the same `run` and axes of the same shapes
    traces and compiles nothing: what is to change is an axis, or is closed over by a new `run`.

    If keys of the kinds rbg or unsafe_rbg are in `run`, it is computed at one point after the other
    (on each device), for side by side JAX would draw other numbers from them than in a loop.

    Args:
      run: `run(**point) -> pytree of arrays`, a pure function of one point; usually a training run
        that makes its own step, so that learning rates, seeds and initial parameters may vary.
      max_parallel: runs computed side by side (on each device), which bounds memory. None: all, or
        on CPU as many as carry 8 MiB from step to step (16 at least), for caches to hold.
      mesh: devices to spread the runs over, along its axis "data"; None: where the data is.
      axes: by the name of an argument of `run`: values along one axis, an array or a list of
        numbers; or a pytree of arrays with one common leading axis, whose rows go together
        (zipped axes, random search, sets of parameters). What decides shapes or code, such as
        architectures and batch sizes, can't be an axis: loop over it in Python.

    Returns:
      What `run` returns, each array with one leading axis for every keyword, in their order.

    Raises:
      TypeError: values that are not numbers; a `run` without that argument, or that needs a
        constant where an axis gives a value.
      ValueError: no axis, an empty one, one of another rank, or leaves of unequal length.

    Example:
      >>> import fgd, jax, jax.numpy as jnp
      >>> data = fgd.data.linear(jax.random.key(0), 100)
      >>> model = fgd.models.linear(1, 1)
      >>> loss_fn = fgd.supervised(model, fgd.losses.mse)
      >>> def run(learning_rate, seed):
      ...     step = fgd.train_step(loss_fn, fgd.sgd(learning_rate))
      ...     state = step.init(model.init(seed), key=seed)
      ...     return fgd.fit(step, state, data, batch_size=10, num_epochs=5)[1]["loss"][-1]
      >>> fgd.sweep(run, learning_rate=jnp.logspace(-3, 0, 8), seed=jnp.arange(4)).shape
      (8, 4)
    """
    require_callable("sweep", "run", run)
    if max_parallel is not None:
        max_parallel = count("sweep", "max_parallel", max_parallel, least=1)
    mesh = None if mesh is None else data_mesh("sweep", mesh)
    axes = {name: as_axis(name, values) for name, values in axes.items()}
    if not axes:
        raise ValueError("sweep: expected at least one axis, such as seed=jnp.arange(4)")
    check_signature(run, axes)
    names = tuple(axes)  # in the order of the call: as a tree, the dict has its own
    program = keep(
        run,
        ("sweep", names, max_parallel, mesh),
        lambda: _compiled(weak(run), names, max_parallel, mesh),
    )
    try:
        if mesh is None:
            return program(axes)
        with together("sweep", mesh):
            placed = place(mesh, axes)
            _require_same_sweep(program, axes, placed, max_parallel, mesh)
            return block_on_cpu(mesh, program(placed))
    except (TypeError, IndexError) as error:  # JAX has several for what can't be traced
        if not runs_alone(run, axes):
            raise
        what, *_ = str(error).splitlines() or [type(error).__name__]
        raise TypeError(
            f"sweep: run needs a constant where an axis ({', '.join(axes)}) gives a value that "
            f"varies ({what}); what decides shapes or code, such as architectures and batch "
            "sizes, can't be an axis: loop over it in Python, around sweep"
        ) from error


def _length(axis: PyTree) -> int:
    return jax.tree.leaves(axis)[0].shape[0]


def _require_same_sweep(
    program: Any, axes: PyTree, placed: PyTree, max_parallel: int | None, mesh: Mesh
) -> None:
    """ValueError on every process that shares `mesh`, if one of them is about to do otherwise."""
    if is_multi_process(mesh) and not _jax.is_tracing():
        require_alike(
            "sweep",
            mesh,
            names=", ".join(axes),
            lengths=", ".join(str(_length(axis)) for axis in axes.values()),
            max_parallel=max_parallel,
            devices=dict(mesh.shape),
            program=program.fingerprint(placed),
            axes=digest(axes),
        )


def _compiled(
    run: Callable[[], Run], names: tuple[str, ...], max_parallel: int | None, mesh: Mesh | None
) -> Any:
    """`program(axes)`, compiled for each of their shapes."""
    devices = mesh.shape[AXIS] if mesh else 1

    def product(one: Run, axes: PyTree, names: Sequence[str], point: PyTree) -> PyTree:
        """All points of these axes side by side; what they share is computed once."""
        if not names:
            return one(**point)
        name, *rest = names
        return jax.vmap(lambda x: product(one, axes, rest, {**point, name: x}))(axes[name])

    def arranged(one: Run, plan: Plan, axes: PyTree) -> PyTree:
        if not plan.outer:
            return product(one, axes, plan.inner, {})
        lengths = [_length(axes[name]) for name in plan.outer]
        total = math.prod(lengths)
        # The last points are repeated to fill up.
        at = np.minimum(np.arange(devices * plan.batches * plan.size), total - 1)
        rows = np.unravel_index(at.reshape(-1, plan.size), lengths)
        points = {
            name: jax.tree.map(lambda x, i=i: x[i], axes[name])
            for name, i in zip(plan.outer, rows, strict=True)
        }

        def mapped(inner_axes: PyTree, points: PyTree) -> PyTree:
            def batch(points: PyTree) -> PyTree:
                def of_inner(point: PyTree) -> PyTree:
                    return product(one, inner_axes, plan.inner, point)

                if plan.size > 1:
                    return jax.vmap(of_inner)(points)
                result = of_inner(jax.tree.map(lambda x: x[0], points))
                return jax.tree.map(lambda x: jnp.asarray(x)[None], result)

            if plan.batches > 1:
                return jax.lax.map(batch, points)
            result = batch(jax.tree.map(lambda x: x[0], points))
            return jax.tree.map(lambda x: x[None], result)

        if mesh:
            mapped = jax.shard_map(
                mapped, mesh=mesh, check_vma=False, in_specs=(P(), P(AXIS)), out_specs=P(AXIS)
            )
        results = mapped({name: axes[name] for name in plan.inner}, points)

        def product_of(x: jax.Array) -> jax.Array:
            shape = x.shape[2:]
            return x.reshape(at.size, *shape)[:total].reshape(*lengths, *shape)

        return jax.tree.map(product_of, results)

    def program(axes: PyTree) -> PyTree:
        config: Any = jax.config
        sizes = {name: _length(axes[name]) for name in names}
        on_cpu = jax.default_backend() == "cpu"
        once = Traced(run()) if on_cpu and not config.jax_disable_jit else None

        def traced(max_parallel: int | None, once: Traced | None = once) -> tuple[Any, Any]:
            """Of so many side by side: the program, and what is traced of it."""
            plan = plan_for(sizes, max_parallel, devices if mesh else None)
            one = once.laid_out(plan.vmaps) if once else run()
            as_told = jax.jit(partial(arranged, one, plan), inline=True)
            with jax.disable_jit(False):
                jaxpr = as_told.trace(axes).jaxpr  # JAX keeps it for the call below
            if once and _jaxpr.contains(jaxpr, "custom_vmap_call"):  # left over, no reverse mode
                return traced(max_parallel, None)
            return as_told, jaxpr

        as_told, jaxpr = traced(max_parallel)
        if _jaxpr.vmap_draws_otherwise(jaxpr):
            as_told, _ = traced(1)
        elif max_parallel is None and on_cpu and not jaxpr.effects:
            runs = -(-math.prod(sizes.values()) // devices)
            carried = max((nbytes(carry) for carry in _jaxpr.carries(jaxpr)), default=0)
            few = max(FEW, runs * CACHE // max(carried, 1))
            if few < runs:
                as_told, _ = traced(few)
        return as_told(axes)

    return _jax.ClosuresAsArguments(program, out_shardings=mesh and replicated(mesh))
