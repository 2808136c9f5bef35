"""fgd: `fit`, `sweep`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fgd
from benchmarks import problems
from benchmarks.peers import process

MLP = fgd.models.mlp([784, 200, 10])
PLAIN_SUMS = {
    "xla_disable_hlo_passes": "tree_reduction_rewriter"
}  # see examples/large_regression.py


def last_loss(step, params, data, fit=fgd.fit, **options):
    state = step.init(params)
    return lambda: np.asarray(fit(step, state, data, **options)[1]["loss"])[-1].item()


def line_loss(w, batch):
    x, y = batch
    return jnp.sum((x @ w - y) ** 2)


def sum_loss(apply):
    return fgd.supervised(apply, partial(fgd.losses.mse, reduction="sum"))


def pairs(params):
    return [{"w": w, "b": b} for w, b in zip(params[::2], params[1::2], strict=True)]


def r2b(steps, **options):
    x, y, w = problems.r2b()
    step = fgd.train_step(line_loss, fgd.sgd(1e-4))
    return last_loss(step, w, (jnp.asarray(x), jnp.asarray(y)), num_steps=steps, **options)


def r2c(steps):
    model = fgd.models.linear(1, 1)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(1e-4))
    state = step.init({"w": jnp.full((1, 1), 0.5), "b": jnp.zeros(1)})
    options = PLAIN_SUMS if jax.default_backend() == "cpu" else None
    run = jax.jit(partial(fgd.fit, step, num_steps=steps), compiler_options=options)
    data = jax.device_put(problems.r2c())
    return lambda: np.asarray(run(state, data)[1]["loss"])[-1].item()


def r3a(steps):
    def loss_fn(params, batch):
        (x, y), (w1, w2) = batch, params
        return jnp.sum((jax.nn.relu(x @ w1) @ w2 - y) ** 2)

    x, y, params = problems.two_layer(bias=False)
    data = jax.device_put((x, y))
    return last_loss(fgd.train_step(loss_fn, fgd.sgd(1e-6)), params, data, num_steps=steps)


def two_layer(steps, optimizer):
    x, y, params = problems.two_layer(bias=True)
    step = fgd.train_step(sum_loss(fgd.models.mlp([1000, 100, 10]).apply), optimizer)
    return last_loss(step, pairs(params), jax.device_put((x, y)), num_steps=steps)


def digits_step(apply, optimizer, **options):
    loss_fn = fgd.supervised(
        apply, fgd.losses.cross_entropy, preprocess=fgd.data.normalize, **options
    )
    return fgd.train_step(loss_fn, optimizer)


def r5e(steps, through=lambda apply: apply, data=None, **options):
    data = jax.device_put(problems.mnist()) if data is None else data
    params = pairs(problems.mlp())
    step = digits_step(through(MLP.apply), fgd.sgd(1e-2))
    return last_loss(step, params, data, batch_size=100, num_steps=steps, **options)


def validated(steps):
    """A step with accuracy, a start, rows to train on and to validate on, steps of an epoch."""
    step = digits_step(MLP.apply, fgd.sgd(1e-2), metrics={"accuracy": fgd.losses.accuracy})
    data = problems.mnist()
    train, valid = jax.device_put([[x[:50_000] for x in data], [x[50_000:] for x in data]])
    return step, step.init(pairs(problems.mlp())), tuple(train), tuple(valid), steps // 10


def around(steps):
    """Epoch after epoch by `fit` and `evaluate`, without anything around them."""
    step, start, train, valid, epoch = validated(steps)

    def run():
        state = start
        for _ in range(10):
            state, history = fgd.fit(step, state, train, batch_size=100, num_steps=epoch)
            jax.device_get(fgd.evaluate(step.loss_fn, state, valid))
        return np.asarray(history["loss"])[-1].item()

    return run


def cnn(steps, through=lambda apply: apply):
    model = fgd.models.cnn((28, 28, 1), [32, 64], [256, 10], padding="VALID")
    step = digits_step(through(model.apply), optax.adam(1e-3))
    data, params = jax.device_put(problems.mnist()), model.init(jax.random.key(0))
    return last_loss(step, params, data, batch_size=128, num_steps=steps)


def sweep_r2b(runs, mesh=None):
    x, y, _ = problems.r2b()
    x, y = jnp.asarray(x), jnp.asarray(y)

    def run(seed):
        step = fgd.train_step(line_loss, fgd.sgd(1e-4))
        state = step.init(jax.random.uniform(jax.random.key(seed), (2,)))
        return fgd.fit(step, state, (x, y), num_steps=10_000)[1]["loss"][-1]

    return lambda: np.asarray(fgd.sweep(run, mesh=mesh, seed=np.arange(runs)))[0].item()


def sweep_mlp(steps, mesh=None):
    data, params = jax.device_put(problems.mnist()), pairs(problems.mlp())

    def run(rate):
        step = digits_step(MLP.apply, fgd.sgd(rate))
        options = {"batch_size": 100, "num_steps": steps // 16}
        return fgd.fit(step, step.init(params), data, **options)[1]["loss"][-1]

    rates = np.logspace(-3, -1, 16, dtype=np.float32)
    return lambda: np.asarray(fgd.sweep(run, mesh=mesh, rate=rates))[0].item()


def sweep_border(runs, mesh=None):
    x, y, *start = problems.border()
    data, start = jax.device_put(((x, y), start))

    def loss_fn(params, batch):
        x, y = batch
        first, last = params
        return fgd.losses.mse(jnp.tanh(x @ first / 4) @ last / 16, y)

    def run(rates):
        def update(grads, state, params=None):
            return [-rate * g for rate, g in zip(rates, grads, strict=True)], state

        step = fgd.train_step(loss_fn, optax.GradientTransformation(lambda _: (), update))
        return fgd.fit(step, step.init(start), data, num_steps=500)[1]["loss"][-1]

    rates = problems.rates(runs)
    return lambda: np.asarray(fgd.sweep(run, mesh=mesh, rates=rates))[0].item()


def rows(name, steps):
    data = jax.device_put(problems.rows(name))
    step = fgd.train_step(sum_loss(fgd.models.linear(8, 1).apply), fgd.sgd(1e-5))
    params = {"w": jnp.zeros((8, 1)), "b": jnp.zeros(1)}
    return last_loss(step, params, data, batch_size=100, num_steps=steps, record_every=steps)


FIRST_STEP = """
import fgd, jax, numpy as np
model = fgd.models.mlp([784, 200, 10])
loss_fn = fgd.supervised(model, fgd.losses.cross_entropy)
step = fgd.train_step(loss_fn, fgd.sgd(1e-2))
state = step.init(model.init(jax.random.key(0)))
batch = np.ones([100, 784], np.float32), np.zeros(100, np.int32)
print(float(step(state, batch)[1]["loss"]))
"""


JOBS = {
    "r2b": r2b,
    "r2c": r2c,
    "r3a": r3a,
    "r3e": partial(two_layer, optimizer=fgd.sgd(1e-4)),
    "r3f": partial(two_layer, optimizer=fgd.adam(1e-4)),
    "r5e": r5e,
    "around": around,
    "cnn": cnn,
    "sweep_r2b": sweep_r2b,
    "sweep_mlp": sweep_mlp,
    "sweep_border": sweep_border,
    "cold": lambda steps: process.program(FIRST_STEP),
    "mnist_99": lambda steps: process.mnist_99(
        process.EXAMPLES / "mnist_99.py", ("--source", "files")
    ),
    **{name: partial(rows, name) for name in ("rows_1e3", "rows_1e5", "rows_1e7")},
}
