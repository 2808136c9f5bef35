"""Losses and metrics of a batch.

Each has `weights`, an array whose shape is a leading part of that of the values (of the rows, or
of every label), and `reduction`: "mean" is Σ w·l / Σ w, "sum" is Σ w·l, and "none" is the mean of
each row's w·l. Where all weights are 0 in a compiled program, the mean is 0.
"""

from fgd.losses._classification import (
    accuracy as accuracy,
    binary_accuracy as binary_accuracy,
    binary_cross_entropy as binary_cross_entropy,
    cross_entropy as cross_entropy,
)
from fgd.losses._regression import mse as mse
