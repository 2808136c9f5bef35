"""Convolution and pooling that are as fast in the loop of a run on CPU as anywhere."""

from fgd.conv._dropin import conv_general_dilated as conv_general_dilated
from fgd.conv._pool import avg_pool as avg_pool, max_pool as max_pool
