"""Pictures of runs. Each draws on `ax`, or on new axes, and returns them; none shows or saves."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Num

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, WRONG = "#1b7837", "#c51b1b"


def loss_curve(
    losses: Float[Array, " records"],
    *,
    every: int = 1,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Losses over steps, on a log axis.

    Args:
      losses: one for every record, as `history["loss"]`.
      every: steps between two of them.
      label: for a legend.
      ax: where to draw; None, on a new figure.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> ax = fgd.plots.loss_curve(jnp.array([4.0, 2.0, 1.0]), every=10)
      >>> ax.get_yscale()
      'log'
    """
    ax = _axes(ax)
    values = np.asarray(losses)
    ax.plot(np.arange(1, len(values) + 1) * every, values, linewidth=1, label=label)
    ax.set(yscale="log", xlabel="step", ylabel="loss")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.grid(visible=True, which="both", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if label is not None:
        ax.legend()
    return ax


def digits(
    images: Num[Array, "rows height width"],
    predictions: Integer[Array, " rows"],
    labels: Integer[Array, " rows"],
    *,
    columns: int = 10,
    ax: "Axes | None" = None,
) -> "Axes":
    """A grid of images with what was predicted for each; a wrong one is framed, beside its label.

    Args:
      images: gray values.
      predictions, labels: classes.
      columns: images in a row of the grid.
      ax: where to draw; None, on a new figure.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> ax = fgd.plots.digits(jnp.zeros([2, 28, 28]), jnp.array([1, 7]), jnp.array([1, 2]))
      >>> [text.get_text() for text in ax.texts]
      ['1', '7, is 2']
    """
    from matplotlib.patches import Rectangle

    count, height, width = images.shape
    pixels, guesses, truth = (np.asarray(x) for x in (images, predictions, labels))
    rows, head = -(-count // columns), height // 3  # each image has a line of text above it
    ax = _axes(ax, size=(0.8 * columns, 0.8 * rows * (height + head) / width))
    canvas = np.full((rows * (height + head), columns * width), np.nan)
    for i in range(count):
        top, left = i // columns * (height + head) + head, i % columns * width
        canvas[top : top + height, left : left + width] = pixels[i]
        right = guesses[i] == truth[i]
        text = f"{guesses[i]}" if right else f"{guesses[i]}, is {truth[i]}"
        ax.text(
            left + width / 2,
            top - head / 2,
            text,
            color=RIGHT if right else WRONG,
            ha="center",
            va="center",
            fontsize=9,
        )
        if not right:
            box = (left + 0.5, top + 0.5), width - 2, height - 2
            ax.add_patch(Rectangle(*box, fill=False, edgecolor=WRONG, linewidth=2))
    ax.imshow(canvas, cmap="gray_r", interpolation="nearest")
    ax.set_axis_off()
    return ax


def fitted_line(
    x: Float[Array, "rows *one"],
    y: Float[Array, "rows *one"] | None,
    predict: Callable[[jax.Array], jax.Array],
    *,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Points, and the line that a model draws through them.

    Args:
      x, y: the points, [rows] or [rows, 1] each; y None: only the line that `predict(x) -> y` is.
      label: the line's, for a legend.
      ax: where to draw; None, on a new figure.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> ax = fgd.plots.fitted_line(jnp.arange(3.0), None, lambda x: 2 * x)
    """
    ax = _axes(ax)
    at = jnp.linspace(x.min(), x.max(), 100)
    ax.plot(at, np.ravel(predict(at.reshape(-1, *x.shape[1:]))), label=label)
    if y is not None:
        ax.scatter(x, y, s=24, color="0.6", linewidth=0, zorder=1)  # under the line
    ax.set(xlabel="x", ylabel="y")
    if label is not None:
        ax.legend()
    return ax


def contours(
    function: Callable[[jax.Array], jax.Array],
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    *,
    levels: int = 20,
    ax: "Axes | None" = None,
) -> "Axes":
    """Lines of equal height of a function of two numbers, dark where it is low.

    Between two neighboring lines lies an equal part of the picture, however steep the function.

    Args:
      function: `function(position) -> height`, from [2] to a scalar: a loss of two parameters.
      xlim, ylim: the part of the plane to show, (from, to).
      levels: how many lines.
      ax: where to draw; None, on a new figure.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> ax = fgd.plots.contours(lambda p: jnp.sum(p**2), (-1.0, 1.0), (-2.0, 2.0))
      >>> ax.get_xlim() == (-1, 1), ax.get_ylim() == (-2, 2)
      (True, True)
    """
    ax = _axes(ax)
    x, y = np.meshgrid(np.linspace(*xlim, 200), np.linspace(*ylim, 200))
    points = jnp.asarray(np.stack([x, y], axis=-1), float)
    heights = np.asarray(jax.vmap(jax.vmap(function))(points))
    at = np.unique(np.quantile(heights, np.linspace(0, 1, levels + 2)[1:-1]))
    grays = [f"{gray:.3f}" for gray in np.linspace(0.5, 0.88, len(at))]
    ax.contour(x, y, heights, at, colors=grays, linewidths=0.8, linestyles="solid", zorder=0)
    ax.set(xlim=xlim, ylim=ylim, xlabel="x", ylabel="y")
    return ax


def paths(
    positions: Mapping[str, Float[Array, "steps axes"]], *, ax: "Axes | None" = None
) -> "Axes":
    """The ways that descents took: a line for each, from a ring to a dot, and a legend.

    Args:
      positions: by name, [steps, 2], or [steps, 3] on three-dimensional axes; NaN makes a gap.
      ax: where to draw, `contours` or a surface, whose limits stay; None, on a new figure.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> ax = fgd.plots.paths({"sgd": jnp.array([[1.0, 1.0], [0.5, 0.2]])})
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['sgd']
    """
    ax = _axes(ax)
    for name, path in positions.items():
        (line,) = ax.plot(*np.transpose(path), linewidth=1.5, label=name)
        seen = np.asarray(path)[np.isfinite(path).all(axis=1)]
        for end, fill in ((seen[:1], "none"), (seen[-1:], "full")):
            ax.plot(*end.T, "o", color=line.get_color(), fillstyle=fill, markersize=5)
    ax.legend()
    return ax


def _axes(ax: "Axes | None", size: tuple[float, float] = (6.4, 4.0)) -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]
