"""Pictures of runs. Each draws on `ax`, or on new axes, and returns them; none shows or saves."""

from typing import TYPE_CHECKING

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


def _axes(ax: "Axes | None", size: tuple[float, float] = (6.4, 4.0)) -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]
