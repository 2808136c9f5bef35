"""R3: one two-layer network in six styles, from bare arrays to a module; eager and compiled."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from _script import parser, positive, run, save
from autograd import relu  # R3b: its backward pass is written by hand
from flax import nnx

import fgd

N, D_IN, H, D_OUT = 64, 1000, 100, 10


def gaussian(key):
    k1, k2 = jax.random.split(key)
    return jax.random.normal(k1, (D_IN, H)), jax.random.normal(k2, (H, D_OUT))


# R3a: bare arrays. First with gradients worked out on paper, …
def raw(params, batch):
    (w1, w2), (x, y) = params, batch
    h = x @ w1
    error = jax.nn.relu(h) @ w2 - y
    grad_w2 = jax.nn.relu(h).T @ (2 * error)
    grad_w1 = x.T @ jnp.where(h > 0, 2 * error @ w2.T, 0)
    return (w1 - 1e-6 * grad_w1, w2 - 1e-6 * grad_w2), {"loss": jnp.sum(error**2)}


# … then with the ones that JAX works out, through either ReLU (R3b).
def autograd(params, batch, relu=jax.nn.relu):
    def loss_fn(w1, w2):
        x, y = batch
        return jnp.sum((relu(x @ w1) @ w2 - y) ** 2)

    w1, w2 = params
    loss, (grad_w1, grad_w2) = jax.value_and_grad(loss_fn, argnums=(0, 1))(w1, w2)
    return (w1 - 1e-6 * grad_w1, w2 - 1e-6 * grad_w2), {"loss": loss}


# R3e: Sequential(Linear, ReLU, Linear) is two functions. Its parameters are one tree.
model = fgd.models.mlp([D_IN, H, D_OUT])
sum_of_squares = partial(fgd.losses.mse, reduction="sum")
loss_fn = fgd.supervised(model, sum_of_squares)


def sequential(params, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads), {"loss": loss}


# R3g: the network as a class. R3c: clamp.
class TwoLayerNet(nnx.Module):
    def __init__(self, rngs):
        def linear(n_in, n_out):
            def init(key, shape, dtype):  # PyTorch's, for weight and bias
                return jax.random.uniform(key, shape, dtype, -(n_in**-0.5), n_in**-0.5)

            return nnx.Linear(n_in, n_out, kernel_init=init, bias_init=init, rngs=rngs)

        self.linear1, self.linear2 = linear(D_IN, H), linear(H, D_OUT)

    def __call__(self, x):
        return self.linear2(jnp.clip(self.linear1(x), 0))


net = fgd.models.from_flax(lambda rngs: TwoLayerNet(rngs), jnp.ones([1, D_IN]))

STYLES = {  # how parameters are drawn, and a step
    "raw": (gaussian, jax.jit(raw)),
    "autograd": (gaussian, jax.jit(autograd)),
    "custom-relu": (gaussian, jax.jit(partial(autograd, relu=relu))),
    "sequential": (model.init, jax.jit(sequential)),
    # R3f: an optimizer. fgd.adagrad and fgd.rmsprop fit here as well.
    "adam": (model.init, fgd.train_step(loss_fn, fgd.adam(1e-4))),
    "module": (net.init, fgd.train_step(fgd.supervised(net, sum_of_squares), fgd.sgd(1e-4))),
}


def repeat(step, state, batch, *, num_steps):
    """The loop that PyTorch programs write; `fgd.fit` does the same."""
    losses = []
    for _ in range(num_steps):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    return state, {"loss": jnp.stack(losses)}


def compare(params, batch, num_steps):
    """R3d: steps run operation by operation, each as one program, all as one program."""
    calls = []

    def counted(params, batch):
        calls.append(1)  # Python does this; a compiled program has no trace of it
        return loss_fn(params, batch)

    step = fgd.train_step(counted, fgd.adam(1e-4))
    start = step.init(params)
    size = len(jax.make_jaxpr(step.update)(start, batch).eqns)
    print(f"\nR3d  {num_steps} steps of Adam, {size} operations each, once and again")
    for name, go in {
        "eager": partial(repeat, step.update),
        "compiled step": partial(repeat, step),
        "compiled run": partial(fgd.fit, step),
    }.items():
        calls.clear()
        marks = [time.perf_counter()]
        for _ in range(2):
            jax.block_until_ready(go(start, batch, num_steps=num_steps))
            marks.append(time.perf_counter())
        first, again = 1000 * (marks[1] - marks[0]), 1000 * (marks[2] - marks[1])
        print(f"{name:<14}{first:7.1f} ms, {again:7.1f} ms; loss run by Python: {len(calls)} ×")


def main(args):
    x_key, y_key, params_key = jax.random.split(jax.random.key(0), 3)
    batch = jax.random.normal(x_key, (N, D_IN)), jax.random.normal(y_key, (N, D_OUT))
    every = max(1, args.num_steps // 5)

    ax = plt.subplots(figsize=(7, 4.5), layout="constrained")[1]
    for name in STYLES if args.style == "all" else [args.style]:
        print(f"{name:<14}", end="")
        init, step = STYLES[name]
        state, go, curve = init(params_key), repeat, []
        if isinstance(step, fgd.Step):
            state, go = step.init(state), fgd.fit
        while len(curve) < args.num_steps:  # a run is its parts, joined
            num_steps = min(every, args.num_steps - len(curve))
            state, history = go(step, state, batch, num_steps=num_steps)
            curve.extend(history["loss"])
            print(f"{len(curve):5}: {curve[-1]:<9.3g}", end="", flush=True)
        print()
        fgd.plots.loss_curve(jnp.stack(curve), label=name, ax=ax)
        ax.lines[-1].set_linewidth({"raw": 7, "autograd": 4}.get(name, 1.5))  # three coincide
    compare(model.init(params_key), batch, min(50, args.num_steps))

    ax.legend()
    ax.set(ylabel="sum of squares")
    save(ax.figure, args.output / "losses.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/two_layer_net")
    flags.add_argument("--style", choices=[*STYLES, "all"], default="all")
    flags.add_argument("--num-steps", type=positive(int), default=500)
    run(main, flags)
