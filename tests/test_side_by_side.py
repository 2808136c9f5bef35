"""Loops that carry weights laid out for products with shared rows compute what `vmap` computes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import close

import fgd
from fgd import _jaxpr
from fgd._run.shared_rows import Flows
from fgd._run.side_by_side import Traced

ROWS = np.random.default_rng(0).normal(size=(6, 4))
TARGETS = np.random.default_rng(1).normal(size=(6, 2))


def first(seed):
    keys = jax.random.split(jax.random.key(seed))
    shapes = (4, 3), (3, 2)
    return [0.5 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def loss(params, x, y):
    w, v = params
    return jnp.mean((jnp.tanh(x @ w) @ v - y) ** 2)


def descend(params, rate, x=ROWS, y=TARGETS):
    value, grads = jax.value_and_grad(loss)(params, x, y)
    return [p - rate * g for p, g in zip(params, grads, strict=True)], value


def fit(rate, seed):
    step = fgd.train_step(lambda p, rows: loss(p, *rows), fgd.momentum(rate))
    state, history = fgd.fit(
        step, step.init(first(seed)), (ROWS, TARGETS), batch_size=2, num_steps=7
    )
    return state.params, history["loss"]


def orders_of_their_own(rate, seed):
    """Rows that depend on the seed, and not on the rate."""
    step = fgd.train_step(lambda p, rows: loss(p, *rows), fgd.sgd(rate))
    state = step.init(first(seed), key=seed)
    return fgd.fit(step, state, (ROWS, TARGETS), batch_size=2, num_steps=4, record_every=2)[1]


def one_start(rate, seed):
    """What is carried begins alike in all runs."""
    return jax.lax.scan(lambda p, _: descend(p, rate), first(0), length=3)[0], seed


def counters(rate, seed):
    """Backwards over rows, with counters that all runs share, a `cond` and a `while`."""

    def step(carry, row):
        params, count, key = carry
        noise = jax.random.normal(key, row.shape)
        params, value = descend(params, rate, row + 0.1 * noise)
        count = jax.lax.cond(count > 1, lambda: count + 2, lambda: count + 1)
        key = jax.random.fold_in(key, count)
        value = jax.lax.while_loop(lambda v: v > 0.1, lambda v: v / 2, value)
        return (params, count, key), (value, count)

    start = first(seed), 0, jax.random.key(1)
    (params, count, _), recorded = jax.lax.scan(
        step, start, jnp.stack([ROWS, 2 * ROWS, 3 * ROWS]), reverse=True
    )
    return params, count, recorded


def rows_of_their_own(rate, seed):
    """A loop over what varies."""
    rows = jax.random.normal(jax.random.key(seed), (3, 6, 4))
    return jax.lax.scan(lambda p, x: descend(p, rate, x), first(2), rows)


def loops_in_loops(rate, seed):
    """Weights that an inner loop carries, uses, and evaluates."""

    def outer(params, _):
        params, values = jax.lax.scan(lambda p, _: descend(p, rate), params, length=2)
        total = jax.lax.scan(lambda t, x: (t + loss(params, x, TARGETS), None), 0.0, ROWS[None])[0]
        return params, (values, total)

    return jax.lax.scan(jax.checkpoint(outer), first(seed), length=3)


def by_its_rate(rate, seed):
    """A run, and its derivative, in a run."""
    return jax.value_and_grad(lambda rate: fit(rate, seed)[1][-1])(rate)


def seemingly(rate, seed):
    """Where it starts seems to vary with the rate, for a `while` does, and does not."""
    start, _ = jax.lax.while_loop(
        lambda c: c[1] < 1, lambda c: (c[0], c[1] + 1), (jnp.full(4, seed / 9), rate)
    )
    return jax.lax.scan(lambda w, _: (w - ROWS.T @ (ROWS @ w) / 50, w), start, length=3)


def closed_over(rate, seed):
    """Rows that are arrays of JAX's, and their transposes."""
    rows = jnp.asarray(ROWS)

    def step(w, _):
        return w - rate * rows.T @ (rows @ w), None

    return jax.lax.scan(step, jnp.full(4, seed / 9), length=3)[0] @ rows.T


