"""Where to draw, and what can be drawn."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fgd._checks import describe, require_reals

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def axes(caller: str, ax: "Axes | None", size: tuple[float, float] = (6.4, 4.0)) -> "Axes":
    """`ax`, or new axes."""
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    if ax is None:
        return plt.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"{caller}: ax must be matplotlib's Axes, got {describe(ax)}")
    return ax


def log_scale(ax: "Axes") -> None:
    """A logarithmic axis of values, with plain numbers at 1, 2, 3, 4 and 6 of each decade."""

    def at_some(value: float, _: Any) -> str:
        return f"{value:g}" if f"{value:e}"[0] in "2346" else ""

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(at_some)


def grid(ax: "Axes") -> None:
    """Faint lines behind curves, and no box around them."""
    ax.grid(visible=True, which="both", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def numbers(caller: str, name: str, x: Any, *shape: str) -> np.ndarray:
    """`x` as an array of at least one row, with axes of these names; "…" is any more of them."""
    require_reals(caller, **{name: x})
    array = np.asarray(x)
    least = len(shape) - ("…" in shape)
    if array.ndim < least or (array.ndim > least and "…" not in shape) or array.shape[:1] == (0,):
        raise ValueError(
            f"{caller}: {name} has shape {array.shape}, expected [{', '.join(shape)}], not empty"
        )
    return array
