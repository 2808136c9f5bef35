"""`evaluate`: exact means over every row."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fgd._checks import PyTree, count, describe, single
from fgd._run.data import Stream, as_data
from fgd._run.programs import keep, weak
from fgd._run.signature import Signature, read_signature
from fgd._run.state import Metrics, TrainState
from fgd._run.supervised import Supervised, check_weights
from fgd._trees import count_rows, on_device
from fgd.losses._reduce import ratio
from fgd.models._model import Variables

# (params, model_state, batch) -> {name: [rows]}, and the rows' weights or None
PerRow = Callable[[PyTree, PyTree, PyTree], tuple[Any, jax.Array | None]]


def evaluate(
    metric_fn: Callable[..., Any],
    params: PyTree | TrainState,
    data: PyTree,
    *,
    batch_size: int = 1000,
) -> Metrics:
    """The mean of every metric over every row of `data`, each row counted once.

    Args:
      metric_fn: `metric_fn(params, batch) -> {name: [rows] array}`, a value for each row; one with
        an argument named `model_state` is given the model's own arrays. Or a loss of
        `fgd.supervised`: then the means are of its loss and its metrics, in evaluation mode,
        Σ w·l / Σ w over the data if that has weights w.
        Compiled on first use and kept as long as the function lives, so define it once.
      params: the model's parameters; or, with the model's own arrays, its `Variables` or the state
        of a run.
      data: pytree of arrays that share their leading axis, the rows.
      batch_size: rows held in memory at a time; it need not divide the rows.

    Returns:
      {name: float scalar}, summed in float32 at least.

    Raises:
      TypeError: `metric_fn` is no such function, or needs the model's own arrays: give it a state.
      ValueError: data without rows, or of unequal rows; a metric that is not one value a row.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> def metrics(params, batch):
      ...     return {"error": jnp.abs(batch - params)}
      >>> float(fgd.evaluate(metrics, 2.0, jnp.arange(6.0), batch_size=4)["error"])
      1.5
      >>> loss_fn = fgd.supervised(lambda w, x: w * x, fgd.losses.mse)
      >>> rows = jnp.arange(6.0), jnp.zeros(6)
      >>> round(float(fgd.evaluate(loss_fn, 1.0, rows)["loss"]), 4)
      9.1667
    """
    program, arguments = program_of(metric_fn, params, data, batch_size)
    return program(*arguments)


def program_of(
    metric_fn: Callable[..., Any], params: Any, data: PyTree, batch_size: int = 1000
) -> tuple[Any, tuple[Any, ...]]:
    """The jitted function that `evaluate` calls, and its arguments, checked."""
    data = as_data("evaluate", data)
    if isinstance(data, Stream):
        raise TypeError("evaluate: data is an iterator, expected arrays whose leading axis is rows")
    rows = count_rows("evaluate", data)
    batch_size = min(rows, count("evaluate", "batch_size", batch_size, least=1))
    check_weights("evaluate", metric_fn, data)
    model_state = None
    if isinstance(params, TrainState | Variables):
        params, model_state = params.params, params.model_state
    signature = _signature(metric_fn)
    if signature.takes("model_state") and model_state is None:
        raise TypeError(
            "evaluate: metric_fn takes model_state, the model's own arrays; give it the state of "
            "a run instead of its parameters"
        )
    program = keep(metric_fn, "evaluate", partial(_compiled, metric_fn, signature))
    params, model_state = on_device("evaluate", "params", (params, model_state))
    return program, (params, model_state, on_device("evaluate", "data", data), rows, batch_size)


def _signature(metric_fn: Any) -> Signature:
    if isinstance(metric_fn, Supervised):
        return metric_fn.signature
    return read_signature("evaluate", "metric_fn", metric_fn)


def _compiled(metric_fn: Any, signature: Signature) -> Any:
    function: Any = weak(metric_fn)

    def per_row(params: PyTree, model_state: PyTree, batch: PyTree) -> Any:
        if isinstance(function(), Supervised):
            return function().per_row(params, model_state, batch)
        return signature.call(function(), params, batch, model_state=model_state, key=None), None

    return jax.jit(partial(_means, per_row), static_argnums=(3, 4))


def _means(
    per_row: PerRow, params: PyTree, model_state: PyTree, data: PyTree, rows: int, batch_size: int
) -> Metrics:
    def sums(start: int | jax.Array, size: int) -> tuple[Metrics, jax.Array | None]:
        batch = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), data)
        metrics, weights = per_row(params, model_state, batch)
        if not isinstance(metrics, dict):
            raise TypeError(
                f"evaluate: metric_fn must return a dict of [rows] arrays, got {describe(metrics)}"
                "; a loss of fgd.supervised knows its own"
            )
        values = {name: jnp.sum(_one_a_row(name, value, size)) for name, value in metrics.items()}
        return values, None if weights is None else jnp.sum(weights)

    batches, rest = divmod(rows, batch_size)
    _, full = jax.lax.scan(
        lambda _, i: (None, sums(i * batch_size, batch_size)), None, jnp.arange(batches)
    )
    total = jax.tree.map(jnp.sum, full)
    if rest:
        total = jax.tree.map(jnp.add, total, sums(rows - rest, rest))
    values, weight = total
    return jax.tree.map(lambda x: x / rows if weight is None else ratio(x, weight), values)


def _one_a_row(name: str, value: Any, rows: int) -> jax.Array:
    if jnp.shape(value) != (rows,):
        raise ValueError(
            f"evaluate: metric {name!r} has shape {jnp.shape(value)}, expected ({rows},): one "
            'value a row; losses give that with reduction="none"'
        )
    if jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        raise TypeError(f"evaluate: metric {name!r} is complex, expected real numbers")
    return single(jnp.asarray(value))
