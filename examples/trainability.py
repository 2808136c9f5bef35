"""Where training converges and where it diverges: a fractal, each pixel a whole training run."""

import os
import time
from contextlib import suppress

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from _script import parser, positive, run, save
from tqdm import tqdm

import fgd

# Logarithms of two learning rates, the first layer's and the last's: the whole, and closer looks.
WINDOWS = [
    ((0.5, 4.0), (1.0, 2.7)),
    ((1.0, 1.7), (1.74, 2.08)),
    ((1.2, 1.34), (1.97, 2.038)),
    ((1.26, 1.288), (1.99, 2.0036)),
]


def box_counting_dimension(inside):
    """D of the border of a [n, n] mask: the boxes of s pixels that it crosses are ∝ s^−D."""
    n, sizes, counts = len(inside), [], []
    corners = np.stack([inside[i : n - 1 + i, j : n - 1 + j] for i in (0, 1) for j in (0, 1)])
    border = np.pad(corners.any(axis=0) & ~corners.all(axis=0), [(0, 1), (0, 1)])
    for size in (s for s in (1, 2, 4, 8, 16, 32) if n % s == 0 and s <= n // 8):
        boxes = border.reshape(n // size, size, n // size, size).any(axis=(1, 3))
        sizes.append(size)
        counts.append(boxes.sum())
    return -np.polyfit(np.log(sizes), np.log(counts), 1)[0] if border.any() else 0.0


def color(values):
    """Blue converges, red diverges, by rank: darkest are the least losses and the slowest ends."""
    pixels = np.empty((*values.shape, 3))
    for name, pick in ("Blues", values < 0), ("Reds", values > 0):
        speed = np.abs(values[pick])
        rank = np.searchsorted(np.sort(speed), speed) / max(speed.size, 1)
        rank = 1 - rank if name == "Blues" else rank
        pixels[pick] = matplotlib.colormaps[name](0.15 + 0.85 * rank)[:, :3]
    return pixels


def problem(seed):
    """16 points for 272 parameters: (x, y), and the initial weights of two layers."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = (16, 16), (16, 1), (16, 16), (16, 1)
    # Drawn in float32 and used in the default float: the same problem in float64, too.
    x, y, first, last = (
        jax.random.normal(key, shape, jnp.float32).astype(float)
        for key, shape in zip(keys, shapes, strict=True)
    )
    return (x, y), (first, last)


def loss_fn(params, batch):
    """A tanh network without biases, its output scaled by 1/16."""
    x, y = batch
    first, last = params
    return fgd.losses.mse(jnp.tanh(x @ first / 4) @ last / 16, y)


def pixel_of(data, start, num_steps):
    """A pixel is a run: negative if the loss fell (the mean of it), positive if it diverged."""

    def pixel(first, last):
        def update(grads, state, params=None):
            return (-(10**first) * grads[0], -(10**last) * grads[1]), state

        step = fgd.train_step(loss_fn, optax.GradientTransformation(lambda _: (), update))
        _, history = fgd.fit(step, step.init(start), data, num_steps=num_steps)
        loss = history["loss"] / history["loss"][0]
        loss = jnp.where(jnp.isfinite(loss), jnp.minimum(loss, 1e6), 1e6)
        return jnp.where(loss[-20:].mean() < 1, -loss.mean(), (1 / loss).mean())

    return pixel


def main(args):
    if args.pixels % 8:
        raise ValueError(f"--pixels must be a multiple of 8, got {args.pixels}")
    pixel = pixel_of(*problem(args.seed), args.num_steps)

    # Eight rows of the picture at a time: one compiled program, its runs spread over all devices.
    mesh = jax.make_mesh((jax.device_count(),), ("data",))

    def picture(window, bar):
        (left, right), (bottom, top) = window
        first = jnp.linspace(left, right, args.pixels)
        rows = jnp.linspace(bottom, top, args.pixels).reshape(-1, 8)
        parts = []
        for last in rows:
            part = fgd.sweep(pixel, last=last, first=first, mesh=mesh)
            parts.append(np.asarray(part))
            bar.update(part.size)
        return np.concatenate(parts)

    total = len(WINDOWS) * args.pixels**2
    figure, panels = plt.subplots(2, 2, figsize=(9, 8.6), layout="constrained")
    began = time.perf_counter()
    with tqdm(total=total, unit="run", unit_scale=True, disable=None) as bar:
        for i, (ax, window) in enumerate(zip(panels.flat, WINDOWS, strict=True)):
            values = picture(window, bar)
            dimension = box_counting_dimension(values < 0)
            tqdm.write(f"window {i}: {np.mean(values < 0):.1%} converge, dimension {dimension:.2f}")
            plt.imsave(args.output / f"window{i}.png", color(values)[::-1])
            ax.imshow(color(values), origin="lower", extent=(*window[0], *window[1]), aspect="auto")
            ax.set(title=f"dimension of the border {dimension:.2f}")
            if i + 1 < len(WINDOWS):
                (left, right), (bottom, top) = WINDOWS[i + 1]
                ax.add_patch(plt.Rectangle((left, bottom), right - left, top - bottom, fill=False))
    figure.supxlabel("log₁₀ of the first layer's learning rate")
    figure.supylabel("log₁₀ of the last layer's learning rate")
    print(f"{total:,} trainings of {args.num_steps} steps, {time.perf_counter() - began:.0f} s")
    save(figure, args.output / "trainability.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/trainability")
    flags.add_argument("--pixels", type=positive(int), default=512, help="of a picture's side")
    flags.add_argument("--num-steps", type=positive(int), default=500, help="of a training run")
    flags.add_argument("--seed", type=int, default=0)
    with suppress(RuntimeError):  # in a notebook JAX may have its devices already
        jax.config.update("jax_num_cpu_devices", os.cpu_count())  # one for each core
    run(main, flags)
