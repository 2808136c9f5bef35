"""`fgd.train`, to see what the program around `fit` costs."""

from functools import partial

import fgd
from benchmarks.peers import fgd_fit

train = partial(fgd.train, progress=False)

JOBS = {"r2b": partial(fgd_fit.r2b, fit=train), "r5e": partial(fgd_fit.r5e, fit=train)}
