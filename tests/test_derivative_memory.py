"""What the derivative of a run keeps: the same derivative in any memory, and no more than told."""

from functools import partial

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import fgd
from fgd._run import memory

MODEL = fgd.models.mlp([6, 5, 2], activation=jnp.tanh)
LOSS = fgd.supervised(MODEL, fgd.losses.mse)
STEPS = 60
SLOW = pytest.mark.slow


def data(rows=40):
    draw = np.random.default_rng(rows)
    x = draw.normal(size=(rows, 6))
    y = np.sin(x[:, :2])
    return jnp.asarray(x, float), jnp.asarray(y, float)


def run(rate, params, rows, *, optimizer=fgd.sgd, loss=LOSS, steps=STEPS, **options):
    step = fgd.train_step(loss, optimizer(rate))
    return fgd.fit(step, step.init(params), rows, batch_size=8, num_steps=steps, **options)


def final_loss(*args, **options):
    state, history = run(*args, **options)
    return LOSS(state.params, data(20)) + 0.1 * history["loss"].mean()


def bits(tree):
    tree = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, np.number) else None, tree)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


LEAST = 5000  # bytes: many levels of blocks


@pytest.mark.parametrize(
    ("optimizer", "every"),
    [(fgd.sgd, 20), *(pytest.param(*x, marks=SLOW) for x in ((fgd.sgd, 1), (fgd.adam, 20)))],
)
def test_the_same_in_any_memory(optimizer, every):
    """The state bit for bit; means of the history, and the derivative, to a few roundings."""
    args = jnp.float32(0.02), MODEL.init(0), data()
    options = {"optimizer": optimizer, "record_every": every}
    eager, expected = run(*args, **options)
    slopes = []
    for most in (None, 20_000, LEAST):
        bound = {**options, "max_memory": most and most * (1 if optimizer is fgd.sgd else 4)}
        state, history = jax.jit(partial(run, **bound))(*args)
        assert bits(state) == bits(eager)
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)
        slopes.append(ravel_pytree(jax.grad(partial(final_loss, **bound), (0, 1, 2))(*args))[0])
    for slope in slopes[1:]:
        np.testing.assert_allclose(slope, slopes[0], rtol=2e-6, atol=2e-6 * abs(slopes[0]).max())


def test_a_bound_that_is_too_small_is_refused_with_the_least_that_will_do():
    slope = jax.grad(final_loss)
    args = 0.02, MODEL.init(0), data()
    with pytest.raises(ValueError, match=r"max_memory=10 bytes is too little .* at least") as error:
        slope(*args, max_memory=10)
    least = int(str(error.value).rsplit(" ", 1)[1].replace(",", ""))
    slope(*args, max_memory=least)
    with pytest.raises(ValueError, match="too little"):
        slope(*args, max_memory=least - 1)
    run(*args, max_memory=10)  # nobody differentiates
    for wrong in (0, -1, True):
        with pytest.raises((TypeError, ValueError), match="fit: max_memory"):
            run(*args, max_memory=wrong)


