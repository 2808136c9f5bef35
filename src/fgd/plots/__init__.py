"""Pictures of runs. Each draws on `ax`, or on new axes, and returns them; none shows or saves."""

from fgd.plots._data import digits as digits, fitted_line as fitted_line
from fgd.plots._history import history as history
from fgd.plots._planes import contours as contours, paths as paths
from fgd.plots._runs import (
    loss_curve as loss_curve,
    sweep_curves as sweep_curves,
    sweep_heatmap as sweep_heatmap,
)
