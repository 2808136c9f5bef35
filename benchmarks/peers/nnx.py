"""Flax nnx: the functional form of its performance guide, split once, merged inside `jax.jit`."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import problems
from benchmarks.peers.eqx import cross_entropy, mnist_batches


def net(params):
    layers = []
    for w, b in zip(params[::2], params[1::2], strict=True):
        layer = nnx.Linear(*w.shape, rngs=nnx.Rngs(0))
        layer.kernel.value, layer.bias.value = jnp.asarray(w), jnp.asarray(b)
        layers += [layer, nnx.relu]
    return nnx.Sequential(*layers[:-1])


def loop(params, loss_fn, batches, transformation):
    @jax.jit
    def step(graph, state, x, y):
        model, optimizer = nnx.merge(graph, state)
        loss, grads = nnx.value_and_grad(lambda m: loss_fn(m(x), y))(model)
        optimizer.update(model, grads)
        return nnx.state((model, optimizer)), loss

    def run():
        model = net(params)
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
        graph, state = nnx.split((model, optimizer))
        for x, y in batches():
            state, loss = step(graph, state, x, y)
        return float(loss)

    return run


def two_layer(steps, optimizer):
    x, y, params = problems.two_layer(bias=True)
    data = jax.device_put((x, y))
    return loop(params, lambda p, y: jnp.sum((p - y) ** 2), lambda: [data] * steps, optimizer)


def r5e(steps):
    return loop(problems.mlp(), cross_entropy, mnist_batches(steps), optax.sgd(1e-2))


JOBS = {
    "r3e": partial(two_layer, optimizer=optax.sgd(1e-4)),
    "r3f": partial(two_layer, optimizer=optax.adam(1e-4)),
    "r5e": r5e,
}
