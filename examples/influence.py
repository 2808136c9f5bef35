"""What would the test loss have been without these rows? One derivative of a run says it of all."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _script import parser, positive, run, save

import fgd


def main(args):
    mnist = fgd.data.mnist(args.source, args.data_dir)
    images, labels = (x[: args.rows] for x in mnist.train)
    rows, gone = len(labels), len(labels) // 20
    if not gone:
        raise ValueError(f"--rows must be at least 20, got {args.rows}")
    model = fgd.models.mlp([784, args.hidden, 10], activation=jnp.tanh)

    def losses_of(params, images, labels):
        logits = model.apply(params, fgd.data.normalize(images))
        return fgd.losses.cross_entropy(logits, labels, reduction="none")

    # A run is a function of its rows' weights. A row of weight 0 is one that was never there.
    def weighted(params, batch):
        images, labels, weights = batch
        return weights @ losses_of(params, images, labels) / jnp.sum(weights)

    def trained(weights, labels):
        step = fgd.train_step(weighted, fgd.sgd(args.learning_rate))
        state = step.init(model.init(args.seed), key=args.seed)
        data = images, labels, weights
        return fgd.fit(step, state, data, batch_size=100, num_steps=args.num_steps)[0].params

    # `interest` is a weight for every test digit: the same for all, or all of it for one.
    def test_loss(weights, labels, interest):
        return interest @ losses_of(trained(weights, labels), *mnist.test)

    ones, tests = jnp.ones(rows), len(mnist.test[1])
    alike = jnp.full(tests, 1 / tests)
    derivative = jax.jit(jax.grad(test_loss))
    began = time.perf_counter()
    by_weights = derivative(ones, labels, alike).block_until_ready()
    derived = time.perf_counter()

    # The check: real trainings, each without another random twentieth of the rows.
    draw = np.random.default_rng(args.seed)
    absent = draw.random([args.retrainings, rows]).argsort(axis=1) < gone
    present = {"weights": jnp.asarray(~absent, float)}
    losses = fgd.sweep(
        lambda present: test_loss(present["weights"], labels, alike), present=present
    )
    true = np.asarray(losses) - test_loss(ones, labels, alike)
    checked = time.perf_counter()

    # What else may be asked of a row: its own loss, or its gradient times the test loss's.
    params = jax.jit(trained)(ones, labels)
    slope = jax.grad(lambda p: alike @ losses_of(p, *mnist.test))(params)
    own, products = jax.jvp(lambda p: losses_of(p, images, labels), (params,), (slope,))

    print(f"{rows:,} rows, {args.num_steps} steps at rate {args.learning_rate}")
    print(f"derivative by the rows' weights  {derived - began:.1f} s, compiling included")
    print(f"{args.retrainings} trainings without {gone} rows  {checked - derived:.1f} s")
    print("correlation of what is foretold with what is true")
    scatter, panels = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    for ax, (name, of_row, unit) in zip(
        panels,
        (
            ("derivative of the run", -1e3 * by_weights, "change, in thousandths"),
            ("product of gradients", products, "sum over the absent rows"),
            ("the row's own loss", own, "sum over the absent rows"),
        ),
        strict=True,
    ):
        foretold = absent @ np.asarray(of_row)
        correlation = np.corrcoef(foretold, true)[0, 1]
        print(f"  {name:22} {correlation:6.3f}")
        ax.plot(foretold, 1e3 * true, ".", color="C0", alpha=0.7)
        ax.set(title=f"{name}: {correlation:.3f}", xlabel=f"foretold {unit}")
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].axline((0, 0), slope=1, color="0.6", linewidth=1, zorder=1)
    panels[0].set(ylabel="true change of the test loss, in thousandths")
    save(scatter, args.output / "foretold.png")

    # Who taught the network to misread this digit? The same derivative, of its loss alone.
    test_images, truth = mnist.test
    guesses = jnp.argmax(model.apply(params, fgd.data.normalize(test_images)), axis=-1)
    at = jnp.flatnonzero(guesses != truth)[args.digit : args.digit + 1]
    if not at.size:
        raise ValueError(f"--digit: fewer than {args.digit + 1} test digits are misread")
    order = jnp.argsort(derivative(ones, labels, jax.nn.one_hot(at[0], tests)))
    helped, harmed = order[:8], order[::-1][:8]
    grid, panels = plt.subplots(
        1, 3, figsize=(9, 2.8), width_ratios=[2, 4, 4], layout="constrained"
    )
    fgd.plots.digits(test_images[at], guesses[at], truth[at], columns=1, ax=panels[0])
    fgd.plots.digits(images[helped], labels[helped], labels[helped], columns=4, ax=panels[1])
    fgd.plots.digits(images[harmed], labels[harmed], labels[harmed], columns=4, ax=panels[2])
    for ax, title in zip(panels, ("misread", "helped most", "harmed most"), strict=True):
        ax.set_title(title)
    save(grid, args.output / "digits.png")

    # What it is not for: labels flipped at random are found better by their own loss.
    flipped = draw.random(rows) < 0.05
    wrong = jnp.where(flipped, (labels + draw.integers(1, 10, rows)) % 10, labels)
    own = losses_of(jax.jit(trained)(ones, wrong), images, wrong)
    print(f"flipped labels found among {rows:,} rows, area under the curve")
    suspects = {"derivative of the run": derivative(ones, wrong, alike), "the row's own loss": own}
    for name, value in suspects.items():
        places = np.argsort(np.argsort(value))[flipped]
        area = (places.mean() - (flipped.sum() - 1) / 2) / (rows - flipped.sum())
        print(f"  {name:22} {area:6.3f}")


if __name__ == "__main__":
    flags = parser(__doc__, "out/influence")
    flags.add_argument("--rows", type=positive(int), default=10_000)
    flags.add_argument("--hidden", type=positive(int), default=200)
    flags.add_argument("--learning-rate", type=positive(float), default=0.01)
    flags.add_argument("--num-steps", type=positive(int), default=600)
    flags.add_argument("--retrainings", type=positive(int), default=100)
    flags.add_argument("--digit", type=int, default=0, help="which misread one, from 0")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--source", default="auto", help="auto, tfds, files, download or sample")
    flags.add_argument("--data-dir", type=Path, help="where MNIST is (default: $FGD_DATA_DIR)")
    run(main, flags)
