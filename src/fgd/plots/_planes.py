"""Functions of two numbers, and descents on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgd._checks import count, describe, require_callable, require_finite
from fgd.plots._axes import axes, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    require_callable("contours", "function", function, " of a position, [2]")
    levels = count("contours", "levels", levels, least=1)
    for name, limits in (("xlim", xlim), ("ylim", ylim)):
        pair = isinstance(limits, Sequence | np.ndarray) and len(limits) == 2
        if not pair or isinstance(limits, str):
            raise TypeError(f"contours: {name} must be a pair (from, to), got {describe(limits)}")
        for limit in limits:
            require_finite("contours", **{name: limit})
        if not limits[0] < limits[1]:
            raise ValueError(f"contours: {name} must rise, got {tuple(limits)}")
    ax = axes("contours", ax)
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
    if not isinstance(positions, Mapping) or not positions:
        raise TypeError(
            "paths: positions must be a dict {name: [steps, 2] array}, not empty, got "
            f"{describe(positions)}"
        )
    ax = axes("paths", ax)
    for name, path in positions.items():
        what = f"positions[{name!r}]"
        if numbers("paths", what, path, "steps", "axes").shape[1] not in (2, 3):
            raise ValueError(f"paths: {what} has shape {np.shape(path)}, expected [steps, 2 or 3]")
        if np.shape(path)[1] == 3 and ax.name != "3d":
            raise ValueError(
                f"paths: {what} has shape {np.shape(path)}, but ax is of two dimensions; give "
                'ax=plt.figure().add_subplot(projection="3d")'
            )
        (line,) = ax.plot(*np.transpose(path), linewidth=1.5, label=name)
        seen = np.asarray(path)[np.isfinite(path).all(axis=1)]
        for end, fill in ((seen[:1], "none"), (seen[-1:], "full")):
            ax.plot(*end.T, "o", color=line.get_color(), fillstyle=fill, markersize=5)
    ax.legend()
    return ax
