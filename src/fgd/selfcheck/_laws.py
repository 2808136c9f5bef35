"""The laws, on one small run: 23 rows by sevens, a loss that draws, a feature that is always 0."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fgd
from fgd._checks import PyTree
from fgd.selfcheck._outcome import Outcome, check, near, normal

BY_SEVENS = partial(fgd.fit, batch_size=7)
MODEL = fgd.models.mlp([3, 8, 2], activation=jnp.tanh)
PARAMS = [{"w": normal(1, 3, 8), "b": normal(2, 8)}, {"w": normal(3, 8, 2), "b": normal(4, 2)}]


def _data() -> PyTree:
    x = normal(0, 23, 3) * [1, 0, 2]
    return jnp.array(x, float), jnp.array(x[:, :2] - 1, float)


@cache
def _problem() -> tuple[fgd.Step, fgd.TrainState, PyTree, list[int]]:
    """Step, state, data, and a list that is longer after each trace of the loss."""
    traces: list[int] = []

    def loss_fn(params: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
        traces.append(1)
        x, y = batch
        noise = 0.1 * jax.random.uniform(key, x.shape, x.dtype)
        return fgd.losses.mse(MODEL.apply(params, x + noise), y)

    step = fgd.train_step(loss_fn, fgd.momentum(0.02))
    return step, step.init(PARAMS, key=1), _data(), traces


@check("composition: fit(5) and again fit(5) is fit(10)")
def _composition() -> Outcome:
    step, start, data, _ = _problem()
    whole, history = BY_SEVENS(step, start, data, num_steps=10)
    middle, begun = BY_SEVENS(step, start, data, num_steps=5)
    end, ended = BY_SEVENS(step, middle, data, num_steps=5)
    losses = np.concatenate([begun["loss"], ended["loss"]])
    on_cpu = jax.default_backend() == "cpu"  # elsewhere sums may be in another order
    return near((whole, history["loss"]), (end, losses), 0 if on_cpu else 1e-5)


@check("loop: fit is a loop over step")
def _loop() -> Outcome:
    step, start, data, _ = _problem()
    whole, history = BY_SEVENS(step, start, data, num_steps=10)
    state, losses = start, []
    for t in range(10):
        rows = fgd.data.shuffle(start.key, t // 3, jnp.arange(7) + t % 3 * 7, 23)
        state, metrics = step(state, jax.tree.map(lambda x, rows=rows: x[rows], data))
        losses.append(metrics["loss"])
    return near((state, np.stack(losses)), (whole, history["loss"]), 1e-5)


@check("compile once: another state and other data compile nothing")
def _compile_once() -> Outcome:
    step, start, data, traces = _problem()
    BY_SEVENS(step, start, data, num_steps=10)
    before = len(traces)
    end, _ = BY_SEVENS(step, start, jax.tree.map(lambda x: 2 * x, data), num_steps=10)
    BY_SEVENS(step, end, data, num_steps=10)
    return Outcome("0 new traces", f"{len(traces) - before} new traces", len(traces) == before > 0)


def _run(learning_rate: Any, scale: Any) -> tuple[jax.Array, PyTree]:
    data = _data()
    step = fgd.train_step(fgd.supervised(MODEL, fgd.losses.mse), fgd.momentum(learning_rate))
    start = step.init(jax.tree.map(lambda x: jnp.array(x, float) * scale, PARAMS))
    state, _ = BY_SEVENS(step, start, data, num_steps=6, shuffle=False)
    return step.loss_fn(state.params, data), state.params


@check("sweep: many runs at once are one run after the other")
def _sweep() -> Outcome:
    rates, scales = jnp.array([0.01, 0.03, 0.1], float), jnp.array([0.5, 1.0], float)
    one = jax.jit(_run)
    each = [one(rate, scale) for rate in rates for scale in scales]
    expected = jax.tree.map(lambda *xs: np.stack(xs).reshape(3, 2, *xs[0].shape), *each)
    return near(expected, fgd.sweep(_run, learning_rate=rates, scale=scales), 1e-5)


@check("gradient: a run's derivative is the central difference")
def _gradient() -> Outcome:
    with jax.enable_x64(True):
        run, h = jax.jit(lambda rate: _run(rate, 1.0)[0]), 1e-5
        slope = jax.jit(jax.grad(run))(0.05)
        return near((run(0.05 + h) - run(0.05 - h)) / (2 * h), slope, 1e-6)


@check("gradient: that of descent on (w − c)² is 2n(1 − 2η)ⁿ⁻¹·(c − w₀)")
def _closed_form() -> Outcome:
    def end(rate: jax.Array) -> jax.Array:
        step = fgd.train_step(lambda w, c: jnp.mean((w - c) ** 2), fgd.sgd(rate))
        return fgd.fit(step, step.init(3.0), jnp.array([0.5, 1.5]), num_steps=20)[0].params

    value, slope = jax.jit(jax.value_and_grad(end))(0.05)
    return near((1 + 2 * 0.9**20, -2 * 20 * 0.9**19 * 2), (value, slope), 1e-5)


@check("epoch: every row once, or round and round")
def _epoch() -> Outcome:
    def loss_fn(params: PyTree, model_state: jax.Array, rows: jax.Array) -> Any:
        return 0 * params, model_state.at[rows].add(1)

    step, rows = fgd.train_step(loss_fn, fgd.sgd(0.1)), jnp.arange(24, dtype=jnp.int32)
    start = step.init(0.0, model_state=jnp.zeros(24, jnp.int32))
    shuffled, _ = fgd.fit(step, start, rows, batch_size=6, num_epochs=3)
    cycled, _ = fgd.fit(step, start, rows, batch_size=7, num_steps=5, shuffle=False)
    came = np.asarray(shuffled.model_state), np.asarray(cycled.model_state)
    return near((np.full(24, 3), np.bincount(np.arange(35) % 24)), came, 0)


@check("order: neither earlier calls nor later changes matter")
def _order() -> Outcome:
    def run(a: jax.Array, b: jax.Array) -> jax.Array:
        return a - 2 * b

    a, b = np.arange(2.0), np.arange(3.0)
    ab, ba = fgd.sweep(run, a=a, b=b), fgd.sweep(run, b=b, a=a)
    step = fgd.train_step(lambda w, x: jnp.mean((w - x) ** 2), fgd.sgd(0.5))
    x = np.full(2**16, 2.0, np.float32)
    state, _ = fgd.fit(step, step.init(0.0), x, num_steps=1)
    x[:] = a[:] = b[0:2] = -1
    expected = np.subtract.outer(np.arange(2.0), 2 * np.arange(3.0))
    return near((expected, expected.T, 2.0), (ab, ba, state.params), 1e-6)


@check("shard: all devices together are one")
def _shard() -> Outcome:
    if jax.device_count() == 1:
        return Outcome("nothing to compare", "one device", True)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    rows = 2 * jax.device_count()
    data = jnp.array(normal(3, 3 * rows, 3), float)
    step = fgd.train_step(lambda w, x: jnp.mean((x @ w - 1) ** 2), fgd.sgd(0.1))
    start = step.init(jnp.zeros(3))
    alone, together = (
        fgd.fit(step, start, data, batch_size=rows, num_steps=6, mesh=m) for m in (None, mesh)
    )
    return near(alone, together, 1e-5)
