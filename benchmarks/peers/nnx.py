"""Flax nnx: the functional form of its performance guide, split once, merged inside `jax.jit`."""

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.peers.eqx import jobs


def net(params):
    layers = []
    for w, b in zip(params[::2], params[1::2], strict=True):
        layer = nnx.Linear(*w.shape, rngs=nnx.Rngs(0))
        layer.kernel[...], layer.bias[...] = jnp.asarray(w), jnp.asarray(b)
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


JOBS = jobs(loop)
