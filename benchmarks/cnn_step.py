"""A training step of a network of two convolutions, in a run: `fgd.conv`, lax's own, PyTorch.

    python benchmarks/cnn_step.py [kernel size] [rounds]

28 × 28 images, 128 a batch; 32 and 64 channels, each pooled by 2, then 256 and 10 features; SGD.
Interleaved rounds in one process; medians, and the least of wall and of processor time, in ms.
"""

import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

import fgd

ROWS, STEPS, RATE = 128, 16, 0.01
LAYOUT = ("NHWC", "HWIO", "NHWC")


def lax_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def apply(conv, pool, params, x):
    x = x[..., None]
    for w, b in params[:2]:
        x = jax.nn.relu(pool(conv(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)) + b)
    (w3, b3), (w4, b4) = params[2:]
    return jax.nn.relu(x.reshape(len(x), -1) @ w3 + b3) @ w4 + b4


def in_a_run(conv, pool, params, data, steps=STEPS):
    loss_fn = fgd.supervised(partial(apply, conv, pool), fgd.losses.cross_entropy)
    step = fgd.train_step(loss_fn, fgd.sgd(RATE))
    state = step.init(params)
    run = partial(fgd.fit, step, state, data, batch_size=ROWS, num_steps=steps)
    return lambda: run()[1]["loss"].block_until_ready(), steps


def four_models(params, data):
    """One step of each of four, mapped, and of one."""
    loss_fn = fgd.supervised(
        partial(apply, fgd.conv.conv_general_dilated, fgd.conv.max_pool), fgd.losses.cross_entropy
    )
    batch = jax.tree.map(lambda x: x[:ROWS], data)

    def descend(params, _):
        gradient = jax.grad(loss_fn)(params, batch)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), None

    def run(params):
        return lax.scan(descend, params, length=4)[0]

    stacked = jax.tree.map(lambda p: jnp.stack([p] * 4), params)
    one, four = jax.jit(run), jax.jit(jax.vmap(run))
    return {
        "four models, vmap": (lambda: jax.block_until_ready(four(stacked)), 4),
        "one model": (lambda: jax.block_until_ready(one(params)), 4),
    }


def pytorch(params, data, pool_first):
    def activated(module):
        pool, relu = torch.nn.MaxPool2d(2), torch.nn.ReLU()
        return [module, pool, relu] if pool_first else [module, relu, pool]

    (w1, _), (w2, _), *dense = params
    net = torch.nn.Sequential(
        *activated(torch.nn.Conv2d(1, w1.shape[3], w1.shape[:2], padding="same")),
        *activated(torch.nn.Conv2d(w1.shape[3], w2.shape[3], w2.shape[:2], padding="same")),
        torch.nn.Flatten(),
        torch.nn.Linear(*dense[0][0].shape),
        torch.nn.ReLU(),
        torch.nn.Linear(*dense[1][0].shape),
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    images = torch.tensor(np.asarray(data[0]))[:, None].to(memory_format=torch.channels_last)
    batches = list(
        zip(images.split(ROWS), torch.tensor(np.asarray(data[1])).long().split(ROWS), strict=True)
    )

    def run():
        for x, y in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

    return run, STEPS


def main(size: int = 3, rounds: int = 7) -> None:
    draw = np.random.default_rng(0)

    def layer(*shape):
        bound = 1 / np.sqrt(np.prod(shape[:-1]))
        w, b = draw.uniform(-bound, bound, shape), np.zeros(shape[-1])
        return jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)

    params = [
        layer(size, size, 1, 32), layer(size, size, 32, 64), layer(3136, 256), layer(256, 10)
    ]  # fmt: skip
    x = jnp.asarray(draw.normal(size=(ROWS * STEPS, 28, 28)), jnp.float32)
    data = x, jnp.asarray(draw.integers(0, 10, ROWS * STEPS))
    jobs = {
        "fgd.conv": in_a_run(fgd.conv.conv_general_dilated, fgd.conv.max_pool, params, data),
        "lax": in_a_run(lax.conv_general_dilated, lax_pool, params, data, steps=2),
        "PyTorch, channels last": pytorch(params, data, pool_first=False),
        "PyTorch, pooling first": pytorch(params, data, pool_first=True),
        **four_models(params, data),
    }
    wall, cpu = ({name: [] for name in jobs} for _ in range(2))
    for turn in range(rounds + 1):
        for name, (job, steps) in jobs.items():
            began = time.perf_counter(), time.process_time()
            job()
            if turn:
                wall[name].append(1e3 * (time.perf_counter() - began[0]) / steps)
                cpu[name].append(1e3 * (time.process_time() - began[1]) / steps)
    ours = statistics.median(wall["fgd.conv"])
    for name, times in wall.items():
        median = statistics.median(times)
        print(
            f"{name:24} median {median:7.1f}, least {min(times):7.1f}, processor "
            f"{min(cpu[name]):7.1f}; {median / ours:5.2f} × fgd.conv's"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
