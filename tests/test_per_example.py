"""Gradients of each example: `per_example`, and differentially private descent with it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from problems import Problem, close, relaxed, same

import fgd

MODEL = fgd.models.linear(3, 2)
LOSS = fgd.supervised(
    MODEL, fgd.losses.mse, metrics={"norm": lambda pred, _: jnp.sqrt(jnp.sum(pred**2))}
)
DATA = Problem("linear", "sgd", False, 24, 6, True, 0).data
CLIP = 0.7


def private(learning_rate=0.1, clip=CLIP, noise=0.0, key=7):
    """`optax.contrib.dpsgd`, whose own call of the aggregation is deprecated."""
    aggregate = optax.contrib.differentially_private_aggregate(clip, noise, jax.random.key(key))
    return relaxed(optax.chain(aggregate, optax.sgd(learning_rate)))


def start(step, key=0):
    return step.init(MODEL.init(0), key=key)


def test_the_formula_in_float64(x64):
    """θ ← θ − η mean(gᵢ min(1, C/‖gᵢ‖)), of gradients of 2 (wᵀxᵢ − yᵢ) xᵢ by hand."""
    draw = np.random.default_rng(0)
    x, y, w = draw.normal(size=(12, 3)), draw.normal(size=12), draw.normal(size=3)
    step = fgd.train_step(
        lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2), fgd.per_example(private())
    )
    state, history = fgd.fit(step, step.init(w), (x, y), num_steps=5)
    for loss in history["loss"]:
        error = x @ w - y
        np.testing.assert_allclose(loss, np.mean(error**2), rtol=1e-12)
        each = 2 * error[:, None] * x
        norm = np.linalg.norm(each, axis=1, keepdims=True)
        assert (norm > CLIP).any()
        assert (norm < CLIP).any()
        w = w - 0.1 * np.mean(each * np.minimum(1, CLIP / norm), axis=0)
    np.testing.assert_allclose(state.params, w, rtol=1e-12)


def test_optax_driven_by_hand():
    """With noise: dpsgd on `vmap(grad)` of the model and loss, written without fgd's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        optimizer = relaxed(optax.contrib.dpsgd(0.1, CLIP, 0.5, seed=3, momentum=0.9))
    step = fgd.train_step(LOSS, fgd.per_example(optimizer))
    state, history = fgd.fit(step, start(step), DATA, batch_size=6, shuffle=False, num_steps=4)

    def loss(params, x, y):
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    params = MODEL.init(0)
    opt_state = optimizer.init(params)
    for i in range(4):
        x, y = (rows[6 * i : 6 * i + 6] for rows in DATA)
        each, grads = jax.vmap(jax.value_and_grad(loss), (None, 0, 0))(params, x, y)
        norms = [jnp.linalg.norm(MODEL.apply(params, row[None])) for row in x]
        np.testing.assert_allclose(history["loss"][i], jnp.mean(each), rtol=1e-5)
        np.testing.assert_allclose(history["norm"][i], np.mean(norms), rtol=1e-5)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    close(state.params, params, rtol=1e-4, atol=1e-6)


