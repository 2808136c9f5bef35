"""The jobs, in NumPy: data, sizes and rates that every peer is given alike."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np


@dataclass(frozen=True)
class Job:
    """What is timed.

    Attributes:
      title: in words, for the table.
      steps: of a full measurement, and of a quick one.
      flops: floating-point operations of a step, its products computed directly.
      bytes: that a step must read.
      loops: whether a step can take no less than an empty loop's.
    """

    title: str
    steps: tuple[int, int] = (1, 1)
    flops: float = 0
    bytes: float = 0
    loops: bool = False


MLP_FLOPS = 2 * 100 * (2 * 784 * 200 + 3 * 200 * 10)  # no gradient of the images
TWO_LAYER_FLOPS = 2 * 64 * (2 * 1000 * 100 + 3 * 100 * 10)
CNN_FLOPS = 2 * 128 * (2 * 24**2 * 25 * 32 + 3 * 8**2 * 25 * 32 * 64 + 3 * (1024 * 256 + 256 * 10))

JOBS = {
    "r2b": Job("R2b: a line through 5 points, 10,000 steps", (10_000, 100), loops=True),
    "r2c": Job("R2c: a line through 100,000 points, 10,000 steps", (10_000, 50), bytes=8e5),
    "r3a": Job("R3a: two-layer net by hand, 500 steps", (500, 20), TWO_LAYER_FLOPS),
    "r3e": Job("R3e: two-layer net, SGD, 500 steps", (500, 20), TWO_LAYER_FLOPS),
    "r3f": Job("R3f: two-layer net, Adam, 500 steps", (500, 20), TWO_LAYER_FLOPS),
    "r5e": Job("R5e: MNIST 784–200–10, one epoch", (600, 20), MLP_FLOPS),
    "around": Job("R5e, 10 epochs of 500 steps, each validated on 10,000 rows", (5000, 40)),
    "mapped": Job("R5e from a memory-mapped file, one epoch", (600, 20), MLP_FLOPS),
    "cnn": Job("CNN on MNIST, batch 128, a tenth of an epoch", (46, 2), CNN_FLOPS),
    "sweep_r2b": Job("1,024 runs of R2b", (1024, 4)),
    "sweep_mlp": Job("16 runs of R5e, 100 steps each", (1600, 32), MLP_FLOPS),
    "sweep_border": Job("8,192 tanh networks 16–16–1, 500 steps each", (8192, 16)),
    "rows_1e3": Job("4,000 steps on a thousand rows", (4000, 50)),
    "rows_1e5": Job("4,000 steps on a hundred thousand rows", (4000, 50)),
    "rows_1e7": Job("4,000 steps on ten million rows", (4000, 50)),
    "cold": Job("a process from its start to its first step"),
    "mnist_99": Job("99 % of MNIST, a process from its start"),
}


@cache
def r2b() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The design matrix [5, 2], targets [5], first parameters [2]."""
    x = np.array([1.4, 5, 11, 16, 21], np.float32)
    y = np.array([14.4, 29.6, 62, 85.5, 113.4], np.float32)
    return np.stack([x, np.ones_like(x)], axis=1), y, np.full(2, 0.5, np.float32)


@cache
def r2c() -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-3, 3, 100_000, dtype=np.float32)[:, None]
    noise = np.random.default_rng(0).uniform(size=x.shape).astype(np.float32)
    return x, x + np.float32(1.2) * noise


@cache
def two_layer(bias: bool) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Inputs [64, 1000], targets [64, 10], and w1, w2 or w1, b1, w2, b2."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(64, 1000)), draw.normal(size=(64, 10))
    if bias:
        params = layers(draw, [1000, 100, 10])
    else:
        params = [draw.normal(size=(1000, 100)), draw.normal(size=(100, 10))]
    return x.astype(np.float32), y.astype(np.float32), [p.astype(np.float32) for p in params]


def layers(draw: np.random.Generator, sizes: list[int]) -> list[np.ndarray]:
    """Weights [in, out] and biases [out] as torch.nn.Linear draws them."""
    params = []
    for n_in, n_out in pairwise(sizes):
        bound = n_in**-0.5
        params += [draw.uniform(-bound, bound, shape) for shape in ((n_in, n_out), (n_out,))]
    return [p.astype(np.float32) for p in params]


@cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """60,000 images [28, 28] in uint8, and labels; if need be, a sample of 5,000, repeated."""
    import fgd

    images, labels = (np.asarray(x) for x in fgd.data.mnist().train)
    rows = np.arange(60_000) % len(images)
    return images[rows], labels[rows]


FOLDER = TemporaryDirectory()  # until the process ends


@cache
def mapped() -> tuple[np.ndarray, np.ndarray]:
    """The same, memory-mapped: what is read comes from the file."""
    path = Path(FOLDER.name, "images.npy")
    images, labels = mnist()
    np.save(path, images)
    return np.load(path, mmap_mode="r"), labels


@cache
def border() -> tuple[np.ndarray, ...]:
    """16 points: inputs [16, 16], targets [16, 1], weights [16, 16] and [16, 1]."""
    draw = np.random.default_rng(0)
    shapes = (16, 16), (16, 1), (16, 16), (16, 1)
    return tuple(draw.normal(size=shape).astype(np.float32) for shape in shapes)


def rates(runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the first layer and of the last, for every run of `border`."""
    exponents = np.random.default_rng(0).uniform((0.5, 1.0), (4.0, 2.7), (runs, 2))
    first, last = (10**exponents).astype(np.float32).T
    return first, last


@cache
def mlp(seed: int = 0) -> list[np.ndarray]:
    return layers(np.random.default_rng(seed), [784, 200, 10])


def rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    """As many rows as a job's name says: inputs [rows, 8] and targets [rows, 1]."""
    count = int(float(name.removeprefix("rows_")))
    x = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    return x, x.sum(axis=1, keepdims=True)
