"""Your own Flax model, BatchNorm and Dropout included, learns to read handwritten digits."""

from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from _script import parser, positive, run, save
from flax import nnx

import fgd


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(200)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(10)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(784, 200, rngs=rngs)
        self.norm = nnx.BatchNorm(200, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(200, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x.reshape(len(x), -1))))
        return self.last(self.dropout(x))


MODULES = {"linen": Linen(), "nnx": Nnx}


def main(args):
    mnist = fgd.data.mnist(args.source, args.data_dir)

    # Two functions. BatchNorm's running statistics are arrays beside the parameters.
    sample = fgd.data.normalize(mnist.train[0][:1])
    model = fgd.models.from_flax(MODULES[args.style], sample)
    variables = model.init(args.seed)
    trained, running = (sum(x.size for x in jax.tree.leaves(part)) for part in variables)

    # A step gives the loss a key: training mode. Dropout is on, and the statistics are updated.
    loss_fn = fgd.supervised(
        model,
        fgd.losses.cross_entropy,
        preprocess=fgd.data.normalize,
        metrics={"accuracy": fgd.losses.accuracy},
    )
    epochs = args.epochs or 60_000 // len(mnist.train[0])  # a small sample is read more often
    num_steps = max(1, epochs * (len(mnist.train[0]) // args.batch_size))
    schedule = optax.cosine_onecycle_schedule(num_steps, args.learning_rate)
    step = fgd.train_step(loss_fn, fgd.adam(schedule))
    state = step.init(variables, key=args.seed)

    # Evaluation mode: no key. Dropout is off, and BatchNorm uses what it has learned of the data.
    state, history = fgd.train(
        step, state, mnist.train, batch_size=args.batch_size, num_epochs=epochs, evaluate=mnist.test
    )
    tested = history["evaluate"]
    with_first = replace(state, model_state=variables.model_state)
    before = fgd.evaluate(loss_fn, with_first, mnist.test)["accuracy"]

    print(f"data                {mnist.source}")
    print(f"model               {args.style}: {trained:,} parameters, {running} running statistics")
    print(f"mean training loss  {history['loss'].mean():.6f}, {epochs} epoch(s)")
    print(f"test accuracy       {tested['accuracy'][-1]:.4f}, {len(mnist.test[0]):,} digits")
    print(f"the same weights    {before:.4f}, with the statistics of the beginning")

    curve = fgd.plots.loss_curve(history["loss"][9::10], every=10, label="training loss")
    curve.plot(tested["step"], 1 - tested["accuracy"], "o-", markersize=3, label="test error")
    curve.set(ylabel="")
    curve.yaxis.set_minor_formatter("")
    curve.legend()
    save(curve.figure, args.output / "loss.png")
    logits, _ = model.apply(state.params, state.model_state, fgd.data.normalize(mnist.test[0]))
    predictions = jnp.argmax(logits, axis=-1)
    wrong = jnp.flatnonzero(predictions != mnist.test[1])[:40]
    images, labels = (rows[wrong] for rows in mnist.test)
    save(fgd.plots.digits(images, predictions[wrong], labels).figure, args.output / "wrong.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/flax_model")
    flags.add_argument("--style", choices=MODULES, default="linen", help="which of Flax's APIs")
    flags.add_argument("--epochs", type=positive(int), help="default: 1, or 15 of the sample")
    flags.add_argument("--batch-size", type=positive(int), default=100)
    flags.add_argument("--learning-rate", type=positive(float), default=0.01, help="its peak")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--source", default="auto", help="auto, tfds, files, download or sample")
    flags.add_argument("--data-dir", type=Path, help="where MNIST is (default: $FGD_DATA_DIR)")
    run(main, flags)
