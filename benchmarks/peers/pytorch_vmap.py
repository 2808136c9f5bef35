"""torch.func.vmap: networks side by side, as PyTorch's tutorial on ensembles maps them."""

import torch
from torch.func import grad_and_value, vmap
from torch.nn.functional import cross_entropy, mse_loss, relu

from benchmarks import problems
from benchmarks.peers.pytorch import mnist, tensors


def stacked(params, runs):
    return [p.expand(runs, *p.shape).clone() for p in tensors(*params)]


def sweep_mlp(steps):
    images, labels = mnist()
    images = images.reshape(-1, 784)
    rates = torch.logspace(-3, -1, 16)

    def loss_fn(params, x, y):
        w1, b1, w2, b2 = params
        return cross_entropy(relu(x @ w1 + b1) @ w2 + b2, y)

    def step(params, rate, x, y):
        grads, loss = grad_and_value(loss_fn)(params, x, y)
        return [p - rate * g for p, g in zip(params, grads, strict=True)], loss

    step_of_all = vmap(step, in_dims=(0, 0, None, None))

    def run():
        params = stacked(problems.mlp(), 16)
        for rows in torch.randperm(len(labels)).split(100)[: steps // 16]:
            params, losses = step_of_all(params, rates, images[rows], labels[rows])
        return losses[0].item()

    return run


def sweep_border(runs):
    """All of them at once, which was faster than 512 or 2,048 at a time."""
    x, y, *start = problems.border()
    x, y = tensors(x, y)
    rates = tensors(*problems.rates(runs))

    def loss_fn(params):
        first, last = params
        return mse_loss(torch.tanh(x @ first / 4) @ last / 16, y)

    def step(params, rates):
        grads, loss = grad_and_value(loss_fn)(params)
        return [p - r * g for p, r, g in zip(params, rates, grads, strict=True)], loss

    step_of_all = vmap(step)

    def run():
        params = stacked(start, runs)
        for _ in range(500):
            params, losses = step_of_all(params, rates)
        return losses[0].item()

    return run


JOBS = {"sweep_mlp": sweep_mlp, "sweep_border": sweep_border}
