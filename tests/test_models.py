"""Models: PyTorch's initialisation, analytic gradients, and Flax's modules as functions."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problems import close, same

import fgd
from fgd.models import from_flax, linear, mlp

X = np.random.default_rng(0).normal(size=(5, 3))


def test_linear_is_its_formula(x64):
    model = linear(3, 2)
    params = model.init(jax.random.key(0))
    x = jnp.asarray(X)
    np.testing.assert_allclose(
        model.apply(params, x), X @ np.asarray(params["w"]) + np.asarray(params["b"]), rtol=1e-14
    )
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, x) ** 2) / 2)(params)
    y = np.asarray(model.apply(params, x))
    close(gradient, {"b": y.sum(axis=0), "w": X.T @ y}, rtol=1e-12)


def test_mlp_backpropagation_by_hand(x64):
    """784–200–10's shape in small: ∂W₂ = hᵀδ, ∂W₁ = xᵀ(δW₂ᵀ ⊙ 1[a > 0])."""
    model = mlp([3, 4, 2])
    params = model.init(jax.random.key(1))
    (w1, b1), (w2, b2) = ((np.asarray(p["w"]), np.asarray(p["b"])) for p in params)
    a = X @ w1 + b1
    h = np.maximum(a, 0)
    delta = h @ w2 + b2
    np.testing.assert_allclose(model.apply(params, jnp.asarray(X)), delta, rtol=1e-12)
    back = delta @ w2.T * (a > 0)
    expected = [
        {"b": back.sum(axis=0), "w": X.T @ back},
        {"b": delta.sum(axis=0), "w": h.T @ delta},
    ]
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, jnp.asarray(X)) ** 2) / 2)(params)
    close(gradient, expected, rtol=1e-12)


def test_initial_parameters_are_uniform_as_in_torch():
    params = mlp([100, 300, 7]).init(jax.random.key(0))
    for layer, fan_in in zip(params, (100, 300), strict=True):
        bound = 1 / np.sqrt(fan_in)
        assert abs(layer["w"]).max() <= bound
        assert abs(layer["b"]).max() <= bound
        # A uniform's standard deviation is bound/√3; 30,000 and 2,100 draws.
        np.testing.assert_allclose(np.std(layer["w"]), bound / np.sqrt(3), rtol=0.05)
        assert np.unique(layer["w"]).size > 0.99 * layer["w"].size
    assert not jnp.array_equal(
        mlp([3, 3]).init(jax.random.key(1))[0]["w"][0], params[0]["w"][0, :3]
    )


def test_images_are_flattened():
    model = mlp([6, 2])
    params = model.init(jax.random.key(0))
    x = jnp.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(model.apply(params, x), model.apply(params, x.reshape(2, 6)))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.relu(linen.Dense(64)(x))
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=not train)(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.first(x))))


FLAX = {"linen": Linen(), "nnx": Nnx}


@pytest.mark.parametrize("kind", FLAX)
def test_flax_is_a_pair_of_functions(kind):
    model = from_flax(FLAX[kind], np.ones((1, 3)))
    x = jnp.asarray(X, jnp.float32)
    params = model.init(jax.random.key(0))
    close(params, model.init(jax.random.key(0)), rtol=0)
    first, last = ("Dense_0", "Dense_1") if kind == "linen" else ("first", "last")
    assert params[first]["kernel"].shape == (3, 64)
    other = model.init(jax.random.key(1))
    assert not jnp.array_equal(params[first]["kernel"], other[first]["kernel"])

    hidden = np.maximum(X @ np.asarray(params[first]["kernel"]), 0)
    expected = hidden @ np.asarray(params[last]["kernel"])
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-4, atol=1e-5)

    with_key = [model.apply(params, x, key=jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(with_key[0], with_key[1])
    assert not jnp.array_equal(with_key[0], with_key[2])
    assert not jnp.array_equal(with_key[0], model.apply(params, x))
    draws = jax.vmap(lambda key: model.apply(params, x, key=key))(
        jax.random.split(jax.random.key(2), 4000)
    )
    np.testing.assert_allclose(draws.mean(axis=0), expected, atol=0.1)  # dropout is unbiased


@pytest.mark.parametrize("kind", FLAX)
def test_flax_trains(kind):
    model = from_flax(FLAX[kind], np.ones((1, 3)))
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(X[:, :2], jnp.float32)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.adam(0.02))
    state = step.init(model.init(jax.random.key(0)))
    state, _ = fgd.fit(step, state, (x, y), num_steps=300)
    assert fgd.losses.mse(model.apply(state.params, x), y) < 0.05


class LinenNorm(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        return linen.BatchNorm(use_running_average=not train)(linen.Dense(2)(x))


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class Constant(nnx.Module):
    """An array that is no variable: a positional table, say."""

    def __init__(self, rngs):
        self.last = nnx.Linear(3, 2, rngs=rngs)
        self.table = jnp.full(3, 2.0)

    def __call__(self, x):
        return self.last(x * self.table[None])


def test_flax_module_with_a_constant_array():
    try:
        model = from_flax(Constant, np.ones((1, 3)))
    except (ValueError, TypeError) as error:  # some releases of flax allow no such array
        assert "table" in str(error) or "Array" in str(error)  # noqa: PT017
        return
    params = model.init(jax.random.key(0))
    x = jnp.asarray(X, jnp.float32)
    expected = 2 * X @ np.asarray(params["last"]["kernel"])
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("as_users")
def test_flax_params_of_another_structure_are_refused():
    model = from_flax(Nnx, np.ones((1, 3)))
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="apply: expected params of structure"):
        model.apply({"z": jax.tree.leaves(params)}, jnp.ones((1, 3)))


@pytest.mark.parametrize("module", [LinenNorm(), NnxNorm])
def test_running_statistics_are_seen(module):
    """No flag says so: init gives both, apply takes and gives both, and a step begins with both."""
    model = from_flax(module, np.ones((1, 3)))
    variables = model.init(0)
    assert isinstance(variables, fgd.models.Variables)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.1))
    state = step.init(variables)
    assert same((state.params, state.model_state), tuple(variables))
    after, _ = step(state, (jnp.asarray(X, jnp.float32), jnp.ones([len(X), y_features(module)])))
    assert not same(after.model_state, state.model_state)
    with pytest.raises(TypeError, match=r"from_flax: there is no stateful=: whether .* is seen"):
        from_flax(module, np.ones((1, 3)), stateful=True)