def test_blocks_keep_what_they_say():
    """Counted by walking through the blocks as the derivative does."""

    def states(length, blocks):
        """States at the beginning of blocks that are there at once."""
        if not blocks:
            return 0
        block, within = blocks[0], blocks[1:]
        return -(-length // block) + states(block, within)

    for steps in (1, 7, 60, 997, 10**4, 10**6):
        for every in {1, 5, steps} if steps % 5 == 0 else {1, steps}:
            for state, step in ((640, 190), (1, 100), (100, 1)):
                for most in (10**9, steps * step // 3, 10 * (state + step), 1):
                    flat, told = memory._fewest(steps, every, state, step, most)
                    outer = tuple(b // every for b in flat if b >= every)
                    inner = tuple(b for b in flat if b < every)
                    together = outer[-1] if outer else steps // every  # entries, none in a block
                    found = states(steps // every, outer)
                    if inner:
                        found += together * -(-every // inner[0]) + states(inner[0], inner[1:])
                    found = found * state + step * (inner[-1] if inner else together * every)
                    assert found <= told, (steps, every, state, step, most, flat)


@pytest.mark.parametrize("most", [300_000, 1_000_000])
def test_compiled_programs_keep_within_the_bound(most):
    slope = jax.jit(jax.grad(partial(final_loss, steps=20_000, max_memory=most)))
    compiled = slope.lower(0.02, MODEL.init(0), data()).compile()
    history = 2 * 4 * 20_000  # its losses, and their cotangents
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * most + 2 * history + 50_000


def test_no_batch_and_no_gradient_is_kept():
    """By the rate of descent without moments: less than the parameters, or the batch, a step."""
    model = fgd.models.mlp([500, 8, 1])
    loss = fgd.supervised(model, fgd.losses.mse)
    params, rows = model.init(0), (jnp.ones([64, 500]), jnp.ones([64, 1]))
    slope = jax.jit(
        jax.grad(lambda rate: run(rate, params, rows, loss=loss, steps=200)[1]["loss"][-1])
    )
    kept = slope.lower(0.01).compile().memory_analysis().temp_size_in_bytes
    assert kept < 200 * 4 * 500 * 8 / 2


def test_the_slope_at_a_rate_of_zero_and_in_forward_mode(x64):
    args = MODEL.init(jax.random.key(0)), data()
    h = 1e-6
    at = [final_loss(k * h, *args) for k in range(3)]
    wanted = (4 * at[1] - at[2] - 3 * at[0]) / (2 * h)
    _, forward = jax.jvp(lambda rate: final_loss(rate, *args), (0.0,), (1.0,))
    np.testing.assert_allclose([jax.grad(final_loss)(0.0, *args), forward], wanted, rtol=1e-6)


def weighted(params, batch):
    x, y, weights = batch
    return jnp.mean(weights * fgd.losses.mse(MODEL.apply(params, x), y, reduction="none"))


@pytest.mark.slow
@pytest.mark.parametrize("most", [None, LEAST * 4])
def test_rows_weights_and_second_derivatives_are_those_of_differences(most, x64):
    """In a direction through all inputs at once, the rate and the rows among them."""
    train = {"rows": data(), "weights": jnp.linspace(0.5, 1.5, 40)}
    inputs = {"rate": 0.05, "params": MODEL.init(jax.random.key(0)), **train}
    flat, tree = ravel_pytree(jax.tree.map(jnp.asarray, inputs))

    def f(flat):
        parts = tree(flat)
        rows = (*parts["rows"], parts["weights"])
        state, _ = run(parts["rate"], parts["params"], rows, loss=weighted, max_memory=most)
        return LOSS(state.params, data(20))

    along = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape))
    h = 1e-4 / jnp.linalg.norm(along)
    slope, slopes = jax.jit(f), jax.jit(jax.grad(f))
    first = (slope(flat + h * along) - slope(flat - h * along)) / (2 * h)
    np.testing.assert_allclose(slopes(flat) @ along, first, rtol=1e-6)
    for part in inputs:
        parts = tree(along)
        only = ravel_pytree(
            {k: v if k == part else jax.tree.map(jnp.zeros_like, v) for k, v in parts.items()}
        )[0]
        change = (slope(flat + h * only) - slope(flat - h * only)) / (2 * h)
        np.testing.assert_allclose(slopes(flat) @ only, change, rtol=1e-5, err_msg=part)
    second = (slopes(flat + h * along) - slopes(flat - h * along)) / (2 * h)
    scale = abs(second).max()
    forward_over_reverse = jax.jvp(slopes, (flat,), (along,))[1]
    np.testing.assert_allclose(forward_over_reverse, second, atol=1e-6 * scale)
    reverse_over_reverse = jax.grad(lambda flat: slopes(flat) @ along)(flat)
    np.testing.assert_allclose(reverse_over_reverse, forward_over_reverse, atol=1e-10 * scale)


def spectrum(w, x):
    return jnp.abs(jnp.fft.fft(x @ w)) ** 2


def phase(w, x):
    return jnp.real(jnp.exp(jax.lax.complex(x, x @ w)) @ jax.lax.complex(w, 2 * w))


def filtered(w, x):
    return jnp.fft.irfft(jnp.fft.rfft(x @ w) * jax.lax.complex(w[:1, :4], w[1:2, :4]), 6)


@pytest.mark.parametrize("of", [spectrum, phase, filtered])
@pytest.mark.parametrize("most", [None, LEAST])
def test_a_loss_may_compute_with_complex_numbers(of, most, x64):
    """The derivative of descent written as a loop."""
    x, w = data(8)[0], jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)))

    def loss_fn(w, batch):
        return 1e-3 * jnp.mean(jnp.tanh(of(w, batch)))

    def by_fit(rate, w):
        step = fgd.train_step(loss_fn, fgd.sgd(rate))
        state, _ = fgd.fit(step, step.init(w), x, num_steps=12, max_memory=most)
        return loss_fn(state.params, x)

    def by_hand(rate, w):
        for _ in range(12):
            w = w - rate * jax.grad(loss_fn)(w, x)
        return loss_fn(w, x)

    args = jnp.asarray(20.0), w
    found, expected = (jax.grad(f, (0, 1))(*args) for f in (by_fit, by_hand))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-15), found, expected)


