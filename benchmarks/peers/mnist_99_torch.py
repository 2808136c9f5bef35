"""The recipe of `examples/mnist_99.py` in PyTorch: `python mnist_99_torch.py [seed]`."""

import gzip
import os
import sys
import time
from pathlib import Path

BEGAN = time.perf_counter()
BATCH = 192


def read(name):
    """An IDX file of MNIST, gzipped or not, as a tensor of bytes."""
    import numpy as np
    import torch

    home = Path(os.environ["FGD_DATA_DIR"])
    paths = [folder / (name + end) for folder in (home, home / "mnist") for end in ("", ".gz")]
    path = next(path for path in paths if path.exists())
    content = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
    offset = 16 if "images" in name else 8
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=offset).copy())


def images(name):
    return (read(name).reshape(-1, 1, 28, 28).float() / 255 - 0.5) / 0.5


def train(seed):
    import torch
    from torch import nn

    torch.manual_seed(seed)
    x, y = images("train-images-idx3-ubyte"), read("train-labels-idx1-ubyte").long()
    test_x, test_y = images("t10k-images-idx3-ubyte"), read("t10k-labels-idx1-ubyte").long()
    layout = torch.channels_last
    x, test_x = x.to(memory_format=layout), test_x.to(memory_format=layout)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU()),
        *(nn.Conv2d(16, 48, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1200, 256), nn.ReLU(), nn.Linear(256, 10)),
    ).to(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), 0.01, betas=(0.7, 0.9))
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps, cycle_momentum=False)
    for rows in torch.randperm(len(x)).split(BATCH)[:steps]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = sum(
            int((net(a).argmax(1) == b).sum())
            for a, b in zip(test_x.split(1000), test_y.split(1000), strict=True)
        )
    print(f"test accuracy      {right / len(test_x):.4f}")
    print(f"from the start     {time.perf_counter() - BEGAN:.2f} s")


if __name__ == "__main__":
    train(int(sys.argv[1]) if sys.argv[1:] else 0)
