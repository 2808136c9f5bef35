"""The moving average of parameters; against a NumPy loop it is in test_recipes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from problems import relaxed

import fgd

X = jnp.float32(np.random.default_rng(0).normal(size=(8, 2)))


def loss(w, x):
    return jnp.mean(jnp.sum((x - w[None]) ** 2, axis=-1))


def test_around_gradients_by_example_or_within():
    """Both are the same: each is given the gradient of each example, clipped before the mean."""

    def clipped_mean(grads, params=None):
        return jax.tree.map(lambda g: jnp.mean(jnp.clip(g, -0.5, 0.5), axis=0), grads)

    inner = optax.chain(optax.stateless(clipped_mean), fgd.sgd(0.3))
    outside = fgd.train_step(loss, fgd.ema(fgd.per_example(inner), 0.5))
    inside = fgd.train_step(loss, fgd.per_example(fgd.ema(inner, 0.5)))
    ours, theirs = (
        fgd.fit(step, step.init(jnp.ones(2)), X, num_steps=5)[0] for step in (outside, inside)
    )
    w = average = np.ones(2)
    for _ in range(5):
        w = w - 0.3 * np.clip(2 * (w - np.asarray(X)), -0.5, 0.5).mean(axis=0)
        average = 0.5 * average + 0.5 * w
    for state in (ours, theirs):
        np.testing.assert_allclose(state.params, w, rtol=1e-5)
        np.testing.assert_allclose(fgd.averaged(state).params, average, rtol=1e-5)


def test_of_narrow_parameters():
    """In bfloat16 an average of a thousand steps would never move; the result is bfloat16."""
    down = relaxed(optax.stateless(lambda g, params=None: jax.tree.map(jnp.zeros_like, g)))
    step = fgd.train_step(lambda w, x: jnp.sum(w.astype(float)), fgd.ema(down, 0.999))
    start = step.init(jnp.ones(2, jnp.bfloat16))
    moved = jax.tree.map(lambda x: 0 * x, start.params)
    state, _ = fgd.fit(
        step, fgd.TrainState(moved, start.opt_state, start.step, start.key), X, num_steps=200
    )
    found = fgd.averaged(state).params
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(found), 0.999**200, rtol=0.01)
