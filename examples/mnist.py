"""R5e: learn to read handwritten digits, with a 784–200–10 network and gradient descent."""

import time
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import optax
from _script import parser, positive, run, save

import fgd

OPTIMIZERS = {  # with a learning rate, and whether that rises and falls during the run
    "sgd": (fgd.sgd, 1e-2, False),
    "momentum": (fgd.momentum, 1e-2, False),
    "adagrad": (fgd.adagrad, 1e-2, False),
    "rmsprop": (fgd.rmsprop, 1e-3, True),
    "adam": (fgd.adam, 4e-3, True),
}


def main(args):
    mnist = fgd.data.mnist(args.source, args.data_dir)

    # A model is two functions. Its loss is one function of parameters and a batch.
    model = fgd.models.mlp([784, 200, 10])
    loss_fn = fgd.supervised(
        model,
        fgd.losses.cross_entropy,
        preprocess=fgd.data.normalize,
        metrics={"accuracy": fgd.losses.accuracy},
    )

    # The small sample is read as often as makes up for its size.
    epochs = args.epochs or 60_000 // len(mnist.train[0])
    optimizer, learning_rate, varies = OPTIMIZERS[args.optimizer]
    learning_rate = args.learning_rate or learning_rate
    if varies:
        num_steps = max(1, epochs * (len(mnist.train[0]) // args.batch_size))
        learning_rate = optax.cosine_onecycle_schedule(num_steps, learning_rate)

    # One step of gradient descent, and the state before the first.
    step = fgd.train_step(loss_fn, optimizer(learning_rate))
    state = step.init(model.init(args.seed), key=args.seed)

    # Training is a function: a first call to compile it leaves `state` as it was.
    train = partial(fgd.train, step, state, mnist.train, batch_size=args.batch_size)
    began = time.perf_counter()
    train(num_steps=1, progress=False)
    compiled = time.perf_counter()
    state, history = train(num_epochs=epochs)
    trained = time.perf_counter()

    accuracy = fgd.evaluate(loss_fn, state, mnist.test)["accuracy"]
    print(f"data                {mnist.source}")
    print(f"mean training loss  {history['loss'].mean():.6f}, {epochs} epoch(s)")
    print(f"test accuracy       {accuracy:.4f}, {len(mnist.test[0]):,} digits")
    print(f"compile time        {compiled - began:.2f} s")
    print(f"training time       {trained - compiled:.2f} s")

    images, labels = (rows[:60] for rows in mnist.test)
    predictions = jnp.argmax(model.apply(state.params, fgd.data.normalize(images)), axis=-1)
    curve = fgd.plots.loss_curve(history["loss"][9::10], every=10)  # every tenth
    save(curve.figure, args.output / "loss.png")
    grid = fgd.plots.digits(images, predictions, labels)
    save(grid.figure, args.output / "digits.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/mnist")
    flags.add_argument("--epochs", type=positive(int), help="default: 1, or 15 of the sample")
    flags.add_argument("--batch-size", type=positive(int), default=100)
    flags.add_argument("--learning-rate", type=positive(float), help="default: the optimizer's")
    flags.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--source", default="auto", help="auto, tfds, files, download or sample")
    flags.add_argument("--data-dir", type=Path, help="where MNIST is (default: $FGD_DATA_DIR)")
    run(main, flags)