def y_features(module):
    return 2 if isinstance(module, LinenNorm) else 3


MODELS = {
    "linear": linear(3, 2),
    "mlp": mlp([3, 4, 2]),
    "cnn": fgd.models.cnn([6, 6], [2], [3]),
    "linen": from_flax(FLAX["linen"], np.ones((1, 3))),
}


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("name", MODELS)
def test_a_seed_is_a_key(name):
    model = MODELS[name]
    from_key = model.init(jax.random.key(7))
    for seed in (7, np.int64(7), jnp.uint32(7)):
        assert same(model.init(seed), from_key)
    assert same(
        jax.vmap(model.init)(jnp.arange(7, 9)),
        jax.tree.map(lambda *x: jnp.stack(x), from_key, model.init(8)),
    )
    for bad in (jax.random.PRNGKey(0), 0.5, "seed", None):
        with pytest.raises(
            TypeError, match=r"\.init: key must be a seed such as 0, or a typed key"
        ):
            model.init(bad)
    with pytest.raises(ValueError, match="the seed 4294967303 does not fit in 32 bits"):
        model.init(2**32 + 7)  # JAX would draw from 7


@pytest.mark.usefixtures("as_users")
def test_bad_arguments():
    for sizes, error in (([3], ValueError), ([3, 0], ValueError), ([3, 2.5], TypeError)):
        with pytest.raises(error, match=r"mlp: .*sizes"):
            mlp(sizes)
    params = linear(3, 2).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"x has shape \(5, 4\), .* with 3 values a row"):
        linear(3, 2).apply(params, jnp.ones((5, 4)))
    with pytest.raises(TypeError, match=r"x has dtype uint8, expected a float; fgd.data.normalize"):
        linear(3, 2).apply(params, jnp.ones((5, 3), jnp.uint8))
    with pytest.raises(TypeError, match=r"got Nnx; .* wrap an nnx class"):
        from_flax(Nnx(nnx.Rngs(0)), np.ones((1, 3)))
    with pytest.raises(TypeError, match="expected a linen module or a function"):
        from_flax(3, np.ones((1, 3)))
    with pytest.raises(TypeError, match=r"to make an nnx\.Module"):
        from_flax(lambda rngs: 3, np.ones((1, 3)))


@pytest.mark.parametrize("kind", FLAX)
def test_dropout_is_on_in_training_and_off_in_evaluation(kind):
    """Nobody asks for it: a step gives its loss a key, and `supervised` hands it on."""
    model = from_flax(FLAX[kind], np.ones((1, 3)))
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(X[:, :2], jnp.float32)
    loss_fn = fgd.supervised(model, fgd.losses.mse)
    step = fgd.train_step(loss_fn, fgd.sgd(0.0))
    state = step.init(model.init(0))
    _, history = fgd.fit(step, state, (x, y), num_steps=20)
    expected = fgd.losses.mse(model.apply(state.params, x), y)
    assert len(set(history["loss"].tolist())) == 20  # another mask in every step
    np.testing.assert_allclose(fgd.evaluate(loss_fn, state, (x, y))["loss"], expected, rtol=1e-5)


class TwoInputs(linen.Module):
    @linen.compact
    def __call__(self, a, b, train=False):
        return linen.Dense(2)(a) + linen.Dropout(0.5, deterministic=not train)(b)


class OneOfTwo(linen.Module):
    @linen.compact
    def __call__(self, pair):
        return linen.Dense(2)(pair[0]) + pair[1]


@pytest.mark.parametrize("module", [TwoInputs(), OneOfTwo()], ids=["two inputs", "one, a pair"])
def test_flax_modules_of_several_inputs(module):
    sample = jnp.ones([4, 3]), jnp.ones([4, 2])
    model = fgd.models.from_flax(module, sample)
    params = model.init(0)
    kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
    expected = np.ones([4, 3]) @ np.asarray(kernel) + np.asarray(bias) + 1
    np.testing.assert_allclose(model.apply(params, sample), expected, rtol=1e-5)
    loss_fn = fgd.supervised(model, fgd.losses.mse)
    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    _, history = fgd.fit(step, step.init(params), (sample, jnp.ones([4, 2])), num_steps=3)
    assert history["loss"].shape == (3,)
