"""R5b and R5c: descent on quadratics has a closed form; the stochastic gradient is unbiased."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import MODELS, OPTIMIZERS, close

import fgd

# R5d's fifteen points and starting line, whose gradient is published.
X = np.array([3.3, 4.4, 5.5, 6.71, 6.93, 4.168, 9.779, 6.182, 7.59, 2.167, 7.042, 10.791, 5.313,
              7.997, 3.1])  # fmt: skip
Y = np.array([1.7, 2.76, 2.09, 3.19, 1.694, 1.573, 3.366, 2.596, 2.53, 1.221, 2.827, 3.465, 1.65,
              2.904, 1.3])  # fmt: skip
START = np.array([-0.11873716861009598, 0.0])
PUBLISHED = [-41.1289, -6.0890]
RESIDUALS = START[0] * X + START[1] - Y
ROW_GRADIENTS = 2 * RESIDUALS[:, None] * np.stack([X, np.ones(15)], axis=1)  # by hand, [15, 2]
FULL = ROW_GRADIENTS.mean(axis=0)


def line_loss(params, batch):
    x, y = batch
    return jnp.mean((params[0] * x + params[1] - y) ** 2)


def gradients(batch_size, num_steps, *, shuffle=True, key=0):
    """The stochastic gradients of a run's steps, all at START, where a rate of 0 keeps it."""

    def loss_fn(params, batch):
        w, b = jax.grad(line_loss)(params, batch)
        return line_loss(params, batch), {"w": w, "b": b}

    step = fgd.train_step(loss_fn, fgd.sgd(0.0))
    data, state = (jnp.asarray(X), jnp.asarray(Y)), step.init(START, key=key)
    run = {"batch_size": batch_size, "num_steps": num_steps, "shuffle": shuffle}
    _, history = fgd.fit(step, state, data, **run)
    return np.stack([history["w"], history["b"]], axis=1)


def test_full_gradient_is_the_published_one(x64):
    np.testing.assert_allclose(FULL, PUBLISHED, atol=5e-5)
    np.testing.assert_allclose(gradients(None, 1)[0], FULL, rtol=1e-13)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 15])
