"""train_step: what a loss may be, what an optimizer receives, what is refused and how."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import close, relaxed

import fgd


def quadratic(params, batch):
    return jnp.sum((params["w"] - batch) ** 2)


W = {"w": jnp.array([1.0, -2.0])}
BATCH = jnp.array([0.5, 0.5])


def test_one_step_by_hand():
    step = fgd.train_step(quadratic, fgd.sgd(0.1))
    state, metrics = step(step.init(W), BATCH)
    np.testing.assert_allclose(
        state.params["w"], [1 - 0.1 * 2 * 0.5, -2 + 0.1 * 2 * 2.5], rtol=1e-6
    )
    np.testing.assert_allclose(metrics["loss"], 0.25 + 6.25)
    assert state.step.dtype == jnp.int32
    assert int(state.step) == 1


def test_state_is_arrays_only_and_keeps_its_types():
    step = fgd.train_step(lambda p, b: (p["a"] - b) ** 2, fgd.adam(0.1))
    state = step.init({"a": 0.5}, key=3)
    after, _ = step(state, 1.0)
    for tree in (state, after):
        for leaf in jax.tree.leaves(tree):
            assert isinstance(leaf, jax.Array)
            assert not getattr(leaf, "weak_type", False)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert state.key == after.key == jax.random.key(3)


def test_aux_metrics_are_float_scalars():
    def loss_fn(params, batch):
        return quadratic(params, batch), {"rows": batch.size, "right": jnp.array(True)}

    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    _, metrics = step(step.init(W), BATCH)
    assert metrics.keys() == {"loss", "rows", "right"}
    assert {x.dtype for x in metrics.values()} == {jnp.dtype("float32")}
    assert metrics["rows"] == 2.0


def test_stochastic_loss_has_a_fresh_key_every_step_and_run():
    def loss_fn(params, batch, key):
        return 0.0 * params, {"draw": jax.random.uniform(key)}

    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    draws = [
        fgd.fit(step, step.init(0.0, key=seed), jnp.zeros(3), num_steps=50)[1]["draw"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert len(np.unique(np.concatenate(draws[1:]))) == 100


@pytest.mark.parametrize("has_metrics", [False, True])
def test_a_loss_carries_the_models_own_arrays(has_metrics):
    def loss_fn(params, model_state, batch):
        total = model_state + jnp.sum(batch)
        return quadratic(params, batch), total, *([{"total": total}] if has_metrics else [])

    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    state = step.init(W, model_state=10.0)
    state, history = fgd.fit(step, state, BATCH, num_steps=3)
    assert float(state.model_state) == 13.0
    if has_metrics:
        assert history["total"].tolist() == [11.0, 12.0, 13.0]


def test_lbfgs_receives_value_grad_and_value_fn():
    """L-BFGS minimizes Rosenbrock's function, which gradient descent alone would not."""

    def rosenbrock(x, batch):
        return jnp.sum(batch * (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))

    optimizer = optax.lbfgs()

    def update(grads, state, params, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(grads, state, params, **extra)

    lbfgs = optax.GradientTransformationExtraArgs(optimizer.init, update)
    step = fgd.train_step(rosenbrock, lbfgs)
    state, history = fgd.fit(step, step.init(jnp.zeros(3)), jnp.ones(1), num_steps=60)
    np.testing.assert_allclose(state.params, 1.0, rtol=1e-3)
    assert history["loss"][-1] < 1e-6


def test_plateau_receives_the_value():
    """A constant loss halves the learning rate after every two steps without progress."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    step = fgd.train_step(lambda p, b: 0.0 * p + 3.0, optax.chain(fgd.sgd(0.1), plateau))
    with jax.numpy_dtype_promotion("standard"):
        state, _ = fgd.fit(step, step.init(1.0), jnp.zeros(1), num_steps=5)
    assert float(state.opt_state[1].scale) == 0.25


def test_half_precision_parameters_stay_so():
    step = fgd.train_step(
        lambda w, b: jnp.sum((w[None] - b) ** 2).astype(jnp.float32), fgd.adam(jnp.float32(0.1))
    )
    data = jnp.ones((4, 1), jnp.bfloat16)
    state, history = fgd.fit(step, step.init(jnp.zeros(1, jnp.bfloat16)), data, num_steps=8)
    assert state.params.dtype == jnp.bfloat16
    assert history["loss"][-1] < history["loss"][0]


def test_step_equals_its_plain_update():
    step = fgd.train_step(quadratic, relaxed(optax.adamw(0.1)))
    state = step.init(W)
    close(step(state, BATCH)[0].params, step.update(state, BATCH)[0].params, rtol=1e-6)


def total(p):
    return jnp.sum(p["w"])


BAD_LOSSES = {
    "vector": (lambda p, b: p["w"], ValueError, r"shape \(2,\), expected a scalar"),
    "integer": (lambda p, b: jnp.int32(1), TypeError, "loss has dtype int32"),
    "nothing": (lambda p, b: None, TypeError, "the loss is None; does loss_fn return it"),
    "three": (lambda p, b: (1.0, {}, 2), TypeError, "a loss or .loss, metrics., got a tuple of 3"),
    "named loss": (lambda p, b: (total(p), {"loss": 1.0}), ValueError, 'may not be named "loss"'),
    "named evaluate": (lambda p, b: (total(p), {"evaluate": 1.0}), ValueError, '"evaluate"'),
    "named step": (lambda p, b: (total(p), {"step": 1.0}), ValueError, '"step"'),
    "vector metric": (lambda p, b: (total(p), {"m": p["w"]}), ValueError, "metric 'm'"),
    "nested metric": (lambda p, b: (total(p), {"m": {"n": 1.0}}), TypeError, "one flat dict"),
    "metrics list": (lambda p, b: (total(p), [1.0]), TypeError, "dict of scalars.*a list of 1"),
    "array for metrics": (lambda p, b: (total(p), p["w"]), TypeError, r"got .*float32\[2\]"),
}  # fmt: skip


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("bad", BAD_LOSSES)
def test_bad_loss(bad, compiled):
    loss_fn, error, message = BAD_LOSSES[bad]
    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    state = step.init(W)
    before = compiled()
    for run in (step, lambda state, batch: fgd.fit(step, state, batch, num_steps=1)):
        with pytest.raises(error, match=message):
            run(state, BATCH)
    assert compiled() == before


@pytest.mark.usefixtures("as_users")
def test_bad_arguments():
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        fgd.train_step(3, fgd.sgd(0.1))
    with pytest.raises(TypeError, match=r"fgd\.sgd\(1e-2\) makes one"):
        fgd.train_step(quadratic, 0.1)
    step = fgd.train_step(quadratic, fgd.adam(0.1))
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int32, expected a float"):
        step.init({"w": jnp.ones(2), "n": jnp.arange(2)})
    for key in (0.5, True, jax.random.PRNGKey(0), "seed"):
        with pytest.raises(TypeError, match="typed key"):
            step.init(W, key=key)
    with pytest.raises(
        TypeError, match=r"expected the state of step.init\(params\), a TrainState, got a dict"
    ):
        step(W, BATCH)


@pytest.mark.usefixtures("as_users")
def test_state_of_two_halves():
    """Parameters of one structure with the optimizer state of another."""
    step = fgd.train_step(quadratic, fgd.adam(0.1))
    state = step.init(W)
    for params, leaf in (
        ({"w": jnp.ones(3)}, r"\.mu\['w'\] is float32\[2\], expected float32\[3\]"),
        ({"w": W["w"], "v": jnp.ones(1)}, r"\.mu\['v'\] is missing"),
    ):
        with pytest.raises(ValueError, match=rf"opt_state does not belong.*opt_state{leaf}"):
            step(dataclasses.replace(state, params=params), BATCH)
