"""A learning rate found by gradient descent, through all the steps of a training run."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from _script import parser, positive, run, save

import fgd


def main(args):
    if abs(args.seed) >= 2**31:
        raise ValueError(f"--seed must fit in 32 bits, got {args.seed}")
    # A wave over five inputs, under noise: a hundred points to learn from, a thousand to judge by.
    x_key, w_key, noise_key, key = jax.random.split(jax.random.key(args.seed), 4)
    x, w = jax.random.normal(x_key, (1100, 5)), jax.random.normal(w_key, (5, 1))
    y = jnp.sin(2 * x @ w / jnp.linalg.norm(w)) + 0.3 * jax.random.normal(noise_key, (1100, 1))
    train, valid = (x[:100], y[:100]), (x[100:], y[100:])

    model = fgd.models.mlp([5, 100, 1], activation=jnp.tanh)
    loss_fn = fgd.supervised(model, fgd.losses.mse)

    def trained(optimizer):
        step = fgd.train_step(loss_fn, optimizer)
        state, _ = fgd.fit(step, step.init(model.init(key)), train, num_steps=args.num_steps)
        return state.params

    # The whole run, from a learning rate to the loss on other points, is a function.
    def validation_loss(learning_rate):
        return loss_fn(trained(fgd.momentum(learning_rate)), valid)

    # One way to a good rate: try many.
    rates = jnp.logspace(-3, 0, 32)
    losses = fgd.sweep(validation_loss, learning_rate=rates)
    best = jnp.nanargmin(losses)
    print("                      learning rates        validation loss")
    print(f"best of a sweep of 32 {rates[best]:.6f}              {losses[best]:.6f}")

    # Another: follow its gradient. In the logarithm of the rate, for rates differ by factors.
    def descend(optimizer, how_many):
        def outer_loss(logs, batch):
            rates = jnp.exp(logs)
            loss = loss_fn(trained(optimizer(rates)), batch)
            return loss, {f"rate {i}": rate for i, rate in enumerate(rates)}

        outer = fgd.train_step(outer_loss, fgd.adam(0.3, b1=0.5, b2=0.9))
        start = outer.init(jnp.full(how_many, jnp.log(args.start)))
        _, history = fgd.fit(outer, start, valid, num_steps=args.descent_steps)
        path = jnp.stack([history[f"rate {i}"] for i in range(how_many)], axis=-1)
        return path, history["loss"]

    # A gradient can have many parts: a rate for each layer, where a sweep would need 32².
    def one_for_each_layer(rates):
        def scale(updates, _):
            layers = zip(rates, updates, strict=True)
            return [jax.tree.map(lambda u, r=r: r * u, layer) for r, layer in layers]

        return optax.chain(fgd.momentum(1.0), optax.stateless(scale))

    path, heights = descend(lambda rates: fgd.momentum(rates[0]), 1)
    layers, heights_of_layers = descend(one_for_each_layer, 2)
    for name, rows, values, at in (
        ("descent begins at", path, heights, 0),
        (f"{len(path)} steps find", path, heights, jnp.nanargmin(heights)),
        ("and for each layer", layers, heights_of_layers, jnp.nanargmin(heights_of_layers)),
    ):
        found = ", ".join(f"{rate:.6f}" for rate in rows[at])
        print(f"{name:21} {found:20}  {values[at]:.6f}")

    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    ax.plot(rates, losses, "o", color="0.6", markersize=4, label="sweep")
    fgd.plots.paths({"descent": jnp.stack([path[:, 0], heights], axis=-1)}, ax=ax)
    ax.plot(path, heights, ".", color="C0", markersize=4)
    ax.set(xscale="log", xlabel="learning rate", ylabel="validation loss")
    ax.spines[["top", "right"]].set_visible(False)
    save(figure, args.output / "descent.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/learn_the_learning_rate")
    flags.add_argument("--num-steps", type=positive(int), default=400, help="of a training run")
    flags.add_argument("--descent-steps", type=positive(int), default=30)
    flags.add_argument("--start", type=positive(float), default=1e-3, help="the first rate")
    flags.add_argument("--seed", type=int, default=0)
    run(main, flags)