@jax.custom_vjp
def squared(x):
    return called(np.square, x)


def called(f, *args):
    return jax.pure_callback(f, jax.ShapeDtypeStruct(args[0].shape, args[0].dtype), *args)


squared.defvjp(
    lambda x: (squared(x), x), lambda x, slope: (called(lambda x, s: 2 * x * s, x, slope),)
)


def called_back(w, x):
    return jnp.mean(squared(x @ w))


def counted(w, x):
    jax.experimental.io_callback(lambda _: None, None, jax.lax.stop_gradient(w[0, 0]))
    return jnp.mean((x @ w) ** 2)


def radius(w, x):
    return jnp.mean(jnp.abs(jnp.linalg.eigvals(w))) + 0 * x.mean()


@pytest.mark.parametrize("loss_fn", [called_back, counted, radius])
def test_a_run_without_a_derivative_is_a_run_under_jit_too(loss_fn, x64):
    """What it keeps for a derivative is asked for under `jit`, where there may be none."""
    x, w = data(8)[0], jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)))
    step = fgd.train_step(loss_fn, fgd.sgd(0.01))
    start, expected = step.init(w), []

    def losses(start, **options):
        return fgd.fit(step, start, x, num_steps=5, **options)[1]["loss"]

    for _ in range(5):
        loss, gradient = jax.value_and_grad(loss_fn)(w, x)
        expected.append(loss)
        w = w - 0.01 * gradient
    for run_of in (losses, jax.jit(losses), jax.jit(partial(losses, max_memory=10**6))):
        np.testing.assert_allclose(run_of(start), expected, rtol=1e-12)
    with pytest.raises((NotImplementedError, ValueError), match=r"JVP|remat|eigenvectors"):
        jax.grad(lambda start: losses(start)[-1], allow_int=True)(start)


def test_a_chain_that_changes_the_gradient_has_its_own_derivative(x64):
    """The rule of sgd is for the gradient as the step computed it, and no other."""
    args = MODEL.init(jax.random.key(0)), data()

    def f(rate, clip):
        def clipped(rate):
            return optax.chain(optax.clip_by_global_norm(clip), fgd.sgd(rate))

        return final_loss(rate, *args, optimizer=clipped)

    h, f = 1e-6, jax.jit(f)
    slope = jax.jit(jax.grad(f))
    for clip in (0.5, 1e6):
        wanted = (f(0.05 + h, clip) - f(0.05 - h, clip)) / (2 * h)
        np.testing.assert_allclose(slope(0.05, clip), wanted, rtol=1e-6)
