"""Data, and what a model makes of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Num

from fgd._checks import count, require_callable
from fgd.plots._axes import axes, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, WRONG = "#1b7837", "#c51b1b"


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

    columns = count("digits", "columns", columns, least=1)
    pixels = numbers("digits", "images", images, "rows", "height", "width")
    given = ("predictions", predictions), ("labels", labels)
    guesses, truth = (numbers("digits", name, x, "rows") for name, x in given)
    total, height, width = pixels.shape
    if not len(guesses) == len(truth) == total:
        raise ValueError(
            f"digits: {total} images, {len(guesses)} predictions and {len(truth)} labels; expected "
            "as many of each"
        )
    rows, head = -(-total // columns), height // 3  # each image has a line of text above it
    ax = axes("digits", ax, size=(0.8 * columns, 0.8 * rows * (height + head) / width))
    canvas = np.full((rows * (height + head), columns * width), np.nan)
    for i in range(total):
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
    require_callable("fitted_line", "predict", predict, " of x")
    at_x = numbers("fitted_line", "x", x, "rows", "…")
    at_y = at_x if y is None else numbers("fitted_line", "y", y, "rows", "…")
    if not at_x.size == at_y.size == len(at_x):
        raise ValueError(
            f"fitted_line: x has shape {at_x.shape} and y {at_y.shape}, expected one number a row"
        )
    ax = axes("fitted_line", ax)
    at = jnp.linspace(at_x.min(), at_x.max(), 100)
    ax.plot(at, np.ravel(predict(at.reshape(-1, *at_x.shape[1:]))), label=label)
    if y is not None:
        ax.scatter(at_x, at_y, s=24, color="0.6", linewidth=0, zorder=1)  # under the line
    ax.set(xlabel="x", ylabel="y")
    if label is not None:
        ax.legend()
    return ax
