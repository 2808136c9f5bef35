"""Equinox's modules, against Equinox's own loop."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgd

X = np.float32(np.random.default_rng(0).normal(size=(20, 3)))
Y = np.float32(np.sin(X @ np.ones([3, 2])))


class Net(equinox.Module):
    first: equinox.nn.Linear
    dropout: equinox.nn.Dropout
    second: equinox.nn.Linear
    table: jax.Array  # of integers: not trained

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.first = equinox.nn.Linear(3, 8, key=one)
        self.dropout = equinox.nn.Dropout(0.5)
        self.second = equinox.nn.Linear(8, 2, key=two)
        self.table = jnp.arange(8)[::-1]

    def __call__(self, x, *, key=None):
        return self.second(self.dropout(jnp.tanh(self.first(x))[self.table], key=key))


@pytest.fixture(autouse=True)
def as_equinox_is():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_training_is_equinox_s_own_loop():
    model = fgd.models.from_equinox(lambda key: equinox.nn.MLP(3, 2, 8, 1, key=key))
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), optax.adam(0.01))
    state, history = fgd.fit(
        step, step.init(model.init(3)), (X, Y), batch_size=5, num_steps=20, shuffle=False
    )

    module = equinox.nn.MLP(3, 2, 8, 1, key=jax.random.key(3))
    optimizer = optax.adam(0.01)
    opt_state = optimizer.init(equinox.filter(module, equinox.is_inexact_array))
    losses = []
    for i in range(20):
        rows = slice(5 * (i % 4), 5 * (i % 4) + 5)

        def loss(module, rows=rows):
            return jnp.mean((jax.vmap(module)(X[rows]) - Y[rows]) ** 2)

        value, grads = equinox.filter_value_and_grad(loss)(module)
        updates, opt_state = optimizer.update(grads, opt_state)
        module = equinox.apply_updates(module, updates)
        losses.append(value)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    ours = equinox.combine(state.params, module)
    np.testing.assert_allclose(jax.vmap(ours)(X), jax.vmap(module)(X), rtol=1e-6, atol=1e-6)


def test_modes_and_what_is_not_trained():
    model = fgd.models.from_equinox(Net)
    params = model.init(0)
    module = equinox.nn.inference_mode(Net(jax.random.key(0)))
    np.testing.assert_allclose(model.apply(params, X), jax.vmap(module)(X), rtol=1e-6)
    one, two, again = (model.apply(params, X, key=jax.random.key(i)) for i in (1, 2, 1))
    assert (one == again).all()
    assert (one != two).any()
    assert {"a.weight": 1}.keys().isdisjoint(fgd.summary(model).arrays)
    assert list(fgd.summary(model).arrays) == [
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
    ]
    assert fgd.summary(model).size == 3 * 8 + 8 + 8 * 2 + 2
    with pytest.raises(ValueError, match="not those of this module"):
        model.apply([params], X)


def test_checkpoints_and_a_sweep(tmp_path):
    model = fgd.models.from_equinox(Net)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.1))
    checkpoints = fgd.Checkpoints(tmp_path, every=3)
    state, _ = fgd.train(
        step, step.init(model.init(0)), (X, Y), num_steps=7, checkpoints=checkpoints
    )
    back = checkpoints.restore(step.init(model.init(1)))
    jax.tree.map(np.testing.assert_array_equal, back.params, state.params)

    def run(seed):
        return fgd.fit(step, step.init(model.init(seed), key=seed), (X, Y), num_steps=3)[1]["loss"]

    np.testing.assert_allclose(fgd.sweep(run, seed=[0, 4])[1], run(4), rtol=1e-5)


def test_several_inputs():
    class Sum(equinox.Module):
        w: jax.Array

        def __init__(self, key):
            self.w = jax.random.normal(key, (3,))

        def __call__(self, a, b):
            return self.w @ a + b

    model = fgd.models.from_equinox(Sum)
    params = model.init(0)
    found = model.apply(params, (X, Y[:, 0]))
    np.testing.assert_allclose(found, X @ np.asarray(params.w) + Y[:, 0], rtol=1e-5)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.1))
    _, history = fgd.fit(step, step.init(params), ((X, Y[:, 0]), Y[:, 1]), num_steps=40)
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_what_is_refused():
    def stateful(key):
        return equinox.nn.BatchNorm(3, "batch", mode="ema")

    with pytest.raises(TypeError, match="has state of its own, as BatchNorm has"):
        fgd.models.from_equinox(stateful)
    with pytest.raises(TypeError, match="a module with a State is not for it"):
        fgd.models.from_equinox(equinox.nn.make_with_state(stateful))
