"""What an expert would write by hand in JAX: one jitted scan, shuffled by `permutation`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import problems


def descent(loss_fn, params, data, steps, rate, *, optimizer=None, size=None, options=None):
    def batches(key, data):
        """The rows of every step: a permutation of them in each epoch."""
        rows, n = data[0].shape[0], data[0].shape[0] // size
        keys = jax.random.split(key, -(-steps // n))
        orders = jax.lax.map(lambda key: jax.random.permutation(key, rows)[: n * size], keys)
        return orders.reshape(-1, size)[:steps]

    @partial(jax.jit, compiler_options=options)
    def run(params, data, key):
        def step(carry, rows):
            params, state = carry
            batch = data if rows is None else [x[rows] for x in data]
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            if optimizer:
                updates, state = optimizer.update(grads, state)
                params = optax.apply_updates(params, updates)
            else:
                params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
            return (params, state), loss

        start = params, optimizer.init(params) if optimizer else None
        return jax.lax.scan(step, start, batches(key, data) if size else None, steps)[1]

    params, data = jax.device_put((params, data))
    key = jax.random.key(0)
    return lambda: np.asarray(run(params, data, key))[-1].item()


def r2b(steps):
    def loss_fn(w, batch):
        return jnp.sum((batch[0] @ w - batch[1]) ** 2)

    x, y, w = problems.r2b()
    return descent(loss_fn, w, (x, y), steps, 1e-4)


def r2c(steps):
    def loss_fn(params, batch):
        (w, b), (x, y) = params, batch
        return jnp.mean((x * w + b - y) ** 2)

    cpu = jax.default_backend() == "cpu"
    options = {"xla_disable_hlo_passes": "tree_reduction_rewriter"} if cpu else None
    params = jnp.full((1, 1), 0.5), jnp.zeros((1, 1))
    return descent(loss_fn, params, problems.r2c(), steps, 1e-4, options=options)


def r3a(steps):
    def loss_fn(params, batch):
        (w1, w2), (x, y) = params, batch
        return jnp.sum((jax.nn.relu(x @ w1) @ w2 - y) ** 2)

    x, y, params = problems.two_layer(bias=False)
    return descent(loss_fn, params, (x, y), steps, 1e-6)


def forward(params, x):
    w1, b1, w2, b2 = params
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def two_layer(steps, optimizer=None):
    def loss_fn(params, batch):
        return jnp.sum((forward(params, batch[0]) - batch[1]) ** 2)

    x, y, params = problems.two_layer(bias=True)
    return descent(loss_fn, params, (x, y), steps, 1e-4, optimizer=optimizer)


def pixels(images):
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def r5e(steps):
    def loss_fn(params, batch):
        images, labels = batch
        return cross_entropy(forward(params, pixels(images).reshape(100, 784)), labels)

    return descent(loss_fn, problems.mlp(), problems.mnist(), steps, 1e-2, size=100)


def cnn(steps):
    """jax.lax's convolutions in a scan: on CPU they are slow there, so a few steps must do."""

    def conv(x, w, b):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=dimensions) + b
        pooled = jax.lax.reduce_window(
            y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        return jax.nn.relu(pooled)

    def loss_fn(params, batch):
        images, labels = batch
        w1, b1, w2, b2, *dense = params
        x = conv(conv(pixels(images)[..., None], w1, b1), w2, b2)
        return cross_entropy(forward(dense, x.reshape(128, -1)), labels)

    shapes = [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (1024, 256), (256,), (256, 10), (10,)]
    params = [0.05 * jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes)]
    few = -(-steps // 20)
    run = descent(loss_fn, params, problems.mnist(), few, 0, optimizer=optax.adam(1e-3), size=128)
    run.steps = few
    return run


def rows(name, steps):
    def loss_fn(params, batch):
        (w, b), (x, y) = params, batch
        return jnp.sum((x @ w + b - y) ** 2)

    params = jnp.zeros((8, 1)), jnp.zeros((1, 1))
    return descent(loss_fn, params, problems.rows(name), steps, 1e-5, size=100)


JOBS = {
    "r2b": r2b,
    "r2c": r2c,
    "r3a": r3a,
    "r3e": two_layer,
    "r3f": partial(two_layer, optimizer=optax.adam(1e-4)),
    "r5e": r5e,
    "cnn": cnn,
    **{name: partial(rows, name) for name in ("rows_1e3", "rows_1e5", "rows_1e7")},
}
