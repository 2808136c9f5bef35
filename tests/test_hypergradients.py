"""The derivative of a run by whatever went into it is the central difference, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from problems import OPTIMIZERS, close

import fgd

ROWS, STEPS, H = 12, 18, 1e-6
MODEL = fgd.models.mlp([3, 4, 2], activation=jnp.tanh)

# Each at learning rate 1, and the other numbers it may be differentiated by.
MAKERS = {
    "sgd": (partial(fgd.sgd, 1.0), {}),
    "momentum": (partial(fgd.momentum, 1.0), {"decay": 0.9}),
    "nesterov": (partial(fgd.momentum, 1.0, nesterov=True), {"decay": 0.9}),
    "averaging": (partial(fgd.momentum, 1.0, averaging=True), {"decay": 0.9}),
    "adagrad": (partial(fgd.adagrad, 1.0), {"eps": 1e-3}),
    "rmsprop": (partial(fgd.rmsprop, 1.0), {"decay": 0.9, "eps": 1e-3}),
    "adam": (partial(fgd.adam, 1.0), {"b1": 0.9, "b2": 0.99, "eps": 1e-3}),
    "clipped": (
        lambda **others: optax.chain(optax.clip_by_global_norm(1.0), fgd.adam(1.0, **others)),
        {"b1": 0.9, "b2": 0.99},
    ),
}


def per_layer(optimizer, rates):
    """`optimizer`, made for learning rate 1, with a rate for every layer: a prefix of the tree."""

    def scale(updates, params):
        del params
        return jax.tree.map(lambda rate, u: jax.tree.map(lambda u: rate * u, u), rates, updates)

    return optax.chain(optimizer, optax.stateless(scale))


def data(rows):
    """Its second input is dead."""
    draw = np.random.default_rng(rows)
    x = draw.normal(size=(rows, 3)) * [1, 0, 2]
    y = np.sin(x[:, :2]) + 0.1 * draw.normal(size=(rows, 2))
    return jnp.asarray(x, float), jnp.asarray(y, float)


def weighted(params, batch):
    x, y, weights = batch
    return jnp.mean(weights * fgd.losses.mse(MODEL.apply(params, x), y, reduction="none"))


def test_every_optimizer_of_the_laws_is_here():
    assert set(MAKERS) == set(OPTIMIZERS) - {"optax adamw"}  # NaN where an input is dead: optax#882


@pytest.mark.parametrize("name", MAKERS)
def test_hypergradients(name, x64):
    """By rates of layers, the optimizer's constants, initial parameters and weights of rows."""
    make, others = MAKERS[name]
    train, valid = data(ROWS), data(20)

    def final_loss(inputs):
        step = fgd.train_step(weighted, per_layer(make(**inputs["others"]), inputs["rates"]))
        rows = (*train, inputs["weights"])
        state, _ = fgd.fit(
            step, step.init(inputs["params"], 3), rows, batch_size=5, num_steps=STEPS
        )
        return fgd.losses.mse(MODEL.apply(state.params, valid[0]), valid[1])

    inputs = {
        "rates": [0.03, 0.02],
        "others": others,
        "params": MODEL.init(jax.random.key(0)),
        "weights": jnp.linspace(0.5, 1.5, ROWS),
    }
    flat, tree = ravel_pytree(jax.tree.map(jnp.asarray, inputs))
    steps = H * jnp.concatenate([jnp.eye(flat.size), -jnp.eye(flat.size)])

    @jax.jit
    def both(flat):
        ahead, behind = jnp.split(jax.vmap(lambda step: final_loss(tree(flat + step)))(steps), 2)
        return jax.grad(final_loss)(tree(flat)), (ahead - behind) / (2 * H)

    gradient, differences = both(flat)
    expected = tree(differences)
    for part in inputs:
        found, wanted = (ravel_pytree(tree[part])[0] for tree in (gradient, expected))
        if wanted.size:
            scale = abs(wanted).max()
            assert scale > 1e-6, part  # it matters
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * scale, err_msg=part)
    dead = gradient["params"][0]["w"][1]
    assert np.isfinite(dead).all()


def test_rates_of_layers_are_those_of_a_partition(x64):
    """Scaling updates by layer is what optax.partition does with an optimizer for each."""
    start = MODEL.init(jax.random.key(0))
    batch = (*data(ROWS), jnp.ones(ROWS))
    labels = [jax.tree.map(lambda _, i=i: f"layer {i}", layer) for i, layer in enumerate(start)]

    def run(optimizer):
        step = fgd.train_step(weighted, optimizer)
        return fgd.fit(step, step.init(start), batch, num_steps=7)[0].params

    scaled = run(per_layer(fgd.adam(1.0), [0.03, 0.02]))
    parts = {"layer 0": fgd.adam(0.03), "layer 1": fgd.adam(0.02)}
    close(run(optax.partition(parts, labels)), scaled, rtol=1e-12, atol=1e-14)
    assert not jnp.allclose(run(fgd.adam(0.03))[1]["w"], scaled[1]["w"])


SCHEDULES = {
    "one cycle": lambda peak: optax.cosine_onecycle_schedule(STEPS, peak),
    # Optax asks whether this one's peak is 0, which a traced number can't answer: scale it.
    "warmup": lambda peak: (
        lambda count: peak * optax.warmup_cosine_decay_schedule(0.0, 1.0, 5, STEPS)(count)
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[] if x == "warmup" else pytest.mark.slow) for x in SCHEDULES]
)
def test_schedules_of_a_traced_peak(name, x64):
    """A schedule built inside the run: mapped over its peak, and differentiated by it."""
    batch = (*data(ROWS), jnp.ones(ROWS))
    start = MODEL.init(jax.random.key(0))

    @jax.jit
    def run(peak):
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            step = fgd.train_step(weighted, fgd.adam(SCHEDULES[name](peak)))
            _, history = fgd.fit(step, step.init(start), batch, num_steps=STEPS)
        return history["loss"][-1]

    peaks = jnp.array([0.01, 0.03])
    np.testing.assert_allclose(jax.vmap(run)(peaks), [run(peak) for peak in peaks], rtol=1e-12)
    h = 1e-4  # some of optax's schedules are in float32 whatever they are given
    slope = (run(0.02 + h) - run(0.02 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(run)(0.02), slope, rtol=2e-3)


def test_hyperoptax_searches_runs():
    """A run is a function, so a library that optimizes functions takes it as it is."""
    hyperoptax = pytest.importorskip("hyperoptax")
    batch = (*data(ROWS), jnp.ones(ROWS))

    def run(key, point):
        del key
        step = fgd.train_step(weighted, fgd.momentum(point["rate"], point["decay"]))
        state = step.init(MODEL.init(jax.random.key(0)))
        return fgd.fit(step, state, batch, num_steps=9)[1]["loss"][-1]

    space = {"rate": hyperoptax.LogSpace(1e-3, 1e-1), "decay": hyperoptax.LinearSpace(0.0, 0.9)}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state, search = hyperoptax.RandomSearch.init(space, n_parallel=4)
        _, (points, losses) = search.optimize_scan(state, jax.random.key(1), run, n_iterations=2)
    expected = jax.vmap(jax.vmap(lambda point: run(None, point)))(points)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.unique(losses).size == 8
