"""The optimizers: equal to optax and to their formulas step by step, smooth where it counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import close

import fgd

RATE = 0.03
OPTAX = {
    "sgd": (fgd.sgd(RATE), optax.sgd(RATE)),
    "momentum": (fgd.momentum(RATE), optax.sgd(RATE, momentum=0.9)),
    "nesterov": (
        fgd.momentum(RATE, 0.8, nesterov=True),
        optax.sgd(RATE, momentum=0.8, nesterov=True),
    ),
    "averaging": (
        fgd.momentum(RATE, averaging=True),
        optax.chain(optax.ema(0.9, debias=False), optax.scale(-RATE)),
    ),
    "adagrad": (
        fgd.adagrad(RATE, 1e-7, initial_accumulator_value=0.1, eps_in_sqrt=True),
        optax.adagrad(RATE),
    ),
    "rmsprop": (fgd.rmsprop(RATE, 0.9, eps_in_sqrt=True), optax.rmsprop(RATE)),
    "rmsprop, eps outside": (fgd.rmsprop(RATE, 0.9), optax.rmsprop(RATE, eps_in_sqrt=False)),
    "adam": (fgd.adam(RATE), optax.adam(RATE)),
    "adam, other constants": (fgd.adam(RATE, 0.7, 0.9, 1e-3), optax.adam(RATE, 0.7, 0.9, 1e-3)),
}
PARAMS = {"w": np.array([[1.0, -2.0], [0.5, 3.0]]), "b": np.array([0.1, 0.0])}


def gradients(num_steps):
    """Random ones, which do not depend on the parameters; b[1] never has any."""
    draw = np.random.default_rng(0)
    for _ in range(num_steps):
        b = draw.normal(size=2) * [1, 0]
        yield {"w": jnp.asarray(draw.normal(size=(2, 2))), "b": jnp.asarray(b)}


def trajectory(optimizer, num_steps=100):
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    for grads in gradients(num_steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield params


@pytest.mark.parametrize("name", OPTAX)
def test_equals_optax(name, x64):
    ours, theirs = OPTAX[name]
    with jax.numpy_dtype_promotion("standard"):
        expected = list(trajectory(theirs))
    for t, (a, b) in enumerate(zip(trajectory(ours), expected, strict=True)):
        close(a, b, rtol=1e-10, atol=1e-12), t


def formula(name, num_steps):
    """The default forms, as their docstrings state them, in NumPy."""
    theta = {k: v.copy() for k, v in PARAMS.items()}
    v, m, s = ({k: np.zeros_like(x) for k, x in PARAMS.items()} for _ in range(3))
    for t, grads in enumerate(gradients(num_steps), start=1):
        for k in theta:
            g = np.asarray(grads[k])
            if name == "momentum":
                v[k] = 0.9 * v[k] + g
                theta[k] -= RATE * v[k]
            elif name == "averaging":
                v[k] = 0.9 * v[k] + 0.1 * g
                theta[k] -= RATE * v[k]
            elif name == "adagrad":
                s[k] += g**2
                theta[k] -= RATE * g / (np.sqrt(s[k]) + 1e-10)
            elif name == "rmsprop":
                s[k] = 0.99 * s[k] + 0.01 * g**2
                theta[k] -= RATE * g / (np.sqrt(s[k]) + 1e-8)
            elif name == "adam":
                m[k] = 0.9 * m[k] + 0.1 * g
                s[k] = 0.999 * s[k] + 0.001 * g**2
                m_hat, s_hat = m[k] / (1 - 0.9**t), s[k] / (1 - 0.999**t)
                theta[k] -= RATE * m_hat / (np.sqrt(s_hat) + 1e-8)
        yield {k: x.copy() for k, x in theta.items()}


DEFAULTS = {
    "momentum": fgd.momentum(RATE),
    "averaging": fgd.momentum(RATE, averaging=True),
    "adagrad": fgd.adagrad(RATE),
    "rmsprop": fgd.rmsprop(RATE),
    "adam": fgd.adam(RATE),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_equals_its_formula(name, x64):
    for ours, expected in zip(trajectory(DEFAULTS[name]), formula(name, 100), strict=True):
        close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [fgd.sgd, fgd.momentum, fgd.adagrad, fgd.rmsprop, fgd.adam])
def test_learning_rate_is_a_float_an_array_or_a_schedule(make, x64):
    *_, constant = trajectory(make(RATE), 10)
    *_, array = trajectory(make(jnp.float32(RATE)), 10)
    close(constant, array, rtol=1e-6)
    *_, scheduled = trajectory(make(lambda count: RATE), 10)
    close(constant, scheduled, rtol=1e-12)
    rates = iter([0.1, 0.2])
    first, second = trajectory(make(lambda count: jnp.where(count == 0, 0.1, 0.2)), 2)
    halves = [list(trajectory(make(next(rates)), 2)) for _ in range(2)]
    close(first, halves[0][0], rtol=1e-12)  # the schedule's first argument is 0
    change = jax.tree.map(lambda a, b: a - b, second, first)
    expected = jax.tree.map(lambda a, b: a - b, halves[1][1], halves[1][0])
    close(change, expected, rtol=1e-10, atol=1e-12)


def test_inside_a_chain():
    """Clipped to norm 1 before, decayed after: parts of optax around a part of ours."""
    chain = optax.chain(optax.clip_by_global_norm(1.0), fgd.momentum(0.5), optax.scale(2.0))
    state = chain.init(jnp.zeros(2))
    updates, _ = chain.update(jnp.array([3.0, 4.0]), state, jnp.zeros(2))
    np.testing.assert_allclose(updates, [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("make", [fgd.sgd, fgd.momentum, fgd.adagrad, fgd.rmsprop, fgd.adam])
def test_dead_gradients_have_finite_derivatives(make):
    """With an input that is always 0, d(loss)/d(learning rate) is finite (optax's Adam: NaN)."""

    def final(rate, optimizer=make):
        step = fgd.train_step(lambda w, x: jnp.sum((x @ w[:, None] - 1) ** 2), optimizer(rate))
        state = step.init(jnp.ones(2))
        return fgd.fit(step, state, jnp.array([[1.0, 0.0]]), num_steps=3)[1]["loss"][-1]

    assert np.isfinite(jax.grad(final)(0.01))
    with jax.numpy_dtype_promotion("standard"):
        assert np.isnan(jax.grad(final)(0.01, optax.adam))  # so that the test can fail


def test_moments_can_be_differentiated(x64):
    """Hyperparameters beside the rate are traced too: d/d(decay) by central difference."""

    def final(decay):
        step = fgd.train_step(lambda w, x: jnp.sum((w[None] - x) ** 2), fgd.momentum(0.1, decay))
        return fgd.fit(step, step.init(jnp.ones(1)), jnp.zeros((1, 1)), num_steps=9)[1]["loss"][-1]

    slope = (final(0.5 + 1e-6) - final(0.5 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(final)(0.5), slope, rtol=1e-6)


def test_a_known_array_as_rate_inside_a_compiled_function():
    rate = jnp.float32(0.5)
    updates = jax.jit(lambda g: fgd.sgd(rate).update(g, fgd.sgd(rate).init(g))[0])(jnp.ones(2))
    np.testing.assert_array_equal(updates, [-0.5, -0.5])


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("rate", [None, "0.1", "fast"])
def test_rates_are_numbers(rate):
    with pytest.raises(TypeError, match="sgd: learning_rate must be a number"):
        fgd.sgd(rate)


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fgd.sgd(-0.1), "sgd: learning_rate must be finite and not negative, got -0.1"),
        (lambda: fgd.adam(float("nan")), "adam: learning_rate must be"),
        (lambda: fgd.sgd(jnp.ones(2)), r"must be a scalar, got shape \(2,\)"),
        (lambda: fgd.adam(0.1, b1=1.0), r"adam: b1 must be in \[0, 1\), got 1.0"),
        (lambda: fgd.adam(0.1, b2=-0.1), "adam: b2 must be"),
        (lambda: fgd.adam(0.1, eps=0.0), "adam: eps must be finite and positive"),
        (lambda: fgd.momentum(0.1, 1.5), "momentum: decay must be"),
        (lambda: fgd.rmsprop(0.1, eps=-1.0), "rmsprop: eps must be"),
        (lambda: fgd.adagrad(0.1, initial_accumulator_value=-1.0), "initial_accumulator_value"),
        (lambda: fgd.momentum(0.1, nesterov=True, averaging=True), "choose one"),
    ],
)
def test_bad_hyperparameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


