"""Runs: their losses, one by one and over the axes of a sweep."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float, Num

from fgd._checks import count
from fgd.plots._axes import axes, grid, log_scale, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    values = numbers("loss_curve", "losses", losses, "records")
    every = count("loss_curve", "every", every, least=1)
    ax = axes("loss_curve", ax)
    ax.plot(np.arange(1, len(values) + 1) * every, values, linewidth=1, label=label)
    log_scale(ax)
    ax.set(xlabel="step", ylabel="loss")
    grid(ax)
    if label is not None:
        ax.legend()
    return ax


def sweep_curves(
    losses: Float[Array, "points *others records"],
    *,
    every: int = 1,
    ax: "Axes | None" = None,
    **axis: Num[Array, " _"],
) -> "Axes":
    """Losses over steps, a curve for every value of one axis of a sweep.

    A curve that diverges leaves the picture at ten times the median first loss. Further axes,
    such as seeds, become a band from the least to the greatest around the median.

    Args:
      losses: what `fgd.sweep` gives of a run that returns `history["loss"]`.
      every: steps between two records.
      ax: where to draw; None, on a new figure.
      axis: the sweep's first axis, by name.

    Raises:
      ValueError: not one axis, or not the one that the losses lead with.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> losses = jnp.array([[4.0, 2.0, 1.0], [4.0, 1.0, 0.5]])
      >>> ax = fgd.plots.sweep_curves(losses, learning_rate=jnp.array([0.1, 0.2]))
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['0.1', '0.2']
    """
    import matplotlib as mpl

    heights = numbers("sweep_curves", "losses", losses, "points", "…", "records")
    every = count("sweep_curves", "every", every, least=1)
    _check("sweep_curves", heights.shape[:1], axis)
    ((name, values),) = axis.items()
    ax = axes("sweep_curves", ax)
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(heights)))
    for value, runs, color in zip(np.asarray(values), heights, colors, strict=True):
        runs = runs.reshape(-1, runs.shape[-1])
        steps = np.arange(1, runs.shape[1] + 1) * every
        if len(runs) > 1:
            band = runs.min(axis=0), runs.max(axis=0)
            ax.fill_between(steps, *band, color=color, alpha=0.2, linewidth=0)
        ax.plot(steps, np.median(runs, axis=0), color=color, linewidth=1, label=f"{value:.3g}")
    ax.set(yscale="log", xlabel="step", ylabel="loss")
    heights = np.where(np.isfinite(heights) & (heights > 0), heights, np.nan)
    if np.isfinite(heights).any():
        first = np.nanmedian(heights[..., 0]) if np.isfinite(heights[..., 0]).any() else np.inf
        if ax.get_ylim()[1] > 10 * first:
            ax.set_ylim(np.nanmin(heights) / 1.5, 10 * first)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(title=name.replace("_", " "), ncols=-(-len(heights) // 12), frameon=False)
    return ax


def sweep_heatmap(
    values: Float[Array, "rows columns"],
    *,
    label: str = "loss",
    ax: "Axes | None" = None,
    **axis: Num[Array, " _"],
) -> "Axes":
    """A number for every point of a sweep over two axes; the least is framed.

    Points without a finite value, where training diverged, are crossed out. The scale is
    logarithmic if the values are positive and span more than a factor of ten.

    Args:
      values: what `fgd.sweep` gives of a run that returns a scalar.
      label: what the values are.
      ax: where to draw; None, on a new figure.
      axis: the sweep's two axes, by name and in order: rows, then columns.

    Raises:
      ValueError: not two axes, or not those that the values have.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> losses = jnp.array([[1.0, 2.0, 4.0], [3.0, 6.0, jnp.nan]])
      >>> rates, seeds = jnp.array([0.1, 0.2]), jnp.arange(3)
      >>> ax = fgd.plots.sweep_heatmap(losses, learning_rate=rates, seed=seeds)
      >>> ax.get_xlabel(), ax.get_ylabel()
      ('seed', 'learning rate')
    """
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    heights = np.ma.masked_invalid(numbers("sweep_heatmap", "values", values, "rows", "columns"))
    _check("sweep_heatmap", heights.shape, axis)
    ax = axes("sweep_heatmap", ax)
    low, high = heights.min(), heights.max()
    norm = LogNorm() if heights.count() and 0 < 10 * low < high else None
    image = ax.imshow(heights, norm=norm, cmap="viridis_r", aspect="auto")
    for row, column in zip(*np.nonzero(np.ma.getmaskarray(heights)), strict=True):
        ax.plot(column, row, "x", color="0.5", markersize=6)
    if heights.count():
        row, column = np.unravel_index(heights.argmin(), heights.shape)
        corner = float(column) - 0.5, float(row) - 0.5
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#c51b1b", linewidth=2))
        ax.figure.colorbar(image, ax=ax, label=label)
    for (name, points), which in zip(axis.items(), (ax.yaxis, ax.xaxis), strict=True):
        every = -(-len(points) // 10)
        at = range(0, len(points), every)
        which.set_ticks(at, [f"{points[i]:.3g}" for i in at])
        which.set_label_text(name.replace("_", " "))
    return ax


def _check(caller: str, shape: tuple[int, ...], axis: dict[str, Any]) -> None:
    lengths = {name: len(numbers(caller, name, points, "points")) for name, points in axis.items()}
    if tuple(lengths.values()) != shape:
        raise ValueError(
            f"{caller}: the values have axes of lengths {shape}, but {lengths} were given; give "
            "the axes of the sweep by name, in its order"
        )
