"""The jobs in Keras 3, as its guides write them."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras.layers import GRU, Dense, Embedding


def early_stopping(train, valid):
    model = keras.Sequential([keras.Input((20,)), Dense(64, activation="relu"), Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    stop = keras.callbacks.EarlyStopping(patience=10, restore_best_weights=True)
    model.fit(*train, batch_size=32, epochs=200, validation_data=valid, callbacks=[stop])
    return model.predict(valid[0])


def validation(train, valid):
    model = keras.Sequential([keras.Input((20,)), Dense(64, activation="relu"), Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    model.fit(*train, batch_size=32, epochs=20, validation_data=valid)
    return model.predict(valid[0])


def plot(train, valid):
    model = keras.Sequential([keras.Input((20,)), Dense(64, activation="relu"), Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    history = model.fit(*train, batch_size=32, epochs=20, validation_data=valid).history
    plt.plot(history["loss"], label="training")
    plt.plot(history["val_loss"], label="validation")
    plt.legend()
    plt.savefig("history.png")
    return model.predict(valid[0])


def checkpoints(train, valid):
    model = keras.Sequential([keras.Input((20,)), Dense(64, activation="relu"), Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    periodic = keras.callbacks.BackupAndRestore("kept", 500, delete_checkpoint=False)
    best = keras.callbacks.ModelCheckpoint("best.keras", save_best_only=True)
    callbacks = [periodic, best]
    model.fit(*train, batch_size=32, epochs=60, validation_data=valid, callbacks=callbacks)
    model = keras.models.load_model("best.keras")
    return model.predict(valid[0])


def weights(train, valid):
    x, y, row_weights = train
    class_weights = len(y) / (3 * np.bincount(y))
    model = keras.Sequential([keras.Input((20,)), Dense(64, activation="relu"), Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    model.fit(x, y, batch_size=32, epochs=20, sample_weight=row_weights * class_weights[y])
    return model.predict(valid[0])


def one_logit(train, valid):
    model = keras.Sequential([keras.Input((20,)), Dense(64, activation="relu"), Dense(1)])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    accuracy = keras.metrics.BinaryAccuracy(threshold=0.0)
    model.compile(optimizer="adam", loss=loss, metrics=[accuracy])
    model.fit(*train, batch_size=32, epochs=20)
    return model.predict(valid[0])


def sequences(train, valid):
    model = keras.Sequential([Embedding(30, 16), GRU(64, return_sequences=True), Dense(30)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(5e-3), loss=loss)
    model.fit(*train, batch_size=32, epochs=10)
    return model.predict(valid[0])


def average(train, valid):
    model = keras.Sequential([keras.Input((20,)), Dense(64, activation="relu"), Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(use_ema=True, ema_momentum=0.99), loss=loss)
    model.fit(*train, batch_size=32, epochs=20)
    return model.predict(valid[0])


def bfloat16(train, valid):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.Sequential([keras.Input((20,)), Dense(64, activation="relu"), Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    model.fit(*train, batch_size=32, epochs=20)
    return model.predict(valid[0])


def autoencoder(x, valid):
    model = keras.Sequential([keras.Input((784,)), Dense(32, activation="relu"), Dense(784)])
    model.compile(optimizer="adam", loss="mse")
    model.fit(x, x, batch_size=100, epochs=10)
    return model.predict(valid)
