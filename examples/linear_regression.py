"""R1, R2b, R4a, R4b, R5d: five lessons that fit a line to points by gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
from _script import parser, positive, run, save

import fgd

FIVE = jnp.array([(1.4, 14.4), (5, 29.6), (11, 62), (16, 85.5), (21, 113.4)]).T
FIFTEEN = jnp.array([
    (3.3, 1.7), (4.4, 2.76), (5.5, 2.09), (6.71, 3.19), (6.93, 1.694), (4.168, 1.573),
    (9.779, 3.366), (6.182, 2.596), (7.59, 2.53), (2.167, 1.221), (7.042, 2.827), (10.791, 3.465),
    (5.313, 1.65), (7.997, 2.904), (3.1, 1.3),
]).T  # fmt: skip


def predict(params, x):
    return params["w"] * x + params["b"]


def loss_fn(params, batch):
    x, y = batch
    return fgd.losses.mse(predict(params, x), y)


def three_ways(args):
    """R1: gradients by hand in NumPy; jax.grad and a manual update; fgd's step and optimizer."""
    keys = jax.random.split(jax.random.key(0), 4)
    data = fgd.data.linear(keys[0], 100, slope=2, intercept=1, noise=0.1, inputs=jax.random.normal)
    train, valid = fgd.data.split(keys[1], data, 0.8)
    start = {"w": jax.random.normal(keys[2]), "b": jax.random.normal(keys[3])}

    x, y, w, b = (np.asarray(array) for array in (*train, start["w"], start["b"]))
    by_hand = []
    for _ in range(1000):
        error = y - (w * x + b)
        by_hand.append(np.mean(error**2))
        w, b = w - 0.1 * -2 * np.mean(x * error), b - 0.1 * -2 * np.mean(error)

    params, by_grad, loss_and_slope = start, [], jax.jit(jax.value_and_grad(loss_fn))
    for _ in range(1000):
        loss, slope = loss_and_slope(params, train)
        by_grad.append(loss)
        params = jax.tree.map(lambda p, s: p - 0.1 * s, params, slope)

    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    state, history = fgd.fit(step, step.init(start), train, num_steps=1000)

    for name, end in {"NumPy": {"w": w, "b": b}, "jax.grad": params, "fgd": state.params}.items():
        losses = f"training loss {loss_fn(end, train):.7f}, validation {loss_fn(end, valid):.7f}"
        print(f"{name:10} w {end['w']:.6f}, b {end['b']:.6f}, {losses}")
    apart = np.ptp([by_hand, by_grad, history["loss"]], axis=0)
    print(f"the three losses of a step differ by {apart.max():.1e} at most")


def five_points(args):
    """R2b: the sum of squares over five points, 10,000 steps, drawn every 80."""
    x, y = FIVE
    design = jnp.stack([x, jnp.ones_like(x)], axis=1)  # design @ w is w₀·x + w₁

    def sum_of_squares(w, batch):
        design, y = batch
        return fgd.losses.mse(design @ w, y, reduction="sum")

    step = fgd.train_step(sum_of_squares, fgd.sgd(1e-4))
    state = step.init(jnp.array([0.5, 0.5]))
    every_80 = {"evaluate": lambda state: {"w": state.params}, "evaluate_every": 80}
    _, history = fgd.train(step, state, (design, y), num_steps=10_000, progress=False, **every_80)
    lines, loss = history["evaluate"]["w"], history["loss"][-1]
    print(f"ours       loss {loss:.6f}, w [{lines[-1, 0]:.6f}, {lines[-1, 1]:.6f}]")
    print("published  loss 8.229387, w [5.082875, 5.602187] from the same w = [0.5, 0.5]")
    print("           loss 8.2430, w [5.0840, 5.5849] from a random one")

    ax = fgd.plots.fitted_line(x, y, lambda x: jnp.polyval(lines[-1], x), label="at the end")
    for w, alpha in zip(lines, np.linspace(0.1, 0.6, len(lines)), strict=True):
        ax.plot(x, design @ w, "C1", alpha=alpha, linewidth=0.7, zorder=1.5)
    ax.lines[-1].set_label("every 80 steps")
    ax.legend()
    save(ax.figure, args.output / "five_points.png")
    curve = fgd.plots.loss_curve(history["loss"][79::80], every=80)
    save(curve.figure, args.output / "five_points_loss.png")


