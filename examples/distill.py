"""Ten images from which a network learns to read: found by descent through whole trainings."""

import time
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from _script import parser, positive, run, save

import fgd


def main(args):
    mnist = fgd.data.mnist(args.source, args.data_dir)
    model = fgd.models.mlp([784, args.hidden, 10])
    loss_fn = fgd.supervised(
        model, fgd.losses.cross_entropy, metrics={"accuracy": fgd.losses.accuracy}
    )

    # A run: ten steps on ten images, one for each digit, each step with a rate of its own.
    def taught(lesson, seed):
        step = fgd.train_step(loss_fn, fgd.sgd(lambda count: jnp.exp(lesson["log_rates"])[count]))
        data = lesson["images"], jnp.arange(10)
        return fgd.fit(step, step.init(model.init(seed)), data, num_steps=10)[0].params

    # How good a lesson is: the loss on real digits of fresh networks that had no other.
    def outer_loss(lesson, batch, key):
        images, labels = batch
        real = fgd.data.normalize(images), labels
        losses = fgd.sweep(
            lambda key: loss_fn(taught(lesson, key), real)[0],
            key=jax.random.split(key, args.networks),
            max_parallel=1,  # large networks: one after the other is fastest
        )
        return losses.mean()

    def accuracy(lesson, seed):
        test = fgd.data.normalize(mnist.test[0]), mnist.test[1]
        return loss_fn(taught(lesson, seed), test)[1]["accuracy"]

    # Some lessons make a network diverge: clipping bounds what one of them can do, and a gradient
    # that is not finite is left out.
    rate = optax.cosine_decay_schedule(args.learning_rate, args.num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), fgd.adam(rate))
    outer = fgd.train_step(outer_loss, optax.apply_if_finite(optimizer, 100))
    noise = 0.1 * jax.random.normal(jax.random.key(args.seed), (10, 28, 28))
    lesson = {"images": noise, "log_rates": jnp.full(10, jnp.log(0.1))}
    state = outer.init(lesson, key=args.seed)
    began, snapshots = time.perf_counter(), [lesson["images"]]
    stops = [args.num_steps * part // 100 for part in (0, 2, 8, 30, 100)]
    for start, stop in pairwise(stops):
        if stop > start:
            state, _ = fgd.train(
                outer,
                state,
                mnist.train,
                batch_size=args.batch_size,
                num_steps=stop - start,
                on_divergence="continue",
            )
        snapshots.append(state.params["images"])
    found = time.perf_counter()

    # Beside it: ten real digits, at the best of eight rates, and an epoch over all of them. Each
    # lesson teaches twenty networks whose initial weights no outer step has seen.
    images, labels = mnist.train
    first = jnp.argmax(labels[None] == jnp.arange(10)[:, None], axis=1)
    real = fgd.data.normalize(images[first])
    lessons = [state.params] + [
        {"images": real, "log_rates": jnp.full(10, jnp.log(rate))}
        for rate in jnp.logspace(-3, 0, 8)
    ]
    values = fgd.sweep(
        accuracy,
        lesson=jax.tree.map(lambda *x: jnp.stack(x), *lessons),
        seed=jnp.arange(1_000, 1_020),
        max_parallel=1,
    )
    usual = fgd.supervised(
        model,
        fgd.losses.cross_entropy,
        preprocess=fgd.data.normalize,
        metrics={"accuracy": fgd.losses.accuracy},
    )
    step = fgd.train_step(usual, fgd.sgd(0.01))
    epoch, _ = fgd.fit(
        step,
        step.init(model.init(1_000)),
        mnist.train,
        batch_size=100,
        num_epochs=60_000 // len(labels),
    )
    print(f"{args.num_steps} outer steps took {found - began:.1f} s, compiling included")
    print("rates", *(f"{rate:.2f}" for rate in jnp.exp(state.params["log_rates"])))
    print("test accuracy of unseen networks    mean   least  deviation")
    best = 1 + values[1:].mean(axis=1).argmax()
    for name, row in ("ten found images", values[0]), ("ten real ones, best rate", values[best]):
        print(f"{name:34} {row.mean():.4f}  {row.min():.4f}  {row.std():.4f}")
    at_the_end = fgd.evaluate(usual, epoch, mnist.test)["accuracy"]
    print(f"{'an epoch over 60,000 digits':34} {at_the_end:.4f}")

    figure, panels = plt.subplots(
        len(stops), 10, figsize=(9, 0.87 * len(stops)), layout="compressed"
    )
    for row, stop, images in zip(panels, stops, snapshots, strict=True):
        for ax, image in zip(row, images, strict=True):
            most = jnp.abs(image).max()
            ax.imshow(image, cmap="gray", vmin=-most, vmax=most)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"step {stop}", rotation=0, ha="right", va="center")
    save(figure, args.output / "lesson.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/distill")
    flags.add_argument("--hidden", type=positive(int), default=200)
    flags.add_argument("--networks", type=positive(int), default=8, help="in every outer step")
    flags.add_argument("--batch-size", type=positive(int), default=256, help="of real digits")
    flags.add_argument("--learning-rate", type=positive(float), default=0.03, help="of outer steps")
    flags.add_argument("--num-steps", type=positive(int), default=800, help="outer ones")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--source", default="auto", help="auto, tfds, files, download or sample")
    flags.add_argument("--data-dir", type=Path, help="where MNIST is (default: $FGD_DATA_DIR)")
    run(main, flags)