def test_without_clipping_or_noise_it_is_gradient_descent():
    """A mean of gradients is the gradient of the mean; `adam` of it follows in the chain."""
    average = optax.stateless(lambda grads, _: jax.tree.map(lambda g: jnp.mean(g, 0), grads))
    steps = [
        fgd.train_step(LOSS, optimizer)
        for optimizer in (fgd.adam(0.01), fgd.per_example(optax.chain(average, fgd.adam(0.01))))
    ]
    whole, each = (fgd.fit(s, start(s), DATA, batch_size=6, num_steps=20) for s in steps)
    close(each[0].params, whole[0].params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(each[1]["loss"], whole[1]["loss"], rtol=1e-4)


def test_a_run_is_the_sum_of_its_parts():
    """Law 1, with noise, and 2: fit is the loop; and `train`, of arrays and of a stream."""
    step = fgd.train_step(LOSS, fgd.per_example(private(noise=0.5)))
    state, options = start(step), {"batch_size": 6, "shuffle": False}
    whole, history = fgd.fit(step, state, DATA, num_steps=7, **options)
    half, first = fgd.fit(step, state, DATA, num_steps=3, **options)
    half, second = fgd.fit(step, half, DATA, num_steps=4, **options)
    assert same(whole, half)
    np.testing.assert_array_equal(history["loss"], np.concatenate([first["loss"], second["loss"]]))
    batches = [jax.tree.map(lambda x, i=i % 4: x[6 * i : 6 * i + 6], DATA) for i in range(7)]
    trained, _ = fgd.train(step, state, DATA, num_steps=7, **options)
    streamed, _ = fgd.train(step, state, iter(batches), num_steps=7)
    looped = state
    for batch in batches:
        looped, _ = step(looped, batch)
    for other in (trained, streamed, looped):
        close(other.params, whole.params, rtol=1e-5, atol=1e-6)


def test_every_row_has_a_key_of_its_own():
    """fold_in(the step's key, its place): that of a step without `per_example` is the former."""

    def loss_fn(params, batch, key):
        return 0 * params, {"draw": jax.random.uniform(key), "rows": jnp.float32(batch.shape[0])}

    average = optax.stateless(lambda grads, _: jnp.mean(grads, 0))
    step = fgd.train_step(loss_fn, fgd.per_example(average))
    _, history = fgd.fit(step, step.init(1.0, key=5), jnp.zeros(4), num_steps=3)
    assert history["rows"].tolist() == [1, 1, 1]

    def the_key(params, batch, key):
        return 0 * params, {
            str(i): jax.random.uniform(jax.random.fold_in(key, i)) for i in range(4)
        }

    step = fgd.train_step(the_key, fgd.sgd(0.1))
    _, expected = fgd.fit(step, step.init(1.0, key=5), jnp.zeros(4), num_steps=3)
    np.testing.assert_allclose(history["draw"], sum(expected.values()) / 4, rtol=1e-6)


def test_a_sweep_over_the_clipping_norm():
    def run(clip):
        step = fgd.train_step(LOSS, fgd.per_example(private(clip=clip, noise=0.1)))
        return fgd.fit(step, start(step), DATA, batch_size=6, num_steps=5)[0].params

    clips = jnp.array([0.01, 0.3, 10.0])
    swept = fgd.sweep(run, clip=clips)
    for i in (0, 2):
        close(jax.tree.map(lambda x, i=i: x[i], swept), run(clips[i]), rtol=1e-4, atol=1e-6)
    assert not np.allclose(swept["w"][0], swept["w"][2], atol=1e-3)


def test_on_a_mesh():
    """The gradients of examples lie where the examples do, and the noise is the same."""
    mesh = jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,))
    step = fgd.train_step(LOSS, fgd.per_example(private(noise=0.5)))
    state = start(step)
    alone, _ = fgd.fit(step, state, DATA, batch_size=6, num_steps=5)
    shared, _ = fgd.fit(step, state, DATA, batch_size=6, num_steps=5, mesh=mesh)
    close(shared.params, alone.params, rtol=1e-4, atol=1e-6)
    split = jax.device_put(DATA, NamedSharding(mesh, P("data")))
    grads = []
    spy = optax.stateless(
        lambda g, _: jax.debug.inspect_array_sharding(g, callback=grads.append) or jnp.mean(g, 0)
    )
    step = fgd.train_step(lambda w, batch: jnp.mean(w * batch[0]), fgd.per_example(spy))
    jax.jit(step.update)(jax.device_put(step.init(1.0), NamedSharding(mesh, P())), split)
    assert grads == [NamedSharding(mesh, P("data"))]


def test_its_gradient(x64):
    """Law 5: the slope of a private run over its clipping norm, against finite differences."""

    x, y = np.random.default_rng(0).normal(size=(2, 12, 1))

    def run(clip):
        optimizer = fgd.per_example(private(clip=clip))
        step = fgd.train_step(lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2), optimizer)
        return fgd.fit(step, step.init(np.zeros([1, 1])), (x, y), num_steps=5)[1]["loss"][-1]

    slope = (run(0.3 + 1e-5) - run(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(run)(0.3), slope, rtol=1e-5)
    assert abs(slope) > 1e-3


@pytest.mark.usefixtures("as_users")
def test_what_is_refused():
    whole_chain = "given as fgd.per_example.optimizer., its whole chain"
    for optimizer in (private(), optax.chain(fgd.per_example(private()), fgd.adam(0.1))):
        step = fgd.train_step(LOSS, optimizer)
        with pytest.raises(TypeError, match=f"train_step: .* such as .*dpsgd, is {whole_chain}"):
            fgd.fit(step, start(step), DATA, num_steps=1)
    sums = optax.stateless(lambda grads, _: jax.tree.map(lambda g: jnp.sum(g, 0), grads))
    step = fgd.train_step(LOSS, sums)
    with pytest.raises(ValueError, match=rf"has shape \(\), expected \(2,\); .* {whole_chain}"):
        step(start(step), DATA)
    step = fgd.train_step(LOSS, fgd.per_example(fgd.sgd(0.1)))
    with pytest.raises(ValueError, match=r"shape \(24, 2\), expected \(2,\); .* it must combine"):
        step(start(step), DATA)
    step = fgd.train_step(LOSS, fgd.per_example(private()))
    with pytest.raises(ValueError, match=r"train_step: batch\[1\] has shape \(\), .* one row"):
        step(start(step), (DATA[0], 1.0))
    with pytest.raises(TypeError, match=r"train_step: per_example .* loss takes model_state"):
        fgd.train_step(lambda p, model_state, b: (p, model_state), fgd.per_example(private()))
    with pytest.raises(TypeError, match=r"per_example: optimizer must be an optax.Gradient"):
        fgd.per_example(0.1)