def line(args):
    """R4a: 500 points on y = 3x + 0.8; w, b and the loss as it goes."""
    if 2000 % args.every:
        raise ValueError(f"--every {args.every} does not divide the 2000 steps")
    key, w_key = jax.random.split(jax.random.key(0))
    x, y = fgd.data.linear(key, 500)
    step = fgd.train_step(loss_fn, fgd.sgd(0.01))
    state = step.init({"w": jax.random.uniform(w_key, (1, 1)), "b": jnp.zeros((1, 1))})
    for done in range(args.every, 2001, args.every):  # short runs in a row are one long run
        state, history = fgd.fit(step, state, (x, y), num_steps=args.every)
        w, b, loss = *(p.item() for p in map(state.params.get, "wb")), history["loss"][-1]
        print(f"step {done:4}  w {w:.6f}  b {b:.6f}  loss {loss:.8f}")
    ax = fgd.plots.fitted_line(x, y, lambda x: 3 * x + 0.8, label="true: 3x + 0.8")
    fitted = f"fitted: {w:.2f}x + {b:.2f}"
    fgd.plots.fitted_line(x, None, lambda x: predict(state.params, x), label=fitted, ax=ax)
    save(ax.figure, args.output / "line.png")


def module(args):
    """R4b: the same points and a model, Linear(1, 1); then what it predicts."""
    key, init_key = jax.random.split(jax.random.key(0))
    x, y = fgd.data.linear(key, 500)
    model = fgd.models.linear(1, 1)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.001))
    state, _ = fgd.fit(step, step.init(model.init(init_key)), (x, y), num_steps=2000)
    predictions = model.apply(state.params, x)  # without a key: evaluation mode
    w, b = state.params["w"].item(), state.params["b"].item()
    print(f"w {w:.6f}  b {b:.6f}  loss {fgd.losses.mse(predictions, y):.6f}")
    ax = fgd.plots.fitted_line(x, y, lambda x: model.apply(state.params, x), label="predicted")
    save(ax.figure, args.output / "module.png")


def fifteen_points(args):
    """R5d: fifteen points and gradients by hand; one update, then 31 more."""
    x, y = FIFTEEN
    start = {"w": -0.11873716861009598, "b": 0.0}

    @jax.jit
    def update(params):
        error = predict(params, x) - y
        slope = {"w": 2 / 15 * jnp.sum(x * error), "b": 2 / 15 * jnp.sum(error)}
        return jax.tree.map(lambda p, s: p - 1e-2 * s, params, slope), jnp.mean(error**2), slope

    one, loss, slope = update(start)
    print(f"ours       loss {loss:.4f}, ∂w {slope['w']:.4f}, ∂b {slope['b']:.4f}")
    print("published  loss 10.2335, ∂w -41.1289, ∂b -6.0890")
    end, losses = one, []
    for _ in range(31):
        end, loss, _ = update(end)
        losses.append(loss)
    print("ours       " + ", ".join(f"{loss:.7f}" for loss in losses[::10]) + " at 0, 10, 20, 30")
    print("published  0.4142104, 0.2260517, 0.2231874, 0.2204667")
    step = fgd.train_step(loss_fn, fgd.sgd(1e-2))
    _, history = fgd.fit(step, step.init(one), (x, y), num_steps=31)
    apart = abs(history["loss"] - jnp.stack(losses)).max()
    print(f"fgd.fit's 31 losses differ from these by {apart:.1e} at most")

    ax = fgd.plots.fitted_line(x, y, lambda x: predict(start, x), label="before")
    fgd.plots.fitted_line(x, None, lambda x: predict(one, x), label="after one step", ax=ax)
    fgd.plots.fitted_line(x, None, lambda x: predict(end, x), label="after 31 more", ax=ax)
    save(ax.figure, args.output / "fifteen_points.png")


LESSONS = (three_ways, five_points, line, module, fifteen_points)
PARTS = {lesson.__name__.replace("_", "-"): lesson for lesson in LESSONS}


def main(args):
    for name, part in PARTS.items():
        if args.part in (name, "all"):
            print(f"\n{part.__doc__}")
            part(args)


if __name__ == "__main__":
    flags = parser(__doc__, "out/linear_regression")
    flags.add_argument("--part", choices=[*PARTS, "all"], default="all")
    flags.add_argument("--every", type=positive(int), default=10, help="steps between R4a's lines")
    run(main, flags)