def recorded(rate, seed):
    """A number that an inner loop records as often as weights are long."""

    def step(carry, _):
        w, v = carry
        _, recorded = jax.lax.scan(lambda n, x: (n, v * x), 0, jnp.ones(4))
        return (w - rate * jnp.sum(ROWS @ w) + recorded, v * rate), None

    return jax.lax.scan(step, (jnp.full(4, seed / 9), 1.0), length=3)[0]


SHARED = [  # their rows
    fit, one_start, counters, loops_in_loops, by_its_rate, seemingly, closed_over, recorded
]  # fmt: skip
OTHERS = [orders_of_their_own, rows_of_their_own]
RATES, SEEDS = np.array([0.01, 0.1, 0.3]), np.arange(4)


def has_such_loops(run, *args):
    """Whether one is laid out, where each argument is mapped by a `vmap` of its own."""
    levels = [frozenset({i}) for i in range(len(args))]
    return Flows().of_jaxpr(jax.make_jaxpr(run)(*args).jaxpr, levels).loops


@pytest.mark.parametrize("run", SHARED + OTHERS, ids=lambda run: run.__name__)
def test_it_is_the_loop(run, x64):
    rates, seeds = jnp.asarray(RATES), jnp.asarray(SEEDS)
    assert has_such_loops(run, rates[0], seeds[0]) == (run in SHARED)
    swept = fgd.sweep(run, rate=rates, seed=seeds, max_parallel=5 if run is fit else None)
    once = jax.jit(run)
    for i, j in np.ndindex(3, 4):
        of_point = jax.tree.map(lambda x, i=i, j=j: x[i, j], swept)
        close(of_point, once(rates[i], seeds[j]), rtol=1e-9, atol=1e-12)


def test_derivatives_of_a_sweep(x64):
    """In both modes, and within jit."""

    def total(rates):
        return jnp.sum(fgd.sweep(fit, rate=rates, seed=SEEDS)[1])

    def of_one(rate):
        return sum(jnp.sum(fit(rate, seed)[1]) for seed in jnp.arange(4))

    rates = jnp.asarray(RATES)
    expected = jax.jit(lambda rates: jnp.stack([jax.grad(of_one)(rate) for rate in rates]))(rates)
    np.testing.assert_allclose(jax.grad(jax.jit(total))(rates), expected, rtol=1e-9)
    slope = jax.jvp(total, (rates,), (jnp.ones(3),))[1]
    np.testing.assert_allclose(slope, jnp.sum(expected), rtol=1e-9)


def test_the_first_layer_and_its_averages():
    """And no others, though all have one shape: that of the rows, too."""
    rows, square = np.ones((4, 4)), jnp.ones((4, 4))

    def step(carry, _):
        (w, v), (a, b) = carry
        loss = lambda w, v: jnp.sum(jnp.tanh(rows @ w) @ v)  # noqa: E731
        dw, dv = jax.grad(loss, (0, 1))(w, v)
        a, b = 0.9 * a + dw, 0.9 * b + dv
        return ((w - a, v - b), (a, b)), None

    def run(scale):
        return jax.lax.scan(step, jax.tree.map(lambda x: scale * x, 2 * ((square,) * 2,)), length=2)

    *_, scan = jax.make_jaxpr(run)(1.0).jaxpr.eqns
    carried = _jaxpr.carried(scan.params)
    levels = [frozenset({0}) if i in carried else frozenset() for i in range(len(scan.invars))]
    _, flow = Flows().of_body(scan.params, levels)
    assert sorted(carried.index(i) for i in flow.weights if i in carried) == [0, 2]


def megabytes(run):
    swept = jax.jit(lambda rates: fgd.sweep(run, rate=rates))
    program = swept.lower(jnp.ones(16)).compile()
    return program.memory_analysis().temp_size_in_bytes / 2**20


