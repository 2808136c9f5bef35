"""PyTorch: an eager loop, tensors in memory, as its tutorials write it."""

from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks import problems
from benchmarks.peers import process

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tensors(*arrays):
    return [torch.tensor(np.asarray(x), device=DEVICE) for x in arrays]


def by_hand(loss_fn, params, data, rate, steps):
    """A manual update over parameters."""

    def run():
        weights = [p.requires_grad_() for p in tensors(*params)]
        for _ in range(steps):
            loss = loss_fn(weights, *data)
            loss.backward()
            with torch.no_grad():
                for p in weights:
                    p -= rate * p.grad
                    p.grad = None
        return loss.item()

    return run


def r2b(steps):
    x, y, w = problems.r2b()
    return by_hand(lambda p, x, y: ((x @ p[0] - y) ** 2).sum(), [w], tensors(x, y), 1e-4, steps)


def r3a(steps):
    def loss_fn(params, x, y):
        w1, w2 = params
        return ((x @ w1).clamp(min=0) @ w2 - y).pow(2).sum()

    x, y, params = problems.two_layer(bias=False)
    return by_hand(loss_fn, params, tensors(x, y), 1e-6, steps)


def net(params):
    """Linear layers with ReLU between them, with the weights that every peer has."""
    modules = []
    for w, b in zip(*(tensors(*params[i::2]) for i in (0, 1)), strict=True):
        layer = nn.Linear(*w.shape, device=DEVICE)
        with torch.no_grad():
            layer.weight.copy_(w.T)
            layer.bias.copy_(b)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def loop(make, loss_fn, batches, optimizer, compile_step=False):
    """A model and an optimizer object, batch after batch."""

    def run():
        model = make()
        opt = optimizer(model.parameters())

        def forward_backward(x, y):
            loss = loss_fn(model(x), y)
            loss.backward()
            return loss

        step = torch.compile(forward_backward) if compile_step else forward_backward
        for x, y in batches():
            opt.zero_grad()
            loss = step(x, y)
            opt.step()
        return loss.item()

    return run


def sum_loss(pred, target):
    return mse_loss(pred, target, reduction="sum")


def r2c(steps, **options):
    x, y = tensors(*problems.r2c())
    start = [np.full((1, 1), 0.5, np.float32), np.zeros(1, np.float32)]
    sgd = partial(torch.optim.SGD, lr=1e-4)
    return loop(lambda: net(start), mse_loss, lambda: [(x, y)] * steps, sgd, **options)


def two_layer(steps, optimizer, **options):
    x, y, params = problems.two_layer(bias=True)
    x, y = tensors(x, y)
    return loop(lambda: net(params), sum_loss, lambda: [(x, y)] * steps, optimizer, **options)


def batches_of(images, labels, size, steps):
    """In memory, normalized before, in a fresh order each epoch."""

    def batches():
        done = 0
        while True:
            order = torch.randperm(len(labels), device=images.device)
            for rows in order[: len(order) // size * size].split(size):
                if done == steps:
                    return
                done += 1
                yield images[rows], labels[rows]

    return batches


def mnist():
    images, labels = tensors(*problems.mnist())
    return (images.float() / 255 - 0.5) / 0.5, labels.long()


def r5e(steps, **options):
    images, labels = mnist()
    batches = batches_of(images.reshape(-1, 784), labels, 100, steps)
    sgd = partial(torch.optim.SGD, lr=1e-2)
    return loop(lambda: net(problems.mlp()), cross_entropy, batches, sgd, **options)


class Mapped(torch.utils.data.Dataset):
    """Images and labels by index, from a memory-mapped file."""

    def __init__(self):
        self.images, self.labels = problems.mapped()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return torch.from_numpy(self.images[i].copy()), int(self.labels[i])


def mapped(steps, **options):
    loader = torch.utils.data.DataLoader(Mapped(), 100, shuffle=True, drop_last=True, **options)

    def batches():
        for images, labels in islice(loader, steps):
            yield ((images.float() / 255 - 0.5) / 0.5).reshape(-1, 784), labels

    sgd = partial(torch.optim.SGD, lr=1e-2)
    return loop(lambda: net(problems.mlp()), cross_entropy, batches, sgd)


def cnn(steps, **options):
    """Channels-last, the fastest documented layout."""
    images, labels = mnist()
    batches = batches_of(images[:, None], labels, 128, steps)

    def make():
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(1, 32, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(32, 64, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10),
        )  # fmt: skip
        return nn.Sequential(*layers).to(DEVICE, memory_format=torch.channels_last)

    def channels_last():
        for x, y in batches():
            yield x.contiguous(memory_format=torch.channels_last), y

    adam = partial(torch.optim.Adam, lr=1e-3)
    return loop(make, cross_entropy, channels_last, adam, **options)


def sweep_r2b(runs):
    """Three runs; the time of all is in proportion."""
    few = min(runs, 3)
    run = r2b(10_000)

    def some():
        return [run() for _ in range(few)][-1]

    some.steps = few
    return some


def sweep_mlp(steps):
    runs = [r5e(steps // 16)] * 16
    return lambda: [run() for run in runs][-1]


FIRST_STEP = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
model = nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
loss = nn.functional.cross_entropy(model(torch.ones(100, 784)), torch.zeros(100).long())
loss.backward()
optimizer.step()
print(float(loss))
"""


SGD, ADAM = (partial(kind, lr=1e-4) for kind in (torch.optim.SGD, torch.optim.Adam))

JOBS = {
    "r2b": r2b,
    "r2c": r2c,
    "r3a": r3a,
    "r3e": partial(two_layer, optimizer=SGD),
    "r3f": partial(two_layer, optimizer=ADAM),
    "r5e": r5e,
    "mapped": mapped,
    "cnn": cnn,
    "sweep_r2b": sweep_r2b,
    "sweep_mlp": sweep_mlp,
    "cold": lambda steps: process.program(FIRST_STEP),
    "mnist_99": lambda steps: process.mnist_99(process.PEERS / "mnist_99_torch.py"),
}
