"""fit, train and evaluate: history, means, leaks, and what is refused before compilation."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import Problem, close, same

import fgd
from fgd._run.fit import run
from fgd._run.order import Order
from fgd._run.plan import Plan

PROBLEM = Problem("mlp", "adam", True, 23, 7, True, 0)


def test_history_holds_means_over_windows():
    step = PROBLEM.step()
    start = PROBLEM.start(step)
    each, fine = fgd.fit(step, start, PROBLEM.data, num_steps=60, **PROBLEM.run)
    for window in (2, 20, 60):
        state, coarse = fgd.fit(
            step, start, PROBLEM.data, num_steps=60, record_every=window, **PROBLEM.run
        )
        assert same(state, each)
        expected = np.asarray(fine["loss"], np.float64).reshape(-1, window).mean(axis=1)
        np.testing.assert_allclose(coarse["loss"], expected, rtol=1e-6)


def test_epochs_are_steps():
    step = PROBLEM.step()
    start = PROBLEM.start(step)
    by_epoch = fgd.fit(step, start, PROBLEM.data, num_epochs=2, **PROBLEM.run)
    assert same(by_epoch, fgd.fit(step, start, PROBLEM.data, num_steps=6, **PROBLEM.run))


def test_data_is_an_argument_not_a_constant():
    """The program is as small for 10⁶ rows as for 10³."""

    def size(rows):
        data = np.random.default_rng(0).integers(0, 255, (rows, 4), np.uint8)
        step = fgd.train_step(lambda p, b: jnp.mean(b.astype(jnp.float32) * p), fgd.sgd(0.1))
        fgd.fit(step, step.init(1.0), data, batch_size=10, num_steps=5)
        plan = Plan(Order(rows, 10, shuffle=True))
        lowered = step.program(run, static_argnames=("plan", "records")).lower(
            step.init(1.0), data, plan=plan, records=5
        )
        return len(lowered.as_text())

    assert abs(size(1_000_000) - size(1_000)) < 200


class Loss:
    """A loss that holds on to an array, and can be watched."""

    def __init__(self):
        self.constant = jnp.ones(1000)

    def __call__(self, params, batch):
        return jnp.sum(params * jnp.sum(self.constant) - jnp.mean(batch)) ** 2


@pytest.mark.slow
def test_nothing_leaks():
    """When the last reference to a step goes, so do its loss, its constants and its programs."""
    loss_fn = Loss()
    step = fgd.train_step(loss_fn, fgd.sgd(1e-4))
    data = jnp.ones(6)

    def run(rate):
        inner = fgd.train_step(loss_fn, fgd.sgd(rate))
        return fgd.fit(inner, inner.init(1.0), data, batch_size=2, num_steps=5)[1]["loss"][-1]

    def metrics(params, batch):
        return {"m": loss_fn.constant[: batch.shape[0]] * params}

    with jax.checking_leaks():
        state, _ = step(step.init(1.0), data)
        state, _ = fgd.fit(step, state, data, batch_size=4, num_steps=5)
        options = {"num_steps": 5, "on_divergence": "continue"}
        state, _ = fgd.train(step, state, data, batch_size=4, **options)
        fgd.evaluate(metrics, 1.0, data)
        jax.jit(run)(1e-4)
        jax.vmap(run)(jnp.array([1e-4, 2e-4]))
        jax.jit(jax.grad(run))(1e-4)
    watched = [weakref.ref(x) for x in (step, loss_fn, loss_fn.constant, metrics, run)]
    del step, loss_fn, metrics, run, state
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_train_keeps_the_callers_state_and_evaluates():
    step, data = PROBLEM.step(), PROBLEM.data
    start = PROBLEM.start(step)
    seen = []

    def evaluate(state):
        seen.append(state)
        return {"norm": jnp.sqrt(sum(jnp.sum(p**2) for p in jax.tree.leaves(state.params)))}

    def train(num_steps, **options):
        return fgd.train(
            step, start, data, num_steps=num_steps, evaluate=evaluate, **options, **PROBLEM.run
        )

    state, history = train(10, evaluate_every=4)
    assert history["evaluate"]["step"].tolist() == [4, 8, 10]
    at_8, _ = fgd.fit(step, start, data, num_steps=8, **PROBLEM.run)
    np.testing.assert_array_equal(history["evaluate"]["norm"][1], evaluate(at_8)["norm"])
    assert train(7)[1]["evaluate"]["step"].tolist() == [3, 6, 7]  # epochs of 3 steps
    close(start.params, PROBLEM.start(step).params, rtol=0)
    assert int(state.step) == 10


def test_train_keeps_no_buffers():
    """The history of many short calls is the numbers alone, and evaluate may keep its argument."""
    step = fgd.train_step(lambda p, b: jnp.mean((p - b) ** 2), fgd.sgd(0.1))
    kept = []

    def evaluate(state):
        kept.append(state.params)
        return {"p": state.params}

    before = sum(x.nbytes for x in jax.live_arrays())
    _, history = fgd.train(
        step, step.init(1.0), jnp.arange(6.0), num_steps=40, evaluate=evaluate, evaluate_every=1
    )
    assert sum(x.nbytes for x in jax.live_arrays()) - before < 100_000
    np.testing.assert_array_equal(np.stack(kept), history["evaluate"]["p"])


def test_evaluations_compose():
    """After a split in mid-epoch, evaluations are where they would have been."""
    step, data = PROBLEM.step(), PROBLEM.data

    def train(state, num_steps):
        def norm(state):
            return {"norm": jnp.sum(state.params[0]["w"] ** 2)}

        return fgd.train(step, state, data, num_steps=num_steps, evaluate=norm, **PROBLEM.run)

    _, whole = train(PROBLEM.start(step), 10)
    middle, begun = train(PROBLEM.start(step), 4)
    _, ended = train(middle, 6)
    assert whole["evaluate"]["step"].tolist() == [3, 6, 9, 10]
    assert begun["evaluate"]["step"].tolist() == [3, 4]
    assert ended["evaluate"]["step"].tolist() == [6, 9, 10]
    np.testing.assert_array_equal(whole["evaluate"]["norm"][1:], ended["evaluate"]["norm"])


def test_train_shows_progress_only_when_asked(capsys):
    step, start = PROBLEM.step(), PROBLEM.start(PROBLEM.step())
    fgd.train(step, start, PROBLEM.data, num_steps=5)
    assert capsys.readouterr() == ("", "")
    fgd.train(step, start, PROBLEM.data, num_steps=5, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "5.00/5.00" in err
    assert "loss=" in err


@pytest.mark.parametrize("rows", [1, 7, 10])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_evaluate_counts_every_row_once(rows, batch_size):
    values = np.random.default_rng(0).normal(size=(rows, 2))

    def metrics(params, batch):
        return {"sum": params * jnp.sum(batch, axis=1), "positive": batch[:, 0] > 0}

    found = fgd.evaluate(metrics, 2.0, jnp.asarray(values, float), batch_size=batch_size)
    np.testing.assert_allclose(found["sum"], 2 * values.sum() / rows, rtol=1e-5)
    np.testing.assert_allclose(found["positive"], (values[:, 0] > 0).mean(), rtol=1e-6)


def test_evaluate_adds_halves_in_float32():
    values = jnp.full(70_000, 2.0, jnp.float16)
    assert fgd.evaluate(lambda p, b: {"m": b}, 0.0, values, batch_size=70_000)["m"] == 2.0


def test_evaluate_compiles_once_and_maps(compiled):
    def metrics(params, batch):
        return {"m": batch * params}

    data = jnp.arange(10.0)
    fgd.evaluate(metrics, jnp.float32(1), data, batch_size=4)
    before = compiled()
    fgd.evaluate(metrics, jnp.float32(2), data + 0, batch_size=4)
    assert compiled() <= before + 1  # the addition in the line above
    mapped = jax.vmap(lambda p: fgd.evaluate(metrics, p, data, batch_size=4)["m"])(jnp.arange(3.0))
    np.testing.assert_allclose(mapped, [0.0, 4.5, 9.0])
    np.testing.assert_allclose(jax.grad(lambda p: fgd.evaluate(metrics, p, data)["m"])(1.0), 4.5)


ROWS = jnp.zeros((6, 3)), jnp.zeros((6, 2))
BAD_RUNS = {
    "zero batch": ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    "negative batch": ({"batch_size": -2}, ValueError, "at least 1, got -2"),
    "float batch": ({"batch_size": 2.0}, TypeError, "batch_size must be an int, got 2.0"),
    "boolean batch": ({"batch_size": True}, TypeError, "must be an int, got True"),
    "large batch": ({"batch_size": 7}, ValueError, "larger than the data's 6 rows; use batch_size"),
    "both lengths": ({"num_epochs": 1}, ValueError, "exactly one of num_steps and num_epochs"),
    "no length": ({"num_steps": None}, ValueError, "exactly one of num_steps and num_epochs"),
    "negative steps": ({"num_steps": -1}, ValueError, "num_steps must be at least 0"),
    "float steps": ({"num_steps": 3.5}, TypeError, "num_steps must be an int"),
    "window": ({"record_every": 3}, ValueError, "record_every=3 does not divide the run's 4"),
    "no window": ({"record_every": 0}, ValueError, "record_every must be at least 1"),
    "overflow": ({"num_steps": 2**31}, ValueError, "would pass 2³¹"),
    "epochs overflow": (
        {"num_steps": None, "num_epochs": 2**30, "batch_size": 1}, ValueError, "would pass 2³¹",
    ),
    "unequal rows": ({"data": (ROWS[0], ROWS[1][:5])}, ValueError, r"\[0\] has 6 .*\[1\] has 5"),
    "no rows": ({"data": (ROWS[0][:0],)}, ValueError, r"shape \(0, 3\), expected at least one"),
    "no arrays": ({"data": ()}, ValueError, "data has no arrays"),
    "scalar": ({"data": jnp.float32(1)}, ValueError, "at least one row"),
    "list": ({"data": [1.0, 2.0]}, TypeError, r"data\[0\] is 1.0, expected an array"),
    "state": ({"state": {"w": 1.0}}, TypeError, "expected the state of step.init.*got a dict of 1"),
    "step": ({"step": lambda s, b: s}, TypeError, "step must come from fgd.train_step"),
}  # fmt: skip


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("run", [fgd.fit, fgd.train])
@pytest.mark.parametrize("bad", BAD_RUNS)
def test_bad_run(run, bad, compiled):
    change, error, message = BAD_RUNS[bad]
    step = PROBLEM.step()
    arguments = {"step": step, "state": PROBLEM.start(step), "data": ROWS, "num_steps": 4} | change
    before = compiled()
    with pytest.raises(error, match=message):
        run(**arguments)
    assert compiled() == before


@pytest.mark.usefixtures("as_users")
def test_more_bad_runs():
    step = PROBLEM.step()
    start = PROBLEM.start(step)
    late = dataclasses.replace(start, step=jnp.int32(2**31 - 3))
    with pytest.raises(ValueError, match="4 steps after step 2147483645 would pass"):
        fgd.fit(step, late, ROWS, num_steps=4)

    def train(**options):
        fgd.train(step, start, ROWS, num_steps=12, **options)

    with pytest.raises(ValueError, match=r"record_every=2 does not divide the 3 .* evaluate_e"):
        train(evaluate_every=3, record_every=2, evaluate=lambda state: {})
    with pytest.raises(ValueError, match="does not divide the 3 steps of an epoch"):
        train(batch_size=2, record_every=2, evaluate=lambda state: {})
    with pytest.raises(ValueError, match="evaluate_every must be at least 1"):
        train(evaluate_every=0, evaluate=lambda state: {})
    with pytest.raises(ValueError, match=r"evaluate_every=3 says when .* neither evaluate nor"):
        train(evaluate_every=3)
    for bad in (None, {"step": 1.0}):
        with pytest.raises(TypeError, match="evaluate must return a dict"):
            train(evaluate=lambda state, bad=bad: bad)


@pytest.mark.usefixtures("as_users")
def test_bad_evaluation():
    with pytest.raises(ValueError, match=r"metric 'm' has shape \(\), expected \(6,\)"):
        fgd.evaluate(lambda p, b: {"m": jnp.mean(b[0])}, 1.0, ROWS)
    with pytest.raises(ValueError, match="data has no arrays"):
        fgd.evaluate(lambda p, b: {}, 1.0, [])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        fgd.evaluate(lambda p, b: {}, 1.0, ROWS, batch_size=0)
    with pytest.raises(TypeError, match="metric_fn must be a function"):
        fgd.evaluate({}, 1.0, ROWS)