def test_what_is_computed_again_is_not_kept(monkeypatch):
    """Blocks within `jax.checkpoint`, differentiated in a loop, take no more than by `vmap`."""

    @jax.checkpoint
    def block(h, w):
        for _ in range(10):
            h = jnp.sin(h @ w)
        return h

    def loss(w):
        return jnp.sum(block(block(block(jnp.ones((200, 64)), w), w), w))

    def run(rate):
        return jax.lax.scan(
            lambda w, _: (w - rate * jax.grad(loss)(w), None), jnp.eye(64), length=2
        )

    jax.config.update("jax_disable_most_optimizations", False)
    laid_out = megabytes(run)
    monkeypatch.setattr(Traced, "laid_out", lambda self, vmaps: self.run)
    assert laid_out < 1.05 * megabytes(lambda rate: run(rate))


def test_functions_that_call_functions_are_read_once(monkeypatch):
    """Each calls the one before twice: 2³⁰ calls of the first."""
    rows, read = jnp.asarray(ROWS, jnp.float32), []
    function = jax.jit(lambda w, rate: w - rate * rows.T @ (rows @ w))
    for _ in range(30):
        function = jax.jit(lambda w, rate, f=function: f(f(w, rate), rate))

    def run(rate):
        return jax.lax.scan(lambda w, _: (function(w, rate), None), jnp.ones(4), length=2)[0]

    of_equation = Flows.of_equation
    monkeypatch.setattr(Flows, "of_equation", lambda *args: (read.append(0), of_equation(*args))[1])
    jax.make_jaxpr(lambda rates: fgd.sweep(run, rate=rates))(jnp.ones(3))
    assert 10 < len(read) < 1000


@pytest.mark.parametrize("optimizer", [fgd.sgd(0.1), fgd.adam(0.1)], ids=["sgd", "adam"])
def test_a_step_moves_no_weights(optimizer):
    """Of 16 networks that share their rows, in what XLA makes of a step."""
    jax.config.update("jax_disable_most_optimizations", False)
    model = fgd.models.mlp((64, 32, 10))
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), optimizer)
    data = np.ones((8, 64), np.float32), np.zeros(8, np.int32)

    def run(seed):
        return fgd.fit(step, step.init(model.init(seed)), data, batch_size=4, num_steps=3)

    def moves(run):
        program = jax.jit(jax.vmap(lambda seed: run(seed=seed))).lower(jnp.arange(16)).compile()
        moved = r" = f32\[(16,64,32|64,16,32|64,512|512,64)\]\S* (copy|transpose)\(.*while/body"
        return re.findall(moved, program.as_text())

    assert moves(run)
    assert not moves(Traced(run).laid_out([["seed"]]))


def rows_of_the_seed(seed):
    rows = jax.random.normal(jax.random.key(seed), (6, 4))
    return jax.lax.scan(lambda p, _: descend(p, 0.1, rows), first(seed), length=2)


def printed(seed):
    def step(params, _):
        jax.debug.print("{}", seed)
        return descend(params, 0.1)

    return jax.lax.scan(step, first(seed), length=2)


def batches_of_products(seed):
    def step(w, _):
        return w - jnp.einsum("bik,bkn->bkn", ROWS[None] @ w, w), None

    return jax.lax.scan(step, jnp.full((1, 4, 4), seed / 9), length=2)


@pytest.mark.parametrize("run", [rows_of_the_seed, printed, batches_of_products, first])
def test_others_stay_as_they_are(run, x64):
    assert not has_such_loops(run, SEEDS[0])


def test_in_lower_precision():
    """Weights are carried in float32 and multiplied in bfloat16."""
    model = fgd.models.mlp((4, 3, 2))
    data = ROWS.astype(np.float32), TARGETS.astype(np.float32)
    loss_fn = fgd.supervised(model, fgd.losses.mse, compute_dtype="bfloat16")

    def run(seed):
        step = fgd.train_step(loss_fn, fgd.sgd(0.1))
        return fgd.fit(step, step.init(model.init(seed)), data, num_steps=3)[1]["loss"]

    assert has_such_loops(run, SEEDS[0])
    swept = fgd.sweep(run, seed=SEEDS)
    close(swept, jnp.stack([run(seed) for seed in SEEDS]), rtol=0.02)
