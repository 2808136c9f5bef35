"""The classic optimizers, each a few lines, as optax gradient transformations.

They mean what `torch.optim` means. Learning rates are floats, traced scalars (so that a run can be
mapped over them and differentiated by them) or schedules `count -> learning rate`.
"""

from fgd.optimizers._classic import (
    adagrad as adagrad,
    adam as adam,
    momentum as momentum,
    rmsprop as rmsprop,
    sgd as sgd,
)
