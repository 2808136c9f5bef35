"""`evaluate`: exact means over every row."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgd._checks import count, count_rows, single
from fgd._types import Metrics, PyTree

MetricFn = Callable[[PyTree, PyTree], Metrics]

# Compiled once for each metric function, and freed with it: the programs refer to it weakly.
_programs: "weakref.WeakKeyDictionary[MetricFn, Any]" = weakref.WeakKeyDictionary()


def evaluate(
    metric_fn: MetricFn, params: PyTree, data: PyTree, *, batch_size: int = 1000
) -> Metrics:
    """The mean of every metric over every row of `data`, each row counted once.

    Args:
      metric_fn: `metric_fn(params, batch) -> {name: [rows] array}`, a value for each row.
        Compiled on first use and kept as long as the function lives, so define it once.
      params: the model's parameters.
      data: pytree of arrays that share their leading axis, the rows.
      batch_size: rows held in memory at a time; it need not divide the rows.

    Returns:
      {name: float scalar}, summed in float32 at least.

    Raises:
      ValueError: data without rows, or of unequal rows; a metric that is not one value a row.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> def metrics(params, batch):
      ...     return {"error": jnp.abs(batch - params)}
      >>> float(fgd.evaluate(metrics, 2.0, jnp.arange(6.0), batch_size=4)["error"])
      1.5
    """
    rows = count_rows("evaluate", data)
    batch_size = min(rows, count("evaluate", "batch_size", batch_size, least=1))
    if not callable(metric_fn):
        raise TypeError(f"evaluate: metric_fn must be a function, got {metric_fn!r}")
    try:
        program = _programs.get(metric_fn)
        function = weakref.ref(metric_fn)
    except TypeError:  # unhashable, or without room for weak references: compiled every time
        program, function = None, lambda: metric_fn
    if program is None:

        def means(params: PyTree, data: PyTree, rows: int, batch_size: int) -> Metrics:
            return _means(function(), params, data, rows, batch_size)

        program = jax.jit(means, static_argnums=(2, 3))
        if isinstance(function, weakref.ref):
            _programs[metric_fn] = program
    return program(params, data, rows, batch_size)


def _means(metric_fn: Any, params: PyTree, data: PyTree, rows: int, batch_size: int) -> Metrics:
    def sums(start: int | jax.Array, size: int) -> Metrics:
        batch = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), data)
        metrics = metric_fn(params, batch)
        if not isinstance(metrics, dict):
            raise TypeError(f"evaluate: metric_fn must return a dict, got {type(metrics).__name__}")
        return {name: jnp.sum(_per_row(name, value, size)) for name, value in metrics.items()}

    batches, rest = divmod(rows, batch_size)
    _, full = jax.lax.scan(
        lambda _, i: (None, sums(i * batch_size, batch_size)), None, jnp.arange(batches)
    )
    total = jax.tree.map(jnp.sum, full)
    if rest:
        total = jax.tree.map(jnp.add, total, sums(rows - rest, rest))
    return jax.tree.map(lambda x: x / rows, total)


def _per_row(name: str, value: Any, rows: int) -> jax.Array:
    if jnp.shape(value) != (rows,):
        raise ValueError(
            f"evaluate: metric {name!r} has shape {jnp.shape(value)}, expected ({rows},): one "
            'value a row; losses give that with reduction="none"'
        )
    return single(jnp.asarray(value))
