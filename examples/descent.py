"""R5b: what the learning rate does, and how optimizers cross saddles and follow a valley."""

from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _script import parser, positive, run, save
from matplotlib.animation import PillowWriter

import fgd

OPTIMIZERS = {  # with a learning rate for the valley
    "sgd": (fgd.sgd, 0.01),
    "momentum": (fgd.momentum, 0.002),
    "nesterov": (partial(fgd.momentum, nesterov=True), 0.002),
    "averaging": (partial(fgd.momentum, averaging=True), 0.01),
    "adagrad": (fgd.adagrad, 0.5),
    "rmsprop": (fgd.rmsprop, 0.02),
    "adam": (fgd.adam, 0.1),
}
RATES = {"too small": 0.01, "right": 0.3, "oscillates": 0.95, "diverges": 1.05}
SADDLES = {  # with a start: one a hair off the ridge, one that has to pass the flat point (0, 0)
    "z = x² − y²": (lambda p: p[0] ** 2 - p[1] ** 2, [1.0, 1e-3]),
    "z = x⁴ − y³": (lambda p: p[0] ** 4 - p[1] ** 3, [0.8, -0.6]),
}


def beale(p):
    x, y = p
    return sum((c - x + x * y**k) ** 2 for k, c in enumerate([1.5, 2.25, 2.625], start=1))


def descend(function, optimizer, start, num_steps):
    """The positions that a run passes, start and end included, and the heights: [steps + 1, 3]."""

    def loss_fn(position, _):
        return function(position), {"x": position[0], "y": position[1]}

    step = fgd.train_step(loss_fn, optimizer)
    state = step.init(jnp.array(start))
    _, history = fgd.fit(step, state, jnp.zeros(1), num_steps=num_steps + 1)
    return jnp.stack([history["x"], history["y"], history["loss"]], axis=-1)


def main(args):
    # A run is a function of its learning rate: all the rates are one program.
    def on_parabola(rate):
        return descend(lambda p: p[0] ** 2, fgd.sgd(rate), [1.0, 0.0], num_steps=20)

    runs = jax.vmap(on_parabola)(jnp.array(list(RATES.values())))
    print("f(x) = x² from 1      η   x after 20 steps   (1 − 2η)²⁰")
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained", sharey=True)
    x = np.linspace(-3, 3, 200)
    for ax, (name, rate), points in zip(axes, RATES.items(), runs, strict=True):
        print(f"{name:17} {rate:5} {points[-1, 0]:18.6f} {(1 - 2 * rate) ** 20:12.6f}")
        ax.plot(x, x**2, color="0.7")
        ax.plot(points[:, 0], points[:, 2], ".-", color="C3", linewidth=1)
        ax.set(title=f"η = {rate}: {name}", xlabel="x", xlim=(-3, 3), ylim=(-0.3, 8))
    axes[0].set_ylabel("f(x) = x²")
    save(figure, args.output / "rates.png")

    eta, num_steps = args.learning_rate, args.num_steps
    every = {name: make(eta) for name, (make, _) in OPTIMIZERS.items()}
    first, second = (
        {name: descend(function, optimizer, start, num_steps) for name, optimizer in every.items()}
        for function, start in SADDLES.values()
    )
    t = min(num_steps, 100)
    print(f"\nx² − y² from (1, 0.001), sgd with η = {eta}, step {t}")
    print(f"position      {first['sgd'][t, 0]:.6f}  {first['sgd'][t, 1]:.6f}")
    print(f"closed form   {(1 - 2 * eta) ** t:.6f}  {1e-3 * (1 + 2 * eta) ** t:.6f}")
    print(f"\nsteps until |y| > 0.9, of {num_steps}   x² − y²   x⁴ − y³")
    for name in every:
        far = [jnp.abs(runs[name][:, 1]) > 0.9 for runs in (first, second)]
        steps = [f"{jnp.argmax(left)}" if left.any() else "stays" for left in far]
        print(f"{name:31} {steps[0]:>7}   {steps[1]:>7}")
    figure = plt.figure(figsize=(11, 5.2), layout="constrained")
    for i, (title, runs) in enumerate(zip(SADDLES, (first, second), strict=True), start=1):
        surface(figure.add_subplot(1, 2, i, projection="3d"), title, runs)
    figure.axes[0].get_legend().remove()  # the other picture's is the same
    save(figure, args.output / "saddles.png")

    title, figure = next(iter(SADDLES)), plt.figure(figsize=(6, 4))
    ax, film = figure.add_axes((0, 0.05, 0.75, 0.87), projection="3d"), PillowWriter(fps=12)
    with film.saving(figure, args.output / "saddle.gif", dpi=90):
        for t in np.linspace(0, num_steps, args.frames).astype(int):
            ax.clear()
            surface(ax, title, first, until=t)
            ax.set_title(f"{title}, step {t}")
            film.grab_frame()
    print(f"wrote {args.output / 'saddle.gif'}")

    print(f"\nBeale's valley, {num_steps} steps     η        x        y     height")
    valley = {}
    for name, (make, rate) in OPTIMIZERS.items():
        points = descend(beale, make(rate), [1.0, 1.5], num_steps)
        print(f"{name:20} {rate:9} {points[-1, 0]:8.4f} {points[-1, 1]:8.4f} {points[-1, 2]:10.2e}")
        valley[name] = points[:, :2]
    ax = fgd.plots.contours(beale, (0.0, 4.0), (-1.7, 2.0))
    fgd.plots.paths(valley, ax=ax).legend(loc="lower right")
    ax.plot(3, 0.5, "k*", markersize=12)  # the minimum
    save(ax.figure, args.output / "valley.png")


def surface(ax, title, runs, until=np.inf):
    """A saddle on [−1, 1]², and what lies there of the runs until a step."""
    x, y = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21))
    z = SADDLES[title][0](np.stack([x, y]))
    ax.computed_zorder = False  # lines are drawn on top
    ax.plot_surface(x, y, z, cmap="bone", alpha=0.4, edgecolor="0.6", linewidth=0.3, zorder=0)
    shown = {}
    for name, points in runs.items():
        inside = (jnp.abs(points[:, :2]) <= 1).all(axis=1) & (jnp.arange(len(points)) <= until)
        shown[name] = jnp.where(inside[:, None], points, jnp.nan)
    fgd.plots.paths(shown, ax=ax).legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    ticks = [-1, 0, 1]
    ax.set(title=title, xlabel="x", ylabel="y", xticks=ticks, yticks=ticks, zticks=ticks)
    ax.view_init(35, 55)


if __name__ == "__main__":
    flags = parser(__doc__, "out/descent")
    flags.add_argument("--num-steps", type=positive(int), default=400)
    flags.add_argument("--learning-rate", type=positive(float), default=0.02, help="at the saddles")
    flags.add_argument("--frames", type=positive(int), default=40, help="of the animation")
    run(main, flags)
