"""Law 3: a sweep is the loop over its points; and what it takes from the functions it is given."""

import functools
import gc
import itertools
import re
import weakref
from contextlib import nullcontext

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from problems import Problem, close, examples, problems

import fgd
from fgd._run.sweep import _compiled

MESH = jax.make_mesh((4,), ("data",))


@examples(2, 8)
@given(
    problems(),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([(None, None), (1, None), (2, None), (7, None), (None, MESH), (2, MESH)]),
)
def test_sweep_is_the_loop(problem, rates, seeds, how):
    """Over learning rates × (seeds zipped with initial scales), side by side or not."""
    max_parallel, mesh = how
    with jax.enable_x64(True):
        data = problem.data

        def run(learning_rate, start):
            step = problem.step(learning_rate)
            state = problem.start(step)
            params = jax.tree.map(lambda p: p * start["scale"], state.params)
            state = step.init(params, key=start["seed"])
            state, history = fgd.fit(step, state, data, num_steps=5, **problem.run)
            return {"params": state.params, "loss": history["loss"]}

        learning_rate = jnp.logspace(-3, -2, rates)
        start = {"seed": jnp.arange(seeds), "scale": jnp.linspace(0.5, 2, seeds)}
        swept = fgd.sweep(
            run, learning_rate=learning_rate, start=start, max_parallel=max_parallel, mesh=mesh
        )
        once = jax.jit(run)
        for i, j in itertools.product(range(rates), range(seeds)):
            one = once(learning_rate[i], jax.tree.map(lambda x, j=j: x[j], start))
            # One element of adagrad's first step is g/√g²: a sign, where g is rounding alone.
            close([x[i, j] for x in jax.tree.leaves(swept)], one, rtol=1e-7, atol=1e-9)


def test_gradient_descent_in_closed_form(x64):
    """R2b: w_t = w* + (I − 2ηXᵀX)ᵗ (w₀ − w*), for every learning rate and start."""
    x = np.stack([[1.4, 5, 11, 16, 21], np.ones(5)], axis=1)
    y = np.array([14.4, 29.6, 62, 85.5, 113.4])
    rates, starts = np.array([1e-5, 1e-4, 5e-4]), np.random.default_rng(0).uniform(size=(4, 2))

    def run(learning_rate, start):
        step = fgd.train_step(lambda w, d: jnp.sum((d[0] @ w - d[1]) ** 2), fgd.sgd(learning_rate))
        return fgd.fit(step, step.init(start["w"]), (x, y), num_steps=100)[0].params

    swept = fgd.sweep(run, learning_rate=rates, start={"w": starts})
    best = np.linalg.solve(x.T @ x, x.T @ y)
    for i, rate in enumerate(rates):
        power = np.linalg.matrix_power(np.eye(2) - 2 * rate * x.T @ x, 100)
        np.testing.assert_allclose(swept[i], best + (starts - best) @ power, rtol=1e-9)


def looped(loss, data):
    """A loss whose data is hidden behind every kind of control flow, in an inner jit."""
    inner = jax.jit(lambda w, i: loss(w, data, i))

    def total(w):
        first, _ = jax.lax.scan(lambda s, i: (s + inner(w, i), None), 0.0, jnp.arange(2))
        second = jax.lax.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + inner(w, c[0])), (0, 0.0)
        )[1]
        third = jax.lax.cond(w > 0, lambda: inner(w, 0), lambda: -inner(w, 1))
        return first + second + third + jax.checkpoint(lambda w: inner(w, 1))(w)

    return total


