"""The laws that make training a function (docs/laws.md), as properties."""

import dataclasses

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from problems import OPTIMIZERS, Problem, close, examples, problems, same

import fgd


def joined(*histories):
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *histories)


@examples(2, 12)
@given(problems(), st.integers(0, 12), st.integers(0, 12), st.sampled_from([1, 2, 5]))
@example(Problem("mlp", "adam", False, 23, 7, True, 0), 1, 1, 1)
@example(Problem("relu mlp", "momentum", True, 100, 3, True, 0), 1, 19, 1)
@example(Problem("linear", "sgd", False, 5, None, True, 0), 16, 17, 1)
def test_composition(problem, first, second, record_every):
    """fit(m) and then fit(n) is fit(m + n), bit for bit; train is fit, however long its calls."""
    step, data = problem.step(), problem.data
    start = problem.start(step)
    m, n = first * record_every, second * record_every

    def fit(state, steps):
        return fgd.fit(step, state, data, num_steps=steps, record_every=record_every, **problem.run)

    whole, history = fit(start, m + n)
    middle, begun = fit(start, m)
    end, ended = fit(middle, n)
    assert same(whole, end)
    assert same(history, joined(begun, ended))
    assert int(whole.step) == m + n

    trained, recorded = fgd.train(
        step,
        start,
        data,
        num_steps=m + n,
        record_every=record_every,
        **problem.run,
    )
    assert same(whole, trained)
    assert same(history, recorded)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_composition_at_every_split(optimizer):
    """8 steps over 23 rows by sevens: mid-epoch, at epoch ends, and one step at a time."""
    problem = Problem("mlp", optimizer, True, 23, 7, True, 1)
    step, data = problem.step(), problem.data
    start = problem.start(step)
    whole, history = fgd.fit(step, start, data, num_steps=8, **problem.run)
    for split in range(9):
        state, begun = fgd.fit(step, start, data, num_steps=split, **problem.run)
        state, ended = fgd.fit(step, state, data, num_steps=8 - split, **problem.run)
        assert same((whole, history), (state, joined(begun, ended))), split
    state, histories = start, []
    for _ in range(8):
        state, one = fgd.fit(step, state, data, num_steps=1, **problem.run)
        histories.append(one)
    assert same((whole, history), (state, joined(*histories)))


@pytest.mark.parametrize("seed", range(6))
def test_single_steps_round_as_the_whole_does(seed):
    """A net of 9 parameters, for half of whose draws XLA would round an unrolled step otherwise."""
    draw = np.random.default_rng(seed)
    data = tuple(jnp.asarray(draw.normal(size=(7, n)), float) for n in (2, 1))
    model = fgd.models.mlp([2, 2, 1], activation=jnp.tanh)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.1))
    start = state = step.init(model.init(jax.random.key(seed)))
    whole, history = fgd.fit(step, start, data, num_steps=12, batch_size=3, shuffle=False)
    losses = []
    for _ in range(12):
        state, one = fgd.fit(step, state, data, num_steps=1, batch_size=3, shuffle=False)
        losses.append(one)
    assert same((whole, history), (state, joined(*losses)))


def test_zero_steps_are_the_identity():
    problem = Problem("mlp", "adam", False, 23, 7, True, 0)
    step = problem.step()
    start = problem.start(step)
    for run in (fgd.fit, fgd.train):
        state, history = run(step, start, problem.data, num_epochs=0, batch_size=7)
        assert same(state, start)
        assert history["loss"].shape == (0,)