def test_mean_over_an_epoch_is_the_full_gradient(batch_size, x64):
    """Exactly, in each epoch: every row is in one batch."""
    of_epochs = gradients(batch_size, 4 * 15 // batch_size).reshape(4, -1, 2)
    np.testing.assert_allclose(of_epochs.mean(axis=1), [FULL] * 4, rtol=1e-13)
    if batch_size == 1:  # one row is far from the mean of all: the average is what is right
        assert (of_epochs.std(axis=1) > 0.2 * np.abs(FULL)).all()


@pytest.mark.parametrize(("model", "rows", "batch_size"), [("mlp", 60, 12), ("relu mlp", 200, 8)])
def test_mean_over_an_epoch_of_a_network(model, rows, batch_size, x64):
    """For every parameter, on an order drawn whole (60 rows) and on a Feistel network's (200)."""
    draw = np.random.default_rng(0)
    data = jnp.asarray(draw.normal(size=(rows, 3))), jnp.asarray(draw.normal(size=(rows, 2)))
    params = MODELS[model].init(jax.random.key(0))
    gradient = jax.jit(jax.grad(fgd.supervised(MODELS[model], fgd.losses.mse)))
    order = fgd.data.shuffle(jax.random.key(1), 7, jnp.arange(rows), rows)
    batches = jax.tree.map(lambda x: x[order].reshape(-1, batch_size, *x.shape[1:]), data)
    each = jax.jit(jax.vmap(gradient, (None, 0)))(params, batches)
    close(jax.tree.map(lambda g: g.mean(axis=0), each), gradient(params, data), 1e-12, 1e-15)


@pytest.mark.parametrize("batch_size", [2, 4, 13])
def test_mean_over_all_possible_batches(batch_size, x64):
    """Exhaustively, and their covariance: that of a row, times (n − B) / (B·(n − 1))."""
    batches = np.array(list(itertools.combinations(range(15), batch_size)))
    each = jax.vmap(lambda x, y: jax.grad(line_loss)(jnp.asarray(START), (x, y)))
    found = np.asarray(each(jnp.asarray(X[batches]), jnp.asarray(Y[batches])))
    np.testing.assert_allclose(found.mean(axis=0), FULL, rtol=1e-13)
    np.testing.assert_allclose(np.cov(found.T, bias=True), covariance(batch_size), rtol=1e-11)


def covariance(batch_size):
    rows = np.cov(ROW_GRADIENTS.T, bias=True)
    return rows * (15 - batch_size) / (batch_size * 14)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_sampled_batches_are_unbiased(batch_size, x64):
    """4 and 7 leave rows out of every epoch; which ones is chance, so that it evens out.

    The first batches of 4,000 epochs are independent, each with the covariance above.
    """
    per_epoch, epochs = 15 // batch_size, 4000
    found = gradients(batch_size, epochs * per_epoch).reshape(epochs, per_epoch, 2)
    for batch in range(per_epoch):
        error = np.sqrt(np.diag(covariance(batch_size)) / epochs)
        assert (np.abs(found[:, batch].mean(axis=0) - FULL) < 4 * error).all(), batch
    if 15 % batch_size:  # the epoch itself is not exact
        assert np.abs(found.mean(axis=1) - FULL).max() > 0.1


def test_unshuffled_batches_are_unbiased_over_a_whole_turn(x64):
    """15 batches of 4 rows go round the rows four times."""
    found = gradients(4, 30, shuffle=False)
    np.testing.assert_allclose(found[:15].mean(axis=0), FULL, rtol=1e-13)
    np.testing.assert_allclose(found[3:18].mean(axis=0), FULL, rtol=1e-13)
    assert np.abs(found[:3].mean(axis=0) - FULL).max() > 0.1


def path(function, optimizer, start, num_steps):
    """The positions from the start to the end of a run, [steps + 1, dimensions]."""

    def loss_fn(position, _):
        return function(position), {f"{i}": x for i, x in enumerate(position)}

    step = fgd.train_step(loss_fn, optimizer)
    _, history = fgd.fit(step, step.init(start), jnp.zeros(1), num_steps=num_steps + 1)
    return jnp.stack([history[f"{i}"] for i in range(len(start))], axis=-1)


@pytest.mark.parametrize("a", [0.5, 2.0, 30.0])
def test_learning_rate_on_a_parabola(a, x64):
    """f(x) = a·x²/2: x = (1 − ηa)ᵗ·x₀ at every step; the bound of convergence is η = 2/a."""
    relative = np.array([0.01, 0.5, 1.0, 1.5, 1.99, 2.0, 2.01, 2.5])  # η·a
    rates = jnp.asarray(relative / a)
    start, num_steps = jnp.array([3.0]), 50

    def run(rate):
        return path(lambda p: a * p[0] ** 2 / 2, fgd.sgd(rate), start, num_steps)[:, 0]

    found = np.asarray(jax.vmap(run)(rates))
    expected = 3 * (1 - relative[:, None]) ** np.arange(num_steps + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    shrinks = np.abs(found[:, -1]) < 3 * (1 - 1e-9)
    np.testing.assert_array_equal(shrinks, relative < 2)
    grows = np.abs(found[:, -1]) > 3 * (1 + 1e-9)
    np.testing.assert_array_equal(grows, relative > 2)
    sides = np.sign(found[:, 1:]) != np.sign(found[:, :-1])  # it oscillates above η = 1/a
    np.testing.assert_array_equal(sides.all(axis=1), relative > 1)


def saddle(p):
    return p[0] ** 2 - p[1] ** 2


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, -1e-3])
def test_sgd_at_a_saddle(epsilon, x64):
    """From (1, ε): ((1 − 2η)ᵗ, ε(1 + 2η)ᵗ). It leaves only along y, and from y = 0 never."""
    eta, t = 0.05, np.arange(201)
    found = path(saddle, fgd.sgd(eta), jnp.array([1.0, epsilon]), 200)
    expected = np.stack([(1 - 2 * eta) ** t, epsilon * (1 + 2 * eta) ** t], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def linear_form(name, a, rate, decay=0.9):
    """On a·x²/2, (x, v) ← M·(x, v): the matrix M of a form of momentum."""
    share = 1 - decay if name == "averaging" else 1
    velocity = np.array([share * a, decay])  # v ← decay·v + share·a·x
    along = np.array([a, 0]) + decay * velocity if name == "nesterov" else velocity
    return np.stack([np.array([1, 0]) - rate * along, velocity])


@pytest.mark.parametrize("name", ["momentum", "nesterov", "averaging"])
def test_momentum_at_a_saddle(name, x64):
    """Each coordinate is a linear recursion, so a power of a 2 × 2 matrix."""
    eta, num_steps = 0.03, 60
    found = path(saddle, OPTIMIZERS[name](eta), jnp.array([1.0, 1e-3]), num_steps)
    for axis, (curvature, start) in enumerate([(2, 1.0), (-2, 1e-3)]):
        matrix = linear_form(name, curvature, eta)
        powers = [np.linalg.matrix_power(matrix, t) for t in range(num_steps + 1)]
        expected = [power @ [start, 0.0] for power in powers]
        np.testing.assert_allclose(found[:, axis], np.array(expected)[:, 0], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "name", ["sgd", "momentum", "nesterov", "averaging", "adagrad", "rmsprop", "adam"]
)
def test_no_optimizer_leaves_the_ridge(name, x64):
    """With no gradient along y there is no step along y: not by rounding, nor by dividing 0/0."""
    found = np.asarray(path(saddle, OPTIMIZERS[name](0.05), jnp.array([1.0, 0.0]), 100))
    assert (found[:, 1] == 0).all()
    assert np.isfinite(found).all()
    away = np.asarray(path(saddle, OPTIMIZERS[name](0.05), jnp.array([1.0, 1e-2]), 100))
    assert (np.diff(away[:, 1]) > 0).all()


def test_only_momentum_passes_a_flat_saddle(x64):
    """x⁴ − y³ from y < 0: η·3y² is less than |y| however often, so sgd never reaches 0."""
    start = jnp.array([0.8, -0.6])
    for name, passes in {"sgd": False, "momentum": True, "nesterov": True, "adam": False}.items():
        found = path(lambda p: p[0] ** 4 - p[1] ** 3, OPTIMIZERS[name](0.02), start, 60)
        assert bool((found[:, 1] > 0).any()) == passes, name
