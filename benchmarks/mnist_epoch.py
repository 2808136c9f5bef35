"""One MNIST epoch (R5e): `fit` beside a hand-written scan that does not shuffle, and PyTorch.

    FGD_DATA_DIR=… python benchmarks/mnist_epoch.py [rounds]

Interleaved rounds in one process; medians in ms, after a warm-up that compiles.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

import fgd

BATCH, RATE = 100, 1e-2


def fgd_fit(mnist, model, params):
    loss_fn = fgd.supervised(model.apply, fgd.losses.cross_entropy, preprocess=fgd.data.normalize)
    step = fgd.train_step(loss_fn, fgd.sgd(RATE))
    state = step.init(params)

    def epoch():
        _, history = fgd.fit(step, state, mnist.train, batch_size=BATCH, num_epochs=1)
        return float(history["loss"].mean())

    return epoch


def hand_written_scan(mnist, params):
    def loss_fn(params, images, labels):
        x = (images.reshape(BATCH, 784).astype(jnp.float32) / 255 - 0.5) / 0.5
        (w1, b1), (w2, b2) = ((layer["w"], layer["b"]) for layer in params)
        logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
        chosen = jnp.sum(jax.nn.one_hot(labels, 10) * logits, axis=-1)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

    @jax.jit
    def run(params, images, labels):
        def step(params, start):
            batch = [jax.lax.dynamic_slice_in_dim(x, start, BATCH) for x in (images, labels)]
            loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
            return jax.tree.map(lambda p, g: p - RATE * g, params, grads), loss

        return jax.lax.scan(step, params, jnp.arange(0, len(images), BATCH))

    return lambda: float(run(params, *mnist.train)[1].mean())


def pytorch_in_memory(mnist, params):
    images, labels = (torch.tensor(np.asarray(rows)) for rows in mnist.train)
    x, y = (images.reshape(-1, 784).float() / 255 - 0.5) / 0.5, labels.long()

    def epoch():
        net = torch.nn.Sequential(
            torch.nn.Linear(784, 200), torch.nn.ReLU(), torch.nn.Linear(200, 10)
        )
        with torch.no_grad():
            for layer, p in zip((net[0], net[2]), params, strict=True):
                layer.weight.copy_(torch.tensor(np.asarray(p["w"]).T))
                layer.bias.copy_(torch.tensor(np.asarray(p["b"])))
        optimizer = torch.optim.SGD(net.parameters(), RATE)
        losses = []
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    return epoch


def main(rounds: int = 9) -> None:
    mnist = fgd.data.mnist("files")
    model = fgd.models.mlp([784, 200, 10])
    params = model.init(jax.random.key(1))
    jobs = {
        "fgd.fit": fgd_fit(mnist, model, params),
        "hand-written scan, unshuffled": hand_written_scan(mnist, params),
        "PyTorch, in memory": pytorch_in_memory(mnist, params),
    }
    times = {name: [] for name in jobs}
    first = {}
    for turn in range(rounds + 1):
        names = list(jobs)
        for name in names[turn % 3 :] + names[: turn % 3]:  # each follows each
            job = jobs[name]
            start = time.perf_counter()
            loss = job()
            seconds = time.perf_counter() - start
            if turn == 0:
                first[name] = seconds, loss
            else:
                times[name].append(seconds)
    ours = statistics.median(times["fgd.fit"])
    for name, samples in times.items():
        median, (seconds, loss) = statistics.median(samples), first[name]
        print(
            f"{name:30} {1e3 * median:6.1f} ms (first {seconds:4.2f} s), "
            f"fgd takes {ours / median:.2f} × that, mean loss {loss:.4f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