def batches(problem, num_steps):
    """The rows of each step, from the documented order of an epoch and Python's own integers."""
    n, size = problem.rows, problem.batch_size
    for t in range(num_steps):
        if size is None:
            rows = np.arange(n)
        elif problem.shuffle:
            epoch, i = divmod(t, n // size)
            positions = jnp.arange(i * size, (i + 1) * size)
            rows = np.asarray(fgd.data.shuffle(jax.random.key(problem.seed), epoch, positions, n))
        else:
            rows = np.arange(t * size, (t + 1) * size) % n
        yield jax.tree.map(lambda x, rows=rows: x[rows], problem.data)


@examples(2, 12)
@given(problems(), st.integers(1, 25))
@example(Problem("mlp", "adam", True, 23, 7, True, 0), 10)
@example(Problem("mlp", "adam", True, 23, 7, False, 0), 10)
def test_loop(problem, num_steps):
    """fit is a Python loop over step on the same batches."""
    with jax.enable_x64(True):
        step = problem.step()
        state = problem.start(step)
        whole, history = fgd.fit(step, state, problem.data, num_steps=num_steps, **problem.run)
        losses = []
        for batch in batches(problem, num_steps):
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
        close(whole.params, state.params, rtol=1e-9, atol=1e-12)
        close(history["loss"], jnp.stack(losses), rtol=1e-9, atol=1e-12)
        assert int(state.step) == int(whole.step) == num_steps


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - {"optax adamw"}))  # NaN: optax#882
@examples(1, 3)
@given(st.data())
def test_gradient(optimizer, source):
    """jax.grad through fit is the central difference, in learning rate and initial parameters."""
    smooth = st.sampled_from(["linear", "mlp", "flax"])  # a kink has no central difference
    problem = source.draw(problems(optimizer=optimizer, model=None))._replace(
        model=source.draw(smooth)
    )
    steps = source.draw(st.integers(1, 33))
    with jax.enable_x64(True):
        data = problem.data

        def final_loss(learning_rate, params):
            step = problem.step(learning_rate)
            state, _ = fgd.fit(step, step.init(params), data, num_steps=steps, **problem.run)
            return problem.loss(state.params, data, jax.random.key(5))

        start = problem.start(problem.step()).params
        run = jax.jit(final_loss)
        slope, gradient = jax.jit(jax.grad(final_loss, (0, 1)))(0.02, start)
        h = 1e-6
        np.testing.assert_allclose(
            slope, (run(0.02 + h, start) - run(0.02 - h, start)) / (2 * h), rtol=1e-5, atol=1e-9
        )
        direction = jax.tree.map(
            lambda p: jax.random.normal(jax.random.key(p.size), p.shape), start
        )
        along = [jax.tree.map(lambda p, d, s=s: p + s * h * d, start, direction) for s in (1, -1)]
        expected = (run(0.02, along[0]) - run(0.02, along[1])) / (2 * h)
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_gradient_memory_grows_as_the_root_of_steps(monkeypatch):
    """Where it would be more than what is simply kept; of a large network that is soon."""
    monkeypatch.setattr("fgd._run.memory.EVERYTHING", 0)
    problem = Problem("mlp", "adam", False, 64, 16, True, 0)

    def bytes_for(num_steps):
        def final_loss(learning_rate):
            step = problem.step(learning_rate)
            start = problem.start(step)
            _, history = fgd.fit(step, start, problem.data, num_steps=num_steps, **problem.run)
            return history["loss"][-1]

        program = jax.jit(jax.grad(final_loss)).lower(0.02).compile()
        return program.memory_analysis().temp_size_in_bytes - 3 * 4 * num_steps  # the history's

    assert bytes_for(6400) < 12 * bytes_for(64)  # 100 × the steps


def test_compile_once(compiled):
    """The same step and shapes compile nothing again; for train, nor does another length."""
    problem = Problem("mlp", "adam", True, 23, 7, True, 0)
    step, data = problem.step(), problem.data
    state = problem.start(step)

    def everything(state, num_steps):
        state, _ = fgd.fit(step, state, data, num_steps=3, **problem.run)
        state, _ = step(state, data)
        return fgd.train(step, state, data, num_steps=num_steps, progress=False, **problem.run)[0]

    state = everything(state, 5)
    before = compiled()
    assert before > 0
    everything(state, 5)
    everything(state, 11)
    assert compiled() == before


@examples(4, 12)
@given(problems(stochastic=False), st.integers(1, 3))
@example(Problem("mlp", "sgd", False, 23, 7, False, 0), 3)
@example(Problem("mlp", "sgd", False, 23, 7, True, 0), 3)
def test_epoch(problem, epochs):
    """Each epoch visits n // b · b rows, none twice; unshuffled batches go round the rows."""
    n, size = problem.rows, problem.batch_size or problem.rows

    def loss_fn(params, model_state, rows):
        return 0.0 * params, model_state.at[rows].add(1)

    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    state = step.init(0.0, key=problem.seed, model_state=jnp.zeros(n, int))
    for epoch in range(epochs):
        before = state.model_state
        state, _ = fgd.fit(step, state, jnp.arange(n), num_epochs=1, **problem.run)
        visits = np.asarray(state.model_state - before)
        assert visits.max() == 1
        assert visits.sum() == n // size * size
        if not problem.shuffle:
            expected = np.bincount(np.arange((epoch + 1) * (n // size) * size) % n, minlength=n)
            np.testing.assert_array_equal(state.model_state, expected)


def test_unshuffled_batches_do_not_overflow():
    """Row t·b mod n where t·b passes 2³²."""
    n, size, t = 1_000_003, 999, 2_000_000_000

    def loss_fn(params, model_state, rows):
        return 0.0 * params, rows[:1]

    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    state = step.init(0.0, model_state=jnp.zeros(1, jnp.int32))
    state = dataclasses.replace(state, step=jnp.int32(t))
    state, _ = fgd.fit(
        step, state, jnp.arange(n, dtype=jnp.int32), batch_size=size, num_steps=1, shuffle=False
    )
    assert state.model_state.tolist() == [t * size % n]


def test_a_run_is_a_function():
    """jit, vmap and grad of a run, in any order; vmap over seeds equals the loop."""
    problem = Problem("mlp", "adam", True, 23, 7, True, 0)
    model = fgd.models.mlp([3, 4, 2], activation=jnp.tanh)

    def run(learning_rate, seed):
        step = problem.step(learning_rate)
        start = step.init(model.init(seed), key=seed)
        _, history = fgd.fit(step, start, problem.data, num_steps=9, **problem.run)
        return history["loss"][-1]

    rates, seeds = jnp.array([0.01, 0.03]), jnp.array([0, 1])
    looped = jnp.stack([run(rate, seed) for rate, seed in zip(rates, seeds, strict=True)])
    close(jax.jit(jax.vmap(run))(rates, seeds), looped, rtol=1e-5)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(run)))(rates, seeds)
    close(values, looped, rtol=1e-5)
    alone = jax.jit(jax.grad(run))  # compiled inside out
    close(slopes, jnp.stack([alone(r, s) for r, s in zip(rates, seeds, strict=True)]), rtol=1e-4)
