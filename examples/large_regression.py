"""R2c: a line through 100,000 points, in 10,000 steps that each look at all of them."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from _script import parser, positive, run, save

import fgd

ROWS, RATE = 100_000, 1e-4
PUBLISHED = "0.120936", "0.9995", "0.5632"


def in_float64(x, y, w, num_steps):
    """The same descent by means over the points, Σzzᵀ/n and Σzy/n: no step looks at them again."""
    z, y = np.hstack([x, np.ones_like(x)]).astype(float), np.ravel(y).astype(float)
    curvature, target, square = z.T @ z / len(z), z.T @ y / len(z), np.mean(y**2)
    for _ in range(num_steps):
        loss = w @ curvature @ w - 2 * target @ w + square
        w = w - RATE * 2 * (curvature @ w - target)
    return loss, *w


def main(args):
    key, init_key = jax.random.split(jax.random.key(0))
    x = jnp.linspace(-3, 3, ROWS)[:, None]
    y = x + 1.2 * jax.random.uniform(key, (ROWS, 1))
    model = fgd.models.linear(1, 1)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(RATE))
    state = step.init(model.init(init_key))

    # A run is a function, so it can be compiled as one: ahead of time, and with XLA's options.
    # On CPU, sums in one pass each are six times as fast as trees of short sums. They round more:
    # 2e-7 of a mean over these 100,000 points, but 8e-5 over ten million, where trees are wiser.
    plain = jax.default_backend() == "cpu" and not args.tree_sums
    options = {"xla_disable_hlo_passes": "tree_reduction_rewriter"} if plain else {}
    train = jax.jit(partial(fgd.fit, step, num_steps=args.num_steps))
    began = time.perf_counter()
    train = train.lower(state, (x, y)).compile(options)
    compiled = time.perf_counter()
    end, history = jax.block_until_ready(train(state, (x, y)))
    trained = time.perf_counter()

    def weights(state):
        return np.array([state.params["w"].item(), state.params["b"].item()])

    ours = history["loss"][-1], *weights(end)
    exact = in_float64(x, y, weights(state), args.num_steps)
    device = jax.devices()[0].device_kind
    print(f"{args.num_steps:,} steps on {device}, compiled in {compiled - began:.2f} s")
    print(f"{'':7}{'ours':>10}{'float64':>12}{'published, 10,000 steps on CUDA':>35}")
    print(f"time   {trained - compiled:8.2f} s{'164.63 s, drawing included':>47}")
    for name, *values in zip(("loss", "weight", "bias"), ours, exact, PUBLISHED, strict=True):
        print("{:7}{:10.6f}{:12.6f}{:>35}".format(name, *values))

    few = slice(None, None, 100)
    ax = fgd.plots.fitted_line(x[few], y[few], lambda x: model.apply(end.params, x), label="fitted")
    save(ax.figure, args.output / "line.png")
    curve = fgd.plots.loss_curve(history["loss"])
    save(curve.figure, args.output / "loss.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/large_regression")
    flags.add_argument("--num-steps", type=positive(int), default=10_000)
    flags.add_argument(
        "--tree-sums",
        action="store_true",
        help="on CPU, slower: sums as trees of short sums, which is XLA's own choice",
    )
    run(main, flags)
