"""Functional gradient descent: training is a function.

A loss is a pure function of parameters and a batch. `train_step` makes it one compiled step, `fit`
a whole run as one compiled, pure function, `sweep` many runs, `train` the program around a run.
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
from fgd._run.ema import averaged as averaged, ema as ema
from fgd._run.evaluate import evaluate as evaluate
from fgd._run.fit import fit as fit
from fgd._run.per_example import per_example as per_example
from fgd._run.programs import compilation_cache as compilation_cache
from fgd._run.state import TrainState as TrainState
from fgd._run.step import Step as Step, train_step as train_step
from fgd._run.summary import Summary as Summary, summary as summary
from fgd._run.supervised import supervised as supervised
from fgd._run.sweep import sweep as sweep
from fgd._train.divergence import DivergedError as DivergedError
from fgd._train.patience import Patience as Patience
from fgd._train.train import train as train
from fgd.checkpoint import Checkpoints as Checkpoints
from fgd.optimizers import (
    adagrad as adagrad,
    adam as adam,
    momentum as momentum,
    rmsprop as rmsprop,
    sgd as sgd,
)
