"""R2a, R3b, R3c, R4c: gradients, a backward pass written by hand, clamp, and detach."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _script import parser, run, save


# R3b: a ReLU whose backward pass is written by hand.
@jax.custom_vjp
def relu(x):
    return jnp.maximum(x, 0)


def forward(x):
    return relu(x), x  # the value, and the residual: what ctx.save_for_backward would keep


def backward(x, grad):
    return (jnp.where(x < 0, 0, grad),)  # one gradient for each input; at exactly 0 it passes


relu.defvjp(forward, backward)


def clamp(x):  # R3c
    return jnp.clip(x, -1, 1)


def slopes(f, x):
    """The derivative of an elementwise function at each element of x."""
    return jax.grad(lambda x: jnp.sum(f(x)))(x)


def show(name, value, published=None):
    beside = "" if published is None else f"published {published}"
    print(f"{name:<30}{np.array2string(np.asarray(value), precision=4):<24}{beside}".rstrip())


def main(args):
    # R2a: z = 4x, y = ‖z‖. A gradient is a function made from a function.
    def scale(x):
        return 4 * x

    def norm(z):
        return jnp.sqrt(jnp.sum(z * z))

    def y(x):
        return norm(scale(x))

    x = jnp.array(args.x)
    if not 0 < y(x) < jnp.inf:
        raise ValueError(f"--x: ‖4x‖ is {y(x)}, expected above 0 and finite: there it is smooth")
    known = args.x == [1, 1]
    print("R2a  z = 4x, y = ‖z‖")
    show("x", x)
    show("y", y(x), "5.6569" if known else None)
    show("∂y/∂x", jax.grad(y)(x), "[2.8284 2.8284]" if known else None)
    # By something in between: the gradient of the part of the function that comes after it.
    show("∂y/∂z", jax.grad(norm)(scale(x)))
    print(f"the computation graph, jax.make_jaxpr(y)(x):\n{jax.make_jaxpr(y)(x)}")

    kinks = jnp.array([-1.0, 0.0, 1.0])
    functions = {"ReLU by hand": relu, "jax.nn.relu": jax.nn.relu, "jnp.clip(x, -1, 1)": clamp}
    print("\nR3b, R3c  the derivative of")
    show("  at", kinks)
    for name, f in functions.items():
        show(name, slopes(f, kinks))

    # R4c: the value stays, its dependence on x is cut.
    print("\nR4c  a factor made constant, and no aliasing")
    show("∇ Σ x·x", slopes(lambda x: x * x, x))
    show("∇ Σ x·stop_gradient(x)", slopes(lambda x: x * jax.lax.stop_gradient(x), x))
    show("stop_gradient(x), changed", jax.lax.stop_gradient(x).at[0].set(100))
    show("x, as it was", x)

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    line = jnp.linspace(-2, 2, 400)  # an even number of points: no kink is among them
    for ax, (name, f) in zip(axes, functions.items(), strict=True):
        at = kinks[jnp.array([0, 2])] if f is clamp else kinks[1:2]
        ax.plot(line, f(line), color="C0", zorder=3, label="value")
        ax.plot(line, slopes(f, line), ".", color="C1", markersize=4, label="derivative")
        ax.plot(at, slopes(f, at), "o", color="C1", label="derivative at the kink")
        ax.set(title=name, xlabel="x")
        ax.grid(visible=True, alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(loc="upper left")
    save(figure, args.output / "kinks.png")


if __name__ == "__main__":
    flags = parser(__doc__, "out/autograd")
    flags.add_argument("--x", type=float, nargs="+", default=[1.0, 1.0], help="where R2a is taken")
    run(main, flags)
