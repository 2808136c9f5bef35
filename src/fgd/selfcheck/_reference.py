"""The reference programs whose results do not depend on a draw, and the digits they printed."""

import jax
import jax.numpy as jnp
import numpy as np

import fgd
from fgd._checks import PyTree
from fgd.selfcheck._outcome import Outcome, check, near

X = [3.3, 4.4, 5.5, 6.71, 6.93, 4.168, 9.779, 6.182, 7.59, 2.167, 7.042, 10.791, 5.313, 7.997, 3.1]
Y = [1.7, 2.76, 2.09, 3.19, 1.694, 1.573, 3.366, 2.596, 2.53, 1.221, 2.827, 3.465, 1.65, 2.904, 1.3]


def _squares(params: PyTree, data: PyTree) -> jax.Array:
    return (params["w"] * data[0] + params["b"] - data[1]) ** 2


@check("R2a: y = ‖4x‖ and its gradient at x = (1, 1)")
def _norm() -> Outcome:
    came = jax.jit(jax.value_and_grad(lambda x: jnp.linalg.norm(4 * x)))(jnp.ones(2))
    return near((5.6569, np.full(2, 2.8284)), came, 2e-5)


@check("R2b: loss, w, b of a line through 5 points after 10,000 steps")
def _five_points() -> Outcome:
    data = jnp.array([[1.4, 5, 11, 16, 21], [14.4, 29.6, 62, 85.5, 113.4]], float)
    step = fgd.train_step(lambda params, data: jnp.sum(_squares(params, data.T)), fgd.sgd(1e-4))
    start = step.init({"w": 0.5, "b": 0.5})
    state, _ = fgd.fit(step, start, data.T, num_steps=10_000)
    came = jnp.sum(_squares(state.params, data)), state.params["w"], state.params["b"]
    return near((8.229387, 5.082875, 5.602187), came, 1e-4)


@check("R5d: losses of a line through 15 points, steps 1, 11, 21, 31")
def _fifteen_points() -> Outcome:
    data = jnp.array(X, float), jnp.array(Y, float)
    step = fgd.train_step(lambda params, data: jnp.mean(_squares(params, data)), fgd.sgd(1e-2))
    start = step.init({"w": -0.11873716861009598, "b": 0.0})
    _, history = fgd.fit(step, start, data, num_steps=32)
    return near([0.4142104, 0.2260517, 0.2231874, 0.2204667], list(history["loss"][1::10]), 1e-6)


@check("R5d: the first loss, ∂w, ∂b")
def _gradient() -> Outcome:
    params = {"w": jnp.array(-0.11873716861009598, float), "b": jnp.array(0.0, float)}
    data = jnp.array(X, float), jnp.array(Y, float)
    loss, slope = jax.jit(jax.value_and_grad(lambda p: jnp.mean(_squares(p, data))))(params)
    return near((10.2335, -41.1289, -6.0890), (loss, slope["w"], slope["b"]), 1e-5)
