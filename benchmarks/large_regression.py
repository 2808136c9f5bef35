"""R2c's step, all of 100,000 points: `fit`, `fit` with plain sums, and PyTorch eager.

    python benchmarks/large_regression.py [steps] [rounds]

Interleaved rounds in one process; medians in µs a step, after a warm-up that compiles. Run it on an
idle machine: PyTorch's threads wait for each other. On two idle CPU cores, `fit` took 0.34–0.44 of
PyTorch's time (235–274 µs a step) and with plain sums 0.052–0.055, an eighteenth.

On CPU, XLA turns a sum over more than 32 values into a tree of sums over 32. A tree is not fused
with what makes its values, so a step is six passes: three that write 100,000 products and three
that add them up. Without the tree each sum is one fused pass: three in all, and nothing written.
The price is rounding, which grows with the points; every job's loss is shown beside float64's.
"""

import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

import fgd

ROWS, RATE = 100_000, 1e-4
PLAIN_SUMS = {"xla_disable_hlo_passes": "tree_reduction_rewriter"}


def fgd_fit(data, params, steps, options=None):
    model = fgd.models.linear(1, 1)
    step = fgd.train_step(fgd.supervised(model.apply, fgd.losses.mse), fgd.sgd(RATE))
    state = step.init(params)
    run = jax.jit(partial(fgd.fit, step, num_steps=steps), compiler_options=options)
    return lambda: np.asarray(run(state, data)[1]["loss"])


def pytorch_eager(data, params, steps):
    x, y = (torch.tensor(np.asarray(rows)) for rows in data)

    def run():
        net = torch.nn.Linear(1, 1)
        with torch.no_grad():
            net.weight.copy_(torch.tensor(np.asarray(params["w"])))
            net.bias.copy_(torch.tensor(np.asarray(params["b"])))
        optimizer = torch.optim.SGD(net.parameters(), RATE)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).numpy()

    return run


def float64_losses(data, params, steps):
    """Every loss, from the means of 1, x, y, x², xy and y²."""
    x, y = (np.asarray(rows, float)[:, 0] for rows in data)
    z, w = np.stack([x, np.ones_like(x)]), np.array([params["w"].item(), params["b"].item()])
    curvature, target, square = z @ z.T / ROWS, z @ y / ROWS, np.mean(y**2)
    losses = []
    for _ in range(steps):
        losses.append(w @ curvature @ w - 2 * target @ w + square)
        w = w - RATE * 2 * (curvature @ w - target)
    return np.array(losses)


def main(steps: int = 1000, rounds: int = 7) -> None:
    key, init_key = jax.random.split(jax.random.key(0))
    x = jnp.linspace(-3, 3, ROWS)[:, None]
    data = x, x + 1.2 * jax.random.uniform(key, (ROWS, 1))
    params = fgd.models.linear(1, 1).init(init_key)
    expected = float64_losses(data, params, steps)
    jobs = {
        "fgd.fit": fgd_fit(data, params, steps),
        "fgd.fit, plain sums": fgd_fit(data, params, steps, PLAIN_SUMS),
        "PyTorch eager": pytorch_eager(data, params, steps),
    }
    times = {name: [] for name in jobs}
    errors = {}
    for turn in range(rounds + 1):
        names = list(jobs)
        for name in names[turn % 3 :] + names[: turn % 3]:  # each follows each
            start = time.perf_counter()
            losses = jobs[name]()
            seconds = time.perf_counter() - start
            errors[name] = abs(losses - expected).max()
            if turn:
                times[name].append(1e6 * seconds / steps)
    theirs = statistics.median(times["PyTorch eager"])
    print(f"{steps:,} steps, {rounds} rounds, {jax.devices()[0].device_kind}")
    for name, samples in times.items():
        median = statistics.median(samples)
        print(
            f"{name:20} {median:7.1f} µs a step (fastest {min(samples):6.1f}), "
            f"{median / theirs:5.3f} of PyTorch's, losses within {errors[name]:.1e} of float64"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