NAMES = {
    "momentum": (fgd.momentum, ["trace"]),
    "adagrad": (fgd.adagrad, ["sum_of_squares"]),
    "rmsprop": (fgd.rmsprop, ["nu"]),
    "adam": (fgd.adam, ["mu", "nu"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_states_and_updates_are_as_optax_has_them(name):
    """Moments are found by optax's names, in a chain too; arguments for others pass by."""
    make, moments = NAMES[name]
    params = {"w": jnp.ones(3)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), make(0.1))
    state = optimizer.init(params)
    for moment in moments:
        assert optax.tree.get(state, moment)["w"].shape == (3,)
    _, state = make(0.1).update(params, make(0.1).init(params), params, value=1.0, other="thing")
    assert state.count == 1


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "adam"])
def test_complex_parameters(name, x64):
    """Squares are of the modulus, so that they are real; against the formulas in NumPy."""
    draw = np.random.default_rng(0)
    gradients = draw.normal(size=(5, 3)) + 1j * draw.normal(size=(5, 3))
    params = jnp.zeros(3, complex)
    optimizer = {"adagrad": fgd.adagrad, "rmsprop": fgd.rmsprop, "adam": fgd.adam}[name](0.1)
    state, m, s = optimizer.init(params), np.zeros(3, complex), np.zeros(3)
    for t, g in enumerate(gradients, start=1):
        update, state = optimizer.update(jnp.asarray(g), state, params)
        if name == "adagrad":
            s = s + abs(g) ** 2
            expected = g / (np.sqrt(s) + 1e-10)
        elif name == "rmsprop":
            s = 0.99 * s + 0.01 * abs(g) ** 2
            expected = g / (np.sqrt(s) + 1e-8)
        else:
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * abs(g) ** 2
            expected = m / (1 - 0.9**t) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(update, -0.1 * expected, rtol=1e-10)
