"""PyTorch 2.13 as the oracle, step by step (pip install 'fgd[torch]')."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd

torch = pytest.importorskip("torch")

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(40, 6)) * [1, 1, 1, 1, 1, 0], DRAW.normal(size=(40, 2))
LABELS = DRAW.integers(0, 2, 40)


def dampened(params, lr):
    """torch sets the first buffer to the gradient itself; the averaging form starts from zero."""
    optimizer = torch.optim.SGD(params, lr, momentum=0.9, dampening=0.1)
    optimizer.param_groups[0]["dampening"] = 0.9
    for p in params:
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


OPTIMIZERS = {
    "sgd": (fgd.sgd, torch.optim.SGD),
    "momentum": (fgd.momentum, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    "nesterov": (
        lambda lr: fgd.momentum(lr, nesterov=True),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    ),
    "averaging": (lambda lr: fgd.momentum(lr, averaging=True), dampened),
    "adagrad": (fgd.adagrad, torch.optim.Adagrad),
    "rmsprop": (fgd.rmsprop, torch.optim.RMSprop),
    "adam": (fgd.adam, torch.optim.Adam),
    "adam, other constants": (
        lambda lr: fgd.adam(lr, 0.7, 0.9, 1e-3),
        lambda p, lr: torch.optim.Adam(p, lr, betas=(0.7, 0.9), eps=1e-3),
    ),
}


def network(params, dtype):
    """torch's Linear, ReLU, Linear with fgd's parameters."""
    layers = []
    for p in params:
        layer = torch.nn.Linear(*p["w"].shape, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.asarray(p["w"]).T.copy()))
            layer.bias.copy_(torch.tensor(np.asarray(p["b"])))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hundred_steps(name, x64):
    """A two-layer net, float64, cross-entropy: every loss and the final parameters to 1e-10."""
    ours, theirs = OPTIMIZERS[name]
    model = fgd.models.mlp([6, 5, 2])
    params = model.init(jax.random.key(0))
    data = jnp.asarray(X), jnp.asarray(LABELS)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), ours(0.01))
    state, history = fgd.fit(step, step.init(params), data, num_steps=100)

    net = network(params, torch.float64)
    optimizer = theirs(list(net.parameters()), lr=0.01)
    x, labels = torch.tensor(X), torch.tensor(LABELS)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-10)
    for layer, p in zip(net[::2], state.params, strict=True):
        np.testing.assert_allclose(p["w"], layer.weight.detach().numpy().T, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(p["b"], layer.bias.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_and_their_gradients(reduction, x64):
    pairs = [
        (fgd.losses.mse, torch.nn.functional.mse_loss, Y),
        (fgd.losses.cross_entropy, torch.nn.functional.cross_entropy, LABELS),
    ]
    for ours, theirs, target in pairs:
        pred = torch.tensor(X[:, :2], requires_grad=True)
        expected = theirs(pred, torch.tensor(target), reduction=reduction)
        expected.backward()
        value, gradient = jax.value_and_grad(
            lambda p, t, ours=ours: ours(p, t, reduction=reduction)
        )(jnp.asarray(X[:, :2]), jnp.asarray(target))
        np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
        np.testing.assert_allclose(gradient, pred.grad.numpy(), rtol=1e-12, atol=1e-15)


def test_initial_parameters_have_torchs_distribution():
    """Two-sample Kolmogorov-Smirnov on weights and biases of Linear(50, 400)."""
    from scipy.stats import ks_2samp

    torch.manual_seed(0)
    theirs = torch.nn.Linear(50, 400)
    ours = fgd.models.linear(50, 400).init(jax.random.key(0))
    for a, b in ((ours["w"], theirs.weight), (ours["b"], theirs.bias)):
        assert ks_2samp(np.ravel(a), b.detach().numpy().ravel()).pvalue > 1e-3
