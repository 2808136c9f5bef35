"""Equinox: a module, and a Python loop over a step in `eqx.filter_jit`."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import problems


def net(params):
    sizes = [params[0].shape[0], *(w.shape[1] for w in params[::2])]
    model = eqx.nn.MLP(sizes[0], sizes[-1], sizes[1], len(sizes) - 2, key=jax.random.key(0))
    leaves = [jnp.asarray(p.T) for p in params]
    return eqx.tree_at(
        lambda m: [x for layer in m.layers for x in (layer.weight, layer.bias)], model, leaves
    )


def loop(params, loss_fn, batches, optimizer):
    @eqx.filter_jit
    def step(model, state, x, y):
        loss, grads = eqx.filter_value_and_grad(lambda m: loss_fn(jax.vmap(m)(x), y))(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, loss

    def run():
        model = net(params)
        state = optimizer.init(eqx.filter(model, eqx.is_array))
        for x, y in batches():
            model, state, loss = step(model, state, x, y)
        return float(loss)

    return run


def mnist_batches(steps):
    images, labels = problems.mnist()
    images = (images.reshape(-1, 784).astype("float32") / 255 - 0.5) / 0.5

    def batches():
        order = np.random.default_rng(0).permutation(len(labels))
        for i in range(steps):
            rows = order[i * 100 : i * 100 + 100]
            yield images[rows], labels[rows]

    return batches


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def squares(pred, target):
    return jnp.sum((pred - target) ** 2)


def jobs(loop):
    """The jobs of a peer that trains in a Python loop over a compiled step."""

    def two_layer(steps, optimizer):
        x, y, params = problems.two_layer(bias=True)
        data = jax.device_put((x, y))
        return loop(params, squares, lambda: [data] * steps, optimizer)

    def r5e(steps):
        return loop(problems.mlp(), cross_entropy, mnist_batches(steps), optax.sgd(1e-2))

    return {
        "r3e": partial(two_layer, optimizer=optax.sgd(1e-4)),
        "r3f": partial(two_layer, optimizer=optax.adam(1e-4)),
        "r5e": r5e,
    }


JOBS = jobs(loop)
