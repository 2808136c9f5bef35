"""Keras 3 on JAX: `compile` (jitted) and `fit`, silent."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras

from benchmarks import problems


def fitted(model, loss, optimizer, data, size, steps, weights):
    model.compile(optimizer, loss, jit_compile=True)
    x, y = data
    rows = min(len(x), size * steps)
    epochs = steps * size // rows

    def run():
        model.set_weights(weights)
        model.optimizer.iterations.assign(0)
        history = model.fit(x[:rows], y[:rows], batch_size=size, epochs=epochs, verbose=0)
        return history.history["loss"][-1]

    return run


def r5e(steps):
    images, labels = problems.mnist()
    images = (images.reshape(-1, 784).astype("float32") / 255 - 0.5) / 0.5
    layers = keras.layers.Dense(200, activation="relu"), keras.layers.Dense(10)
    model = keras.Sequential([keras.Input((784,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sgd = keras.optimizers.SGD(1e-2)
    return fitted(model, loss, sgd, (images, labels), 100, steps, problems.mlp())


JOBS = {"r5e": r5e}
