"""R4e, R5c: batch, mini-batch and stochastic descent, two forms of momentum, and the adaptive."""

from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from _script import parser, positive, run, save

import fgd

ALPHA = 0.1  # of momentum as a running mean, v ← (1 − α)·v + α·g; in PyTorch's words, μ = 1 − α


def main(args):
    if abs(args.seed) >= 2**31:
        raise ValueError(f"--seed must fit in 32 bits, got {args.seed}")
    # Points about y = 3x + 0.8. Without noise in y, all rows would agree on where the minimum is.
    x, y = fgd.data.linear(jax.random.key(args.seed), 500, noise=0.3)
    best = jnp.linalg.lstsq(jnp.hstack([x, jnp.ones_like(x)]), y[:, 0])[0]

    def loss_fn(params, batch):
        inputs, targets = batch
        w, b = params
        return fgd.losses.mse(w * inputs + b, targets), {"w": w, "b": b}

    def loss(params):
        return loss_fn(params, (x, y))[0]

    def excess(params):  # loss(params) − loss(best), without the rounding of a difference
        return loss_fn(params - best, (x, jnp.zeros_like(y)))[0]

    def descend(optimizer, batch_size):
        step = fgd.train_step(loss_fn, optimizer)
        state = step.init(jnp.zeros(2), key=args.seed)
        num_steps = args.num_steps + 1  # to see where the last but one leads
        _, history = fgd.fit(step, state, (x, y), batch_size=batch_size, num_steps=num_steps)
        return jnp.stack([history["w"], history["b"]], axis=-1)

    # The gradient of a row is noisy, but not biased: the mean over rows is the full gradient.
    start = jnp.zeros(2)
    of_rows = jax.vmap(lambda *row: jax.grad(loss_fn, has_aux=True)(start, row)[0])(x, y)
    full, mean, spread = jax.grad(loss)(start), of_rows.mean(axis=0), of_rows.std(axis=0)
    print(f"gradient at (0, 0)     ∂w {full[0]:.5f}, ∂b {full[1]:.5f}")
    print(f"mean of those of rows  ∂w {mean[0]:.5f}, ∂b {mean[1]:.5f}")
    print(f"their spread           ∂w {spread[0]:8.5f}, ∂b {spread[1]:8.5f}\n")

    rate, mini = args.learning_rate, args.batch_size
    plain = partial(fgd.momentum, decay=1 - ALPHA)
    averaging = partial(plain, averaging=True)
    lessons = {
        "rows a step": {
            "stochastic, 1 row": (fgd.sgd(rate), 1),
            f"mini-batch, {mini} rows": (fgd.sgd(rate), mini),
            "batch, all rows": (fgd.sgd(rate), None),
        },
        f"momentum, {mini} rows a step": {
            "v ← μ·v + g": (plain(rate), mini),
            "v ← (1 − α)·v + α·g": (averaging(rate), mini),
        },
        f"adaptive, {mini} rows a step": {
            "AdaGrad": (fgd.adagrad(5 * rate), mini),
            "RMSProp": (fgd.rmsprop(rate / 5), mini),
            "Adam": (fgd.adam(rate), mini),
        },
    }
    print(f"after {args.num_steps} steps       w        b       loss   above best   jitter of w")
    print(f"{'least squares':20} {best[0]:7.4f}  {best[1]:7.4f}  {loss(best):9.6f}")
    curves, top = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", sharey=True)
    plane, bottom = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained", sharey=True)
    for (title, runs), above, below in zip(lessons.items(), top, bottom, strict=True):
        paths = {name: descend(*run) for name, run in runs.items()}
        for name, path in paths.items():
            fgd.plots.loss_curve(jax.vmap(excess)(path), label=name, ax=above)
            w, b = path[-1]
            # Jitter: how unequal the last hundred steps are. Batch descent's are all alike.
            jitter = jnp.std(jnp.diff(path[-101:, 0]))
            print(
                f"{name:20} {w:7.4f}  {b:7.4f}  {loss(path[-1]):9.6f}   {excess(path[-1]):10.2e}"
                f"   {jitter:11.2e}"
            )
        above.set(title=title, ylabel="loss above the best")
        above.yaxis.set_minor_formatter("")
        fgd.plots.contours(loss, (-0.5, 4.5), (-0.5, 3.5), ax=below)
        fgd.plots.paths(paths, ax=below).legend(loc="upper right")
        below.plot(*best, "k*", markersize=12, zorder=3)
        below.set(title=title, xlabel="w", ylabel="b")
    same = jnp.abs(descend(averaging(rate), mini) - descend(plain(ALPHA * rate), mini)).max()
    print(f"averaging with η against v ← μ·v + g with α·η: at most {same:.1e} apart")
    for ax in (*top, *bottom):
        ax.label_outer()
    save(curves, args.output / "losses.png")
    save(plane, args.output / "paths.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/optimizers")
    flags.add_argument("--num-steps", type=positive(int), default=500)
    flags.add_argument("--batch-size", type=positive(int), default=25, help="of the mini-batches")
    flags.add_argument("--learning-rate", type=positive(float), default=0.1)
    flags.add_argument("--seed", type=int, default=0)
    run(main, flags)
