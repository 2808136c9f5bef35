"""The jobs in fgd."""

import flax.linen as nn
import jax.numpy as jnp

import fgd


def early_stopping(train, valid):
    model = fgd.models.mlp([20, 64, 3])
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), fgd.adam(1e-3))
    state = step.init(model.init(0))
    patience = fgd.Patience("loss", 10)
    fgd.train(step, state, train, batch_size=32, num_epochs=200, evaluate=valid, stop_when=patience)
    return model.apply(patience.best_state.params, valid[0])


def validation(train, valid):
    model = fgd.models.mlp([20, 64, 3])
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), fgd.adam(1e-3))
    state = step.init(model.init(0))
    state, _ = fgd.train(step, state, train, batch_size=32, num_epochs=20, evaluate=valid)
    return model.apply(state.params, valid[0])


def plot(train, valid):
    model = fgd.models.mlp([20, 64, 3])
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), fgd.adam(1e-3))
    state = step.init(model.init(0))
    state, history = fgd.train(step, state, train, batch_size=32, num_epochs=20, evaluate=valid)
    fgd.plots.history(history).figure.savefig("history.png")
    return model.apply(state.params, valid[0])


def checkpoints(train, valid):
    model = fgd.models.mlp([20, 64, 3])
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), fgd.adam(1e-3))
    kept = fgd.Checkpoints("kept", every=500, best="loss")
    run = {"batch_size": 32, "num_epochs": 60, "evaluate": valid, "checkpoints": kept}
    state, history = fgd.train(step, step.init(model.init(0)), train, **run)
    best = history["evaluate"]["loss"].argmin()
    state = kept.restore(state, int(history["evaluate"]["step"][best]))
    return model.apply(state.params, valid[0])


def weights(train, valid):
    x, y, row_weights = train
    class_weights = len(y) / (3 * jnp.bincount(y))
    model = fgd.models.mlp([20, 64, 3])
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), fgd.adam(1e-3))
    data = x, y, row_weights * class_weights[y]
    state, _ = fgd.fit(step, step.init(model.init(0)), data, batch_size=32, num_epochs=20)
    return model.apply(state.params, valid[0])


def one_logit(train, valid):
    model = fgd.models.mlp([20, 64, 1])
    metrics = {"accuracy": fgd.losses.binary_accuracy}
    loss_fn = fgd.supervised(model, fgd.losses.binary_cross_entropy, metrics=metrics)
    step = fgd.train_step(loss_fn, fgd.adam(1e-3))
    state, _ = fgd.fit(step, step.init(model.init(0)), train, batch_size=32, num_epochs=20)
    return model.apply(state.params, valid[0])


def sequences(train, valid):
    net = nn.Sequential([nn.Embed(30, 16), nn.RNN(nn.GRUCell(64)), nn.Dense(30)])
    model = fgd.models.from_flax(net, valid[0])
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), fgd.adam(5e-3))
    state, _ = fgd.fit(step, step.init(model.init(0)), train, batch_size=32, num_epochs=10)
    return model.apply(state.params, valid[0])


def average(train, valid):
    model = fgd.models.mlp([20, 64, 3])
    loss_fn = fgd.supervised(model, fgd.losses.cross_entropy)
    step = fgd.train_step(loss_fn, fgd.ema(fgd.adam(1e-3), 0.99))
    state, _ = fgd.fit(step, step.init(model.init(0)), train, batch_size=32, num_epochs=20)
    return model.apply(fgd.averaged(state).params, valid[0])


def bfloat16(train, valid):
    model = fgd.models.mlp([20, 64, 3])
    loss_fn = fgd.supervised(model, fgd.losses.cross_entropy, compute_dtype=jnp.bfloat16)
    step = fgd.train_step(loss_fn, fgd.adam(1e-3))
    state, _ = fgd.fit(step, step.init(model.init(0)), train, batch_size=32, num_epochs=20)
    return model.apply(state.params, valid[0])


def autoencoder(x, valid):
    model = fgd.models.mlp([784, 32, 784])
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.adam(1e-3))
    state, _ = fgd.fit(step, step.init(model.init(0)), (x, x), batch_size=100, num_epochs=10)
    return model.apply(state.params, valid)