def closures():
    def error(w, data, i=0):
        return jnp.mean((w - jnp.asarray(data)[i].astype(float)) ** 2)

    def direct(data):
        return lambda rate: error(rate, data)

    def within(data):
        return jax.jit(direct(data))

    def hidden(data):
        total = jax.jit(looped(error, data))
        return lambda rate: total(rate)

    def trained(data):
        step = fgd.train_step(jax.jit(lambda w, _: error(w, data)), fgd.sgd(0.1))

        @jax.jit
        def run(rate):
            start = step.init(0.0)
            rows = jnp.zeros(3, jnp.uint8)
            fitted, _ = fgd.fit(step, start, rows, batch_size=1, num_steps=20)
            return rate * fitted.params

        return run

    def fitted(data):
        def run(rate):
            step = fgd.train_step(lambda w, rows: jnp.mean((w - rows) ** 2), fgd.sgd(rate))
            rows = data.astype(float)
            return fgd.fit(step, step.init(0.0), rows, batch_size=2, num_steps=20)[0].params

        return run

    return [direct, within, hidden, trained, fitted]


@pytest.mark.parametrize("closure", closures(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("host", [False, True], ids=["jax", "numpy"])
def test_closed_over_data_is_an_argument(closure, host):
    """The program is as long for a million rows as for a thousand, and gives what `run` gives."""
    rates = jnp.array([0.1, 0.2])

    def size(rows):
        data = np.random.default_rng(0).integers(0, 256, (rows, 2), dtype=np.uint8)
        run = closure(data if host else jnp.asarray(data))
        axes = {"rate": rates}
        program = _compiled(lambda: run, ("rate",), None, None)
        if rows == 1_000:
            swept = fgd.sweep(run, rate=rates)
            np.testing.assert_allclose(swept, [run(rate) for rate in rates], rtol=1e-5)
        return len(program.lower(axes).as_text())

    assert abs(size(1_000_000) - size(1_000)) < 200  # the digits of the shapes


def test_second_sweep_compiles_nothing(compiled):
    problem = Problem("mlp", "adam", True, 23, 7, True, 0)
    data = problem.data

    def run(learning_rate, seed):
        step = problem.step(learning_rate)
        state = step.init(problem.start(step).params, key=seed)
        return fgd.fit(step, state, data, num_steps=3, **problem.run)[1]

    fgd.sweep(run, learning_rate=[0.1, 0.01], seed=np.arange(2))
    before = compiled()
    swept = fgd.sweep(run, learning_rate=[0.2, 0.02], seed=np.arange(2) + 5)
    assert compiled() == before
    assert swept["loss"].shape == (2, 2, 3)
    fgd.sweep(run, learning_rate=jnp.ones(3), seed=np.arange(2))
    assert compiled() > before  # other shapes do


def test_programs_die_with_the_run():
    data = jnp.arange(5.0)

    def run(rate):
        return rate * jnp.sum(data)

    fgd.sweep(run, rate=jnp.arange(3.0))
    ghost, array = weakref.ref(run), weakref.ref(data)
    del run, data
    gc.collect()
    assert ghost() is None
    assert array() is None


def test_a_sweep_is_a_function():
    """jit and grad go through it, also with respect to what `run` closes over; nothing leaks."""
    axis = jnp.array([1.0, 2.0, 3.0])

    def total(scale, axis):
        return jnp.sum(fgd.sweep(lambda x: scale**2 * x, x=axis, max_parallel=2))

    with jax.checking_leaks():
        by_scale, by_axis = jax.jit(jax.grad(total, (0, 1)))(3.0, axis)
    np.testing.assert_allclose(by_scale, 36.0)
    np.testing.assert_allclose(by_axis, [9.0, 9.0, 9.0])


def test_every_kind_of_axis():
    def run(rate, key, zipped):
        draw = jax.random.uniform(key)
        return {"sum": rate * (zipped[0] + jnp.sum(zipped[1])), "draw": draw, "nothing": None}

    keys = jax.random.split(jax.random.key(0), 3)
    pair = (jnp.arange(5.0), jnp.ones([5, 2]))
    swept = fgd.sweep(functools.partial(run), rate=[1.0, 2.0], key=keys, zipped=pair)
    assert swept["nothing"] is None
    np.testing.assert_array_equal(swept["draw"][1, :, 4], jax.vmap(jax.random.uniform)(keys))
    np.testing.assert_array_equal(swept["sum"][:, 0, 3], [3 + 2, 2 * (3 + 2)])


@pytest.mark.parametrize(
    "values",
    [range(3), [True, False], [np.float32(1), np.float32(2)], np.array([True]), [jnp.int32(2)] * 2],
    ids=str,
)
def test_what_counts_as_numbers(values):
    np.testing.assert_array_equal(fgd.sweep(lambda a: a, a=values), np.array(values))


def test_keys_in_a_list_and_16_bit_floats():
    keys = [jax.random.key(i) for i in range(3)]
    draws = fgd.sweep(jax.random.uniform, key=keys)
    np.testing.assert_array_equal(draws, [jax.random.uniform(key) for key in keys])
    halves = np.asarray(jnp.array([1, 2], jnp.bfloat16))
    assert fgd.sweep(lambda a: a, a=halves).dtype == jnp.bfloat16


def test_a_mesh_takes_data_from_anywhere():
    axis = jax.device_put(jnp.arange(6.0), jax.devices()[3])
    auto = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    for place in (None, NamedSharding(auto, P()), jax.devices()[5]):
        data = jax.device_put(jnp.arange(4.0), place)
        swept = fgd.sweep(lambda a, data=data: a * jnp.sum(data), a=axis, mesh=MESH)
        np.testing.assert_array_equal(swept, 6 * np.arange(6))


def test_axes_are_in_the_order_written():
    """Whatever order an earlier call had."""

    def run(a, b):
        return 10 * a + b

    a, b = jnp.arange(2.0), jnp.arange(3.0)
    expected = 10 * np.arange(2.0)[:, None] + np.arange(3.0)
    for _ in range(2):
        np.testing.assert_array_equal(fgd.sweep(run, a=a, b=b), expected)
        np.testing.assert_array_equal(fgd.sweep(run, b=b, a=a), expected.T)


KEYS = {kind: jax.random.split(jax.random.key(0, impl=kind), 3) for kind in ("rbg", "unsafe_rbg")}
SOURCES = {  # of a run's key, from the value of an axis
    "an axis": lambda kind, key: key,
    "a seed": lambda kind, seed: jax.random.key(seed, impl=kind),
    "the default": lambda kind, seed: jax.random.key(seed),
    "a closure": lambda kind, seed: jax.random.fold_in(KEYS[kind][0], seed),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("source", SOURCES)
def test_keys_of_which_vmap_draws_others(kind, source):
    """Law 3 with each kind of key, wherever it comes from: one run after the other."""
    seeds, scales = KEYS[kind] if source == "an axis" else jnp.arange(3), jnp.array([1.0, 2.0])

    def run(scale, seed):
        key = SOURCES[source](kind, seed)

        def body(i, x):
            return x + jax.random.normal(jax.random.split(key)[0], (2,))

        return scale * jax.lax.fori_loop(0, 2, body, jnp.zeros(2))

    with jax.default_prng_impl(kind) if source == "the default" else nullcontext():
        once = jax.jit(run)
        loop = np.array([[once(scale, seed) for seed in seeds] for scale in scales])
        swept = fgd.sweep(run, scale=scales, seed=seeds)
        np.testing.assert_allclose(swept, loop, rtol=1e-6)
        swept = fgd.sweep(run, seed=seeds, scale=scales, max_parallel=3, mesh=MESH)
        np.testing.assert_allclose(swept, loop.transpose(1, 0, 2), rtol=1e-6)
    assert len(np.unique(loop)) == 12


@pytest.mark.parametrize("kind", KEYS)
def test_training_with_keys_of_which_vmap_draws_others(kind):
    """Under the default that gives such keys to all: shuffling, noise in the loss, and seeds."""

    def run(seed):
        step = fgd.train_step(lambda w, x, key: w * x[0] * jax.random.normal(key), fgd.sgd(0.1))
        state = step.init(1.0, key=seed)
        return fgd.fit(step, state, jnp.arange(5.0), batch_size=2, num_steps=3)[0].params

    with jax.default_prng_impl(kind):
        once = jax.jit(run)
        loop = [once(seed) for seed in range(3)]
        np.testing.assert_allclose(fgd.sweep(run, seed=range(3)), loop, rtol=1e-6)


@pytest.mark.parametrize("max_parallel", [1, 2, 4, 6, None])
def test_a_run_is_traced_once(monkeypatch, max_parallel):
    """Even if it then turns out that fewer should be side by side."""
    monkeypatch.setattr("fgd._run.sweep.CACHE", 1)
    monkeypatch.setattr("fgd._run.sweep.FEW", 2)
    traced = []

    def run(a, b):
        traced.append(a)
        x = jnp.ones((3, 9))
        return jax.lax.scan(lambda w, _: (w - a * x.T @ (x @ w) - b, None), jnp.ones(9), length=2)

    fgd.sweep(run, a=jnp.arange(3.0), b=jnp.arange(2.0), max_parallel=max_parallel)
    assert len(traced) == 1


@pytest.mark.parametrize(
    "setting", [lambda: jax.default_prng_impl("rbg"), lambda: jax.threefry_partitionable(False)]
)
def test_a_trace_is_of_every_setting(setting):
    """What changes the meaning of `run` changes a sweep that was compiled before, and back."""

    def run(seed):
        return jax.random.normal(jax.random.key(seed), (3,))

    def swept():
        return fgd.sweep(run, seed=[1], max_parallel=1)[0]

    first = swept()
    with setting():
        np.testing.assert_allclose(swept(), run(1), rtol=1e-6)
        assert not np.allclose(run(1), first)
    np.testing.assert_array_equal(swept(), first)


def test_a_trace_is_of_its_settings():
    def run(a):
        return a / 3

    single = fgd.sweep(run, a=np.arange(3, dtype=np.float32))
    with jax.enable_x64(True):
        double = fgd.sweep(run, a=np.arange(3, dtype=np.float64))
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)


def identity(rate):
    return rate


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({}, ValueError, "expected at least one axis"),
        ({"rate": []}, ValueError, "axis rate is empty"),
        ({"rate": {}}, ValueError, "axis rate is empty"),
        ({"rate": jnp.zeros(0)}, ValueError, "axis rate is empty"),
        ({"rate": 0.1}, ValueError, r"axis rate has shape \(\), expected values along one axis"),
        ({"rate": jnp.ones([2, 3])}, ValueError, r"shape \(2, 3\).*put points that are arrays"),
        ({"rate": ["a", "b"]}, TypeError, "has 'a', expected numbers"),
        ({"rate": "adam"}, TypeError, "has 'adam', expected numbers"),
        ({"rate": {"a": jnp.ones(2), "b": jnp.ones(3)}}, ValueError, r"unequal lengths \[2, 3\]"),
        ({"rate": [2**40, 1]}, OverflowError, "out of bounds for int32"),
        ({"rates": [1.0]}, TypeError, r"axes are rates, but run takes \(rate\)"),
        ({"rate": [1.0], "max_parallel": 0}, ValueError, "max_parallel must be at least 1"),
        ({"rate": [1.0], "mesh": 4}, TypeError, "mesh must be a jax.sharding.Mesh, got 4"),
        (
            {"rate": [1.0], "mesh": jax.make_mesh((2,), ("model",))},
            ValueError,
            r"mesh has axes \('model',\), expected one named \"data\"",
        ),
    ],
)
def test_bad_axes(axes, error, message, as_users):
    with pytest.raises(error, match=message):
        fgd.sweep(identity, **axes)


