"""check_gradients passes what is right, and names what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd
from fgd.testing import check_gradients

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(7, 3)), DRAW.normal(size=(7, 2))
PARAMS = {"w": DRAW.normal(size=(3, 2)).astype(np.float32), "b": np.zeros(2)}


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"][None] - y) ** 2)


def formula(params, batch):
    x, y = batch
    e = x @ params["w"] + params["b"][None] - y
    return {"w": 2 * x.T @ e / e.size, "b": 2 * e.sum(axis=0) / e.size}


def test_right_formula():
    check_gradients(loss, PARAMS, (X, Y), analytic=formula)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("factor", [1.001, -1, 0, np.nan])
def test_wrong_formula_is_named(factor):
    def wrong(params, batch):
        gradient = formula(params, batch)
        return gradient | {"w": gradient["w"].at[2, 1].multiply(factor)}

    message = r"∂loss/∂params\['w'\]\[2, 1\] is .* by autodiff, .* by the formula, relative error"
    with pytest.raises(AssertionError, match=message):
        check_gradients(loss, PARAMS, (X, Y), analytic=wrong)


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, g: (1.999 * x * g,))  # 2, really


def test_wrong_custom_vjp():
    with pytest.raises(AssertionError, match=r"\['w'\]\[.\] is .* by the central difference"):
        check_gradients(lambda p, b: jnp.sum(square(p["w"])), {"w": np.arange(3.0), "v": 1.0}, None)


def test_wrong_custom_vjp_of_few_elements_of_a_large_leaf():
    """One element in 40,000: not among those that are looked at; the random direction sees it."""

    @jax.custom_vjp
    def total(x):
        return jnp.sum(x**2)

    total.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, g: ((2 * x).at[0, 123].set(50.0) * g,))
    with pytest.raises(AssertionError, match="along a random direction"):
        check_gradients(lambda p, b: total(p), np.full((200, 200), 0.1), None)


def test_losses_and_layers():
    """Every loss through every model, at random points."""
    labels = DRAW.integers(0, 2, 7)
    for model in (fgd.models.linear(3, 2), fgd.models.mlp([3, 4, 4, 2])):
        params = model.init(jax.random.key(0))
        cases = (fgd.losses.mse, Y, "sum"), (fgd.losses.cross_entropy, labels, "mean")
        for function, targets, reduction in cases:

            def objective(params, batch, function=function, model=model, reduction=reduction):
                return function(model.apply(params, batch[0]), batch[1], reduction=reduction)

            check_gradients(objective, params, (X, jnp.asarray(targets)))


def test_flat_loss_and_lone_parameter():
    check_gradients(lambda p, b: 0.0 * p, 1.0, None)
    check_gradients(lambda p, b: jnp.sin(p) * b, 0.3, 2.0, analytic=lambda p, b: jnp.cos(p) * b)


@pytest.mark.usefixtures("as_users")
def test_bad_arguments():
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int\d+, expected a float"):
        check_gradients(loss, PARAMS | {"n": np.arange(2)}, (X, Y))
    with pytest.raises(ValueError, match=r"the loss is .*shape=\(2,\).*, expected a float scalar"):
        check_gradients(lambda p, b: p["b"], PARAMS, None)
    with pytest.raises(ValueError, match=r"the loss is \(.*expected a float scalar"):
        check_gradients(lambda p, b: (loss(p, b), 1), PARAMS, (X, Y))
    with pytest.raises(ValueError, match=r"formula's gradient\['w'\] is missing"):
        check_gradients(loss, PARAMS, (X, Y), analytic=lambda p, b: {"b": p["b"]})
    with pytest.raises(ValueError, match=r"formula's gradient\['w'\] is float64\[2,3\], expected"):
        check_gradients(loss, PARAMS, (X, Y), analytic=lambda p, b: p | {"w": p["w"].T})
