"""`sweep`: many runs as one compiled program."""

import inspect
import math
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P

from fgd._checks import PyTree, count, is_concrete, is_key, strong
from fgd._hoist import hoist
from fgd._mesh import AXIS, data_mesh, place, replicated, settled

Run = Callable[..., PyTree]

# Compiled once for each run and kind of axes, and freed with the run: programs hold no functions.
_programs: "weakref.WeakKeyDictionary[Run, dict[Any, Any]]" = weakref.WeakKeyDictionary()


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
    order. Arrays that `run` closes over are arguments of the program, not constants in it. A second
    sweep with the same `run` and axes of the same shapes compiles nothing.

    Args:
      run: `run(**point) -> pytree of arrays`, a pure function of one point; usually a training run
        that makes its own step, so that learning rates, seeds and initial parameters may vary.
      max_parallel: runs computed side by side (on each device), which bounds memory; None: all.
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
      >>> loss_fn = fgd.supervised(model.apply, fgd.losses.mse)
      >>> def run(learning_rate, seed):
      ...     step = fgd.train_step(loss_fn, fgd.sgd(learning_rate))
      ...     state = step.init(model.init(jax.random.key(seed)), key=seed)
      ...     return fgd.fit(step, state, data, batch_size=10, num_epochs=5)[1]["loss"][-1]
      >>> fgd.sweep(run, learning_rate=jnp.logspace(-3, 0, 8), seed=jnp.arange(4)).shape
      (8, 4)
    """
    if not callable(run):
        raise TypeError(f"sweep: run must be a function, got {run!r}")
    if max_parallel is not None:
        max_parallel = count("sweep", "max_parallel", max_parallel, least=1)
    mesh = None if mesh is None else data_mesh("sweep", mesh)
    sizes = {}
    for name in axes:
        axes[name], sizes[name] = _axis(name, axes[name])
    if not axes:
        raise ValueError("sweep: expected at least one axis, such as seed=jnp.arange(4)")
    _check_signature(run, axes)
    try:
        programs = _programs.setdefault(run, {})
    except TypeError:  # unhashable, or without room for weak references: compiled every time
        programs = {}
    leaves, tree = jax.tree.flatten(axes)
    config: Any = jax.config
    settings = config.jax_enable_x64, config.jax_default_matmul_precision  # that a trace fixes
    kind = (tree, tuple((x.shape, x.dtype) for x in leaves), max_parallel, mesh, settings)
    if kind in programs:
        program, constants = programs[kind]
    else:
        program, constants = _compile(run, axes, sizes, max_parallel, mesh)
        constants = place("sweep", mesh, constants) if mesh else constants
        if all(map(is_concrete, [*constants, *leaves])):
            programs[kind] = program, constants
    return settled(mesh, program(constants, place("sweep", mesh, axes) if mesh else axes))


def _compile(
    run: Run, axes: PyTree, sizes: dict[str, int], max_parallel: int | None, mesh: Mesh | None
) -> tuple[Any, list[jax.Array]]:
    """`program(constants, axes)` for axes of these shapes, and its constants."""
    first = jax.tree.map(lambda x: jax.eval_shape(lambda x: x[0], x), axes)
    try:
        constants, hoisted = hoist(lambda point: run(**point), first)
    except TypeError as error:  # jax has several for this
        about_tracing = any(word in str(error) for word in ("concrete", "Tracer"))
        if not isinstance(error, jax.errors.JAXTypeError) and not about_tracing:
            raise
        raise TypeError(
            f"sweep: run needs a constant where an axis ({', '.join(axes)}) gives a value that "
            "varies; what decides shapes or code, such as architectures and batch sizes, can't be "
            "an axis: loop over it in Python, around sweep"
        ) from error
    inner = list(sizes)  # mapped side by side, axis by axis: what they share is computed once
    outer = []  # mapped one batch of points after the other, or spread over devices
    while inner and (mesh or math.prod(sizes[n] for n in inner) > (max_parallel or math.inf)):
        outer.append(inner.pop(0))
    parallel = (max_parallel or math.inf) // math.prod(sizes[name] for name in inner)

    def spread(constants: Any, axes: PyTree, points: PyTree) -> PyTree:
        def product(point: PyTree, names: list[str]) -> PyTree:
            if not names:
                return hoisted(constants, point)
            name, *rest = names
            return jax.vmap(lambda x: product({**point, name: x}, rest))(axes[name])

        if not outer:
            return product({}, inner)
        length = jax.tree.leaves(points)[0].shape[0]
        if length <= parallel:
            return jax.vmap(lambda point: product(point, inner))(points)
        together = int(parallel) if parallel > 1 else None
        return jax.lax.map(lambda point: product(point, inner), points, batch_size=together)

    def program(constants: Any, axes: PyTree) -> PyTree:
        if not outer:
            return spread(constants, axes, {})
        lengths = [sizes[name] for name in outer]
        total, devices = math.prod(lengths), mesh.shape[AXIS] if mesh else 1
        # Every device takes as many points; the last are repeated to fill up.
        at = np.minimum(np.arange(-(-total // devices) * devices), total - 1)
        rows = dict(zip(outer, np.unravel_index(at, lengths), strict=True))
        points = {name: jax.tree.map(lambda x, i=rows[name]: x[i], axes[name]) for name in outer}
        call = spread
        if mesh:
            specs = {"in_specs": (P(), P(), P(AXIS)), "out_specs": P(AXIS)}
            call = jax.shard_map(spread, mesh=mesh, check_vma=False, **specs)
        results = call(constants, {name: axes[name] for name in inner}, points)
        return jax.tree.map(lambda x: x[:total].reshape(*lengths, *x.shape[1:]), results)

    return jax.jit(program, out_shardings=mesh and replicated(mesh)), constants


def _axis(name: str, values: Any) -> tuple[PyTree, int]:
    """The axis as a pytree of arrays, and its length."""
    if isinstance(values, list | tuple | range) and all(_is_number(x) for x in values):
        values = jnp.array(values)  # it may hold keys and traced values, and knows what overflows
    if isinstance(values, np.ndarray) and values.dtype.kind in "OSU":
        values = values.tolist()  # words, or rows of unequal length
    bare = isinstance(values, jax.Array | np.ndarray)
    hint = "values along one axis, such as jnp.array([0.1, 0.01]) or jnp.arange(4)"
    lengths = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        what = f"sweep: axis {name}{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, int | float | complex | jax.Array | np.ndarray | np.generic):
            raise TypeError(f"{what} has {leaf!r}, expected numbers: {hint}")
        shape = np.shape(leaf)
        if shape == () or (bare and len(shape) != 1):
            raise ValueError(
                f"{what} has shape {shape}, expected {hint}"
                + ("; put points that are arrays themselves into a dict" if bare else "")
            )
        lengths.add(shape[0])
    if len(lengths) > 1:
        raise ValueError(f"sweep: axis {name} has leaves of unequal lengths {sorted(lengths)}")
    if not lengths or 0 in lengths:
        raise ValueError(f"sweep: axis {name} is empty, expected {hint}")
    return jax.tree.map(lambda x: x if is_key(x) else strong(x), values), lengths.pop()


def _is_number(x: Any) -> bool:
    numbers = int | float | complex | jax.Array | np.ndarray | np.generic
    return isinstance(x, numbers) and np.shape(x) == ()


def _check_signature(run: Run, axes: PyTree) -> None:
    try:
        signature = inspect.signature(run)
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(**axes)
    except TypeError as error:
        raise TypeError(
            f"sweep: axes are {', '.join(axes)}, but run takes {signature} ({error})"
        ) from None