def test_what_decides_shapes_is_no_axis(as_users):
    problem = Problem("linear", "sgd", False, 23, 7, True, 0)

    def batches(batch_size):
        step = problem.step()
        return fgd.fit(step, problem.start(step), problem.data, batch_size=batch_size, num_steps=3)

    with pytest.raises(TypeError, match=r"batch_size must be an int.*loop over it in Python"):
        fgd.sweep(batches, batch_size=[5, 7])
    with pytest.raises(TypeError, match="loop over it in Python, around sweep"):
        fgd.sweep(lambda width: jnp.zeros(width), width=[5, 7])
    with pytest.raises(TypeError, match="loop over it in Python, around sweep"):
        fgd.sweep(lambda deep: 1.0 if deep else 2.0, deep=[0, 1])
    with pytest.raises(TypeError, match="loop over it in Python, around sweep"):
        fgd.sweep(lambda name: {0: 1.0}[name], name=[0])
    with pytest.raises(TypeError, match="run must be a function"):
        fgd.sweep(3, rate=[1.0])


def test_closed_over_numpy_arrays_may_change_afterwards():
    """What was returned stays, and another sweep of the same run is of the same data."""
    buffer = np.empty((300, 300), np.float32)
    for fill in range(10):
        buffer[:] = fill

        def run(a):
            return a * jnp.asarray(buffer).sum() + a * buffer[0, 0]

        first = fgd.sweep(run, a=[1.0, 2.0])
        buffer[:] = -1
        again = fgd.sweep(run, a=[1.0, 2.0])
        np.testing.assert_allclose(first, [90_001 * fill, 180_002 * fill])
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(("runs", "batches"), [(16, 1), (40, 3), (41, 3), (64, 4)])
@pytest.mark.parametrize("max_parallel", [None, 64])
def test_as_many_as_a_cache_holds(monkeypatch, runs, batches, max_parallel):
    """By itself at least 16 at a time, on a CPU; results are those of all at once."""

    def run(scale):
        return jax.lax.scan(lambda w, _: (w - scale * jnp.sin(w), None), jnp.ones(100), length=7)[0]

    def lengths_of_loops():
        def swept(scale):
            return fgd.sweep(lambda scale: run(scale), scale=scale, max_parallel=max_parallel)

        np.testing.assert_allclose(swept(scales), jax.vmap(run)(scales), rtol=1e-6)
        return re.findall(r"\n +length=(\d+)", str(jax.make_jaxpr(swept)(scales)))

    scales = jnp.linspace(0.1, 0.9, runs)
    assert lengths_of_loops() == ["7"]
    monkeypatch.setattr("fgd._run.sweep.CACHE", 1000)
    by_itself = batches > 1 and not max_parallel
    assert lengths_of_loops() == (["7", str(batches)] if by_itself else ["7"])


