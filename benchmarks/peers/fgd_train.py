"""`fgd.train`, to see what the program around `fit` costs."""

import contextlib
import os
from functools import partial

import fgd
from benchmarks import problems
from benchmarks.peers import fgd_fit

train = partial(fgd.train, progress=False)


def around(steps):
    """Validation, patience and a bar."""
    step, start, rows, valid, epoch = fgd_fit.validated(steps)

    def run():
        with open(os.devnull, "w") as unseen, contextlib.redirect_stderr(unseen):
            _, history = fgd.train(
                step,
                start,
                rows,
                batch_size=100,
                num_steps=10 * epoch,
                evaluate=valid,
                evaluate_every=epoch,
                stop_when=fgd.Patience("loss", 10),
                progress=True,
            )
        return history["loss"][-1].item()

    return run


def mapped(steps):
    return fgd_fit.r5e(steps, data=problems.mapped(), fit=train)


JOBS = {
    "r2b": partial(fgd_fit.r2b, fit=train),
    "r5e": partial(fgd_fit.r5e, fit=train),
    "around": around,
    "mapped": mapped,
}
