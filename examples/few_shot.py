"""MAML: an initial state found from which five points and a few steps fit a new sine."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from _script import parser, positive, run, save

import fgd

model = fgd.models.mlp([1, 40, 40, 1], activation=jnp.tanh)
loss_fn = fgd.supervised(model, fgd.losses.mse)


def sines(key, how_many):
    """Fifteen points each of sines of any amplitude and phase: x and y, [how_many, 15, 1]."""
    keys, shape = jax.random.split(key, 3), (how_many, 1, 1)
    amplitude = jax.random.uniform(keys[0], shape, minval=0.1, maxval=5)
    phase = jax.random.uniform(keys[1], shape, maxval=jnp.pi)
    x = jax.random.uniform(keys[2], (how_many, 15, 1), minval=-5, maxval=5)
    return x, amplitude * jnp.sin(x - phase)


def adapted(params, x, y, num_steps=5):
    """A few steps of descent on the first five points."""
    step = fgd.train_step(loss_fn, fgd.sgd(0.02))
    return fgd.fit(step, step.init(params), (x[:5], y[:5]), num_steps=num_steps)[0].params


def after_adapting(params, batch):
    """The loss on the other ten points after that: a loss of the state before it."""
    losses = jax.vmap(lambda x, y: loss_fn(adapted(params, x, y), (x[5:], y[5:])))
    return jnp.mean(losses(*batch))


def at_once(params, batch):
    """What is usual: one network for all sines."""
    x, y = batch
    return loss_fn(params, (x.reshape(-1, 1), y.reshape(-1, 1)))


def main(args):
    if not 0 <= args.sine < 1_000:
        raise ValueError(f"--sine must be one of 1,000, from 0 on, got {args.sine}")
    keys = jax.random.split(jax.random.key(args.seed))
    train, test = sines(keys[0], 20_000), sines(keys[1], 1_000)
    found = {"random": model.init(args.seed)}
    for name, objective in ("pretrained", at_once), ("MAML", after_adapting):
        step = fgd.train_step(objective, fgd.adam(1e-3))
        state = step.init(found["random"], key=args.seed)
        state, _ = fgd.fit(step, state, train, batch_size=25, num_steps=args.num_steps)
        found[name] = state.params

    line = jnp.linspace(-5, 5, 200)[:, None]

    def look(params, num_steps):
        """After so many steps: the error on all new sines, and what is drawn of one."""
        fitted = jax.vmap(lambda x, y: adapted(params, x, y, num_steps))(*test)
        error = jax.vmap(loss_fn)(fitted, (test[0][:, 5:], test[1][:, 5:])).mean()
        return error, model.apply(jax.tree.map(lambda p: p[args.sine], fitted), line)

    looks = jax.jit(lambda params: {n: look(params, n) for n in (0, 1, 5, 10)})
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    x, y = (rows[args.sine] for rows in test)
    print("mean squared error on new sines after   0      1      5     10 steps")
    for ax, (name, params) in zip(panels, found.items(), strict=True):
        seen = looks(params)
        print(f"from {name:31}", *(f"{error:6.3f}" for error, _ in seen.values()))
        for n, (_, curve) in seen.items():
            ax.plot(line, curve, color=plt.cm.viridis(1 - n / 10), label=f"step {n}")
        ax.plot(x[5:], y[5:], ".", color="0.6")
        ax.plot(x[:5], y[:5], "o", color="black")
        ax.set(title=f"from {name}", xlabel="x")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    save(figure, args.output / "sines.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/few_shot")
    flags.add_argument("--num-steps", type=positive(int), default=10_000, help="of the outer run")
    flags.add_argument("--sine", type=int, default=10, help="which new sine to draw")
    flags.add_argument("--seed", type=int, default=0)
    run(main, flags)
