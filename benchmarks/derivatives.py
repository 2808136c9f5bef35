"""`python -m benchmarks.derivatives`: the derivative of a training run, its time and peak memory.

R5e (MNIST 784–200–10, batches of 100, descent at rate 0.05), differentiated by its rate, its
initial parameters or a weight for each of its 60,000 rows. Every peer is a process of its own; they
take turns, and the table has medians of the rounds. Memory is what a program of JAX's reserves
beside its arguments, and what a process of PyTorch's grew by. PyTorch's threads wait for each other
by spinning: on a machine that does other work, too, its times mean nothing.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial

import numpy as np

from benchmarks import problems

BATCH, RATE, ROWS = 100, 0.05, 60_000
BY = "rate", "params", "weights"
TORCH_STEPS = 600  # 2.4 MB a step


def inputs():
    """Images and labels, those to judge by, initial parameters, weights of the rows."""
    x, y = problems.mnist()
    return (x, y), (x[:1000], y[:1000]), problems.mlp(), np.ones(ROWS, np.float32)


def order(steps):
    draw = np.random.default_rng(0)
    epochs = -(-steps * BATCH // ROWS)
    rows = np.concatenate([draw.permutation(ROWS) for _ in range(epochs)])
    return rows[: steps * BATCH].reshape(steps, BATCH).astype(np.int32)


def jax_loss(params, batch):
    import jax

    images, labels, weights = batch
    w1, b1, w2, b2 = params
    x = (images.reshape(-1, 784) / 255 - 0.5) / 0.5
    logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
    chosen = jax.nn.one_hot(labels, 10)
    losses = jax.nn.logsumexp(logits, axis=1) - (logits * chosen).sum(1)
    return (losses * weights).mean()


def jax_job(run, by):
    """`run(rate, params, data)` to final parameters: its validation loss, differentiated."""
    import jax
    import jax.numpy as jnp

    train, valid, params, weights = inputs()
    train, valid, params, weights = jax.device_put((train, valid, params, weights))

    def final(rate, params, weights):
        return jax_loss(run(rate, params, (*train, weights)), (*valid, jnp.ones(1000)))

    arguments = jnp.float32(RATE), params, weights
    if by == "forward":
        function = jax.jit(lambda *a: jax.jvp(lambda rate: final(rate, *a[1:]), a[:1], (1.0,)))
    elif by == "run":
        function = jax.jit(final)
    else:
        function = jax.jit(jax.grad(final, BY.index(by)))
    program = function.lower(*arguments).compile()
    memory = program.memory_analysis().temp_size_in_bytes / 2**20
    return lambda: jax.block_until_ready(program(*arguments)), memory


def fgd(by, steps, max_memory=None):
    import fgd

    def run(rate, params, data):
        step = fgd.train_step(jax_loss, fgd.sgd(rate))
        start = step.init(params)
        return fgd.fit(step, start, data, batch_size=BATCH, num_steps=steps, max_memory=max_memory)[
            0
        ].params

    return jax_job(run, by)


def hand_written(by, steps, checkpoint=False):
    import jax

    rows, block = order(steps), int(steps**0.5)
    while steps % block:
        block -= 1

    def run(rate, params, data):
        def step(params, rows):
            batch = jax.tree.map(lambda x: x[rows], data)
            grads = jax.grad(jax_loss)(params, batch)
            return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

        def steps_of_a_block(params, rows):
            return jax.lax.scan(step, params, rows)

        if not checkpoint:
            return jax.lax.scan(step, params, jax.numpy.asarray(rows))[0]
        blocks = jax.numpy.asarray(rows.reshape(-1, block, BATCH))
        return jax.lax.scan(jax.checkpoint(steps_of_a_block), params, blocks)[0]

    return jax_job(run, by)


def torch_parts():
    import torch
    from torch.nn.functional import cross_entropy, relu

    train, valid, params, weights = inputs()
    images, labels = (torch.tensor(x) for x in train)
    valid = *(torch.tensor(x) for x in valid), torch.ones(1000)

    def loss_fn(params, images, labels, weights):
        w1, b1, w2, b2 = params
        x = (images.reshape(-1, 784) / 255 - 0.5) / 0.5
        logits = relu(x @ w1 + b1) @ w2 + b2
        return (cross_entropy(logits, labels.long(), reduction="none") * weights).mean()

    arguments = torch.tensor(RATE), [torch.tensor(p) for p in params], torch.tensor(weights)
    return torch, images, labels, valid, loss_fn, arguments


def descend(params, grads, rate):
    return [p - rate * g for p, g in zip(params, grads, strict=True)]


def pytorch(by, steps, descend=descend):
    torch, images, labels, valid, loss_fn, arguments = torch_parts()
    rows = torch.tensor(order(steps))
    differentiate = by != "run"

    def job():
        rate, params, weights = arguments
        wanted = {"rate": [rate], "params": params, "weights": [weights], "run": []}[by]
        for x in [rate, weights]:
            x.requires_grad_(any(x is y for y in wanted))
        params = [p.detach().requires_grad_() for p in params]
        wanted = params if by == "params" else wanted
        for i in rows:
            loss = loss_fn(params, images[i], labels[i], weights[i])
            grads = torch.autograd.grad(loss, params, create_graph=differentiate)
            params = descend(params, grads, rate)
            if not differentiate:
                params = [p.detach().requires_grad_() for p in params]
        outer = loss_fn(params, *valid)
        return torch.autograd.grad(outer, wanted) if differentiate else outer.item()

    return job, None


def torch_opt(by, steps):
    from torchopt import apply_updates, sgd

    def descend(params, grads, rate):
        params, optimizer = tuple(params), sgd(rate)  # which has no state
        updates, _ = optimizer.update(grads, optimizer.init(params), inplace=False)
        return apply_updates(params, updates, inplace=False)

    return pytorch(by, steps, descend)


def torch_func(by, steps):
    torch, images, labels, valid, loss_fn, arguments = torch_parts()
    rows = torch.tensor(order(steps))
    inner = torch.func.grad(loss_fn)

    def final(rate, params, weights):
        for i in rows:
            grads = inner(params, images[i], labels[i], weights[i])
            params = descend(params, grads, rate)
        return loss_fn(params, *valid)

    function = torch.func.grad(final, argnums=BY.index(by)) if by in BY else final
    return lambda: function(*arguments), None


def bound(steps):
    """Bytes for √steps: enough for one level of blocks, too little for all steps."""
    return int(0.95e6 * steps**0.5)


PEERS = {
    "fgd, the run alone": lambda by, steps: fgd("run", steps),
    "fgd": partial(fgd, max_memory=2**34),
    "fgd, √steps": lambda by, steps: fgd(by, steps, bound(steps)),
    "fgd, forward mode": lambda by, steps: fgd("forward", steps),
    "hand-written JAX": hand_written,
    "hand-written JAX, jax.checkpoint": partial(hand_written, checkpoint=True),
    "PyTorch, the run alone": lambda by, steps: pytorch("run", steps),
    "PyTorch, create_graph": pytorch,
    "TorchOpt": torch_opt,
    "torch.func": torch_func,
}


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(peer, by, steps):
    """Answers each line of its input with the seconds of a job, and the last with its memory."""
    job, memory = PEERS[peer](by, steps)
    before = megabytes()
    job()
    for _ in sys.stdin:
        begin = time.perf_counter()
        job()
        print(f"#{time.perf_counter() - begin}", flush=True)
    print(f"#{megabytes() - before if memory is None else memory}", flush=True)


def start(peer, by, steps):
    command = [sys.executable, "-m", "benchmarks.derivatives", "--work", peer, by, str(steps)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process):
    for line in process.stdout:
        if line.startswith("#"):
            return json.loads(line[1:])
    raise SystemExit(f"{process.args} ended early")


def measure(by, steps, rounds, names):
    peers = {name: start(name, by, steps) for name in names}
    times = {name: [] for name in peers}
    for _ in range(rounds):
        for name, process in peers.items():
            process.stdin.write("\n")
            process.stdin.flush()
            times[name].append(answer(process))
    for process in peers.values():
        process.stdin.close()
    memory = {name: answer(process) for name, process in peers.items()}
    base = statistics.median(times[names[0]])
    print(f"\n### By {by}, {steps:,} steps\n\n| | ms, median | least | × the run | MB |")
    print("|---|--:|--:|--:|--:|")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        cells = f"{1e3 * middle:,.0f} | {1e3 * min(seconds):,.0f} | {middle / base:.2f}"
        print(f"| {name} | {cells} | {memory[name]:,.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--by", nargs="*", default=list(BY), choices=BY)
    parser.add_argument("--steps", nargs="*", type=int, default=[100, 600, 6000])
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        peer, by, steps = args.work
        return work(peer, by, int(steps))
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "torchopt"))
    for by in args.by:
        for steps in args.steps:
            names = [
                name
                for name in PEERS
                if not (name.endswith("forward mode") and by != "rate")
                and ("orch" not in name or (has_torch and steps <= TORCH_STEPS))
            ]
            measure(by, steps, args.rounds, names)


if __name__ == "__main__":
    main()
