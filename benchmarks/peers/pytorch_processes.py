"""PyTorch in worker processes: one for each core, of one thread, started before."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import torch

from benchmarks.peers import pytorch

CORES = os.cpu_count() or 1


@cache
def run_of(steps: int):
    torch.set_num_threads(1)
    return pytorch.r5e(steps)


def one(steps: int) -> float:
    return run_of(steps)()


def sweep_mlp(steps):
    workers = ProcessPoolExecutor(CORES, multiprocessing.get_context("forkserver"))
    return lambda: sum(workers.map(one, [steps // 16] * 16)) / 16


def mapped(steps):
    """Its loader in as many processes as there are cores."""
    return pytorch.mapped(steps, num_workers=CORES, persistent_workers=True)


JOBS = {"sweep_mlp": sweep_mlp, "mapped": mapped}
