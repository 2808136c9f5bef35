"""Functional gradient descent: training is a function.

A loss is a pure function of parameters and a batch. `train_step` makes it one compiled step, `fit`
a whole run as one compiled, pure function, `train` the program around a run.
"""

from fgd import (
    conv as conv,
    data as data,
    export as export,
    interop as interop,
    losses as losses,
    models as models,
    parallel as parallel,
    plots as plots,
    testing as testing,
)
from fgd._cache import compilation_cache as compilation_cache
from fgd._evaluate import evaluate as evaluate
from fgd._fit import fit as fit
from fgd._step import Step as Step, train_step as train_step
from fgd._sweep import sweep as sweep
from fgd._train import train as train
from fgd._types import TrainState as TrainState
from fgd.losses import supervised as supervised
from fgd.optimizers import (
    adagrad as adagrad,
    adam as adam,
    momentum as momentum,
    rmsprop as rmsprop,
    sgd as sgd,
)