def test_effects_are_as_many_as_runs(monkeypatch):
    """A batch that is filled up repeats a point; that is for nobody to see who did not ask."""
    monkeypatch.setattr("fgd._run.sweep.CACHE", 1)
    seen = []

    def run(a):
        jax.debug.callback(lambda a: seen.append(float(a)), a)
        return jax.lax.scan(lambda w, _: (a * w, None), jnp.ones(9), length=2)[0]

    fgd.sweep(run, a=jnp.arange(17.0))
    jax.effects_barrier()
    assert sorted(seen) == list(range(17))


@jax.tree_util.register_pytree_node_class
class Guarded:
    """As JAX's documentation advises: what is no array passes."""

    def __init__(self, a):
        self.a = a if type(a) is object or isinstance(a, Guarded) else jnp.asarray(a)

    def tree_flatten(self):
        return (self.a,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_results_of_a_class_that_looks_at_them():
    swept = fgd.sweep(Guarded, a=jnp.arange(3.0))
    np.testing.assert_array_equal(swept.a, np.arange(3.0))


def test_a_token_has_no_shape():
    swept = fgd.sweep(
        lambda a: (jax.lax.after_all(jax.lax.create_token()), 2 * a)[1], a=jnp.arange(3.0)
    )
    np.testing.assert_array_equal(swept, 2 * np.arange(3.0))
