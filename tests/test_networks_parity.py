"""examples/two_layer_net.py and autograd.py (R2a, R3, R4c, R4d) against PyTorch 2.13, step by step.

Data and first parameters are NumPy's; the golden values let the test speak where torch is absent.
"""

from functools import cache, partial
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1] / "examples")
    import autograd
    import two_layer_net

N, D_IN, H, D_OUT = 64, 1000, 100, 10
DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(N, D_IN)), DRAW.normal(size=(N, D_OUT))
GAUSSIAN = [DRAW.normal(size=(D_IN, H)), DRAW.normal(size=(H, D_OUT))]
LINEAR = [  # weight, bias, weight, bias
    DRAW.uniform(-(n_in**-0.5), n_in**-0.5, size)
    for n_in, n_out in ((D_IN, H), (H, D_OUT))
    for size in ((n_in, n_out), n_out)
]

# The first parameters in each style's own form.
PARAMS = dict.fromkeys(("raw", "autograd", "custom-relu"), tuple(GAUSSIAN)) | {
    "sequential": [{"w": LINEAR[0], "b": LINEAR[1]}, {"w": LINEAR[2], "b": LINEAR[3]}],
    "module": {
        "linear1": {"kernel": LINEAR[0], "bias": LINEAR[1]},
        "linear2": {"kernel": LINEAR[2], "bias": LINEAR[3]},
    },
}
PARAMS["adam"] = PARAMS["sequential"]

# PyTorch's losses at steps 0, 100 and 499, in float64.
GOLDEN_RAW = 31519525.119874872, 308.7300587166771, 4.851445650129926e-07
GOLDEN_SGD = 659.3875645190071, 2.7115498221238097, 3.5293910267509166e-06
GOLDEN = dict.fromkeys(("raw", "autograd", "custom-relu"), GOLDEN_RAW) | {
    "sequential": GOLDEN_SGD,
    "adam": (659.3875645190071, 53.262703244147815, 1.3633072496282751e-06),
    "module": GOLDEN_SGD,
}

# Losses of float64 agree to 1e-10. Where predictions of size 1 match their targets to 5 digits,
# rounding them (1e-16 each) leaves 5e-10 of a loss of 5e-7: there the absolute bound is what holds.
FLOAT64 = {"rtol": 1e-10, "atol": 5e-15}

# float32 against PyTorch's float64: losses (relative, absolute) and parameters (absolute). Over
# three seeds PyTorch's own float32 run is off by what stands behind each, fgd's by as much:
FLOAT32 = dict.fromkeys(
    ("raw", "autograd", "custom-relu"),
    (1e-5, 4e-3, 4e-5),  # 1e-5 and 1.1e-3, parameters 1.4e-5: it stays near 4e-5, float64 falls on
) | {
    "sequential": (1e-5, 2e-8, 2e-6),  # 1e-5 and 6e-9, parameters 6e-7
    "adam": (3e-3, 3e-8, 5e-4),  # 7e-4, parameters 1e-4: it divides a gradient by its own size
    "module": (1e-5, 2e-8, 2e-6),
}


@cache
def ours(style, dtype):
    """500 steps of the example's own style: losses [500], parameters as PyTorch orders them."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        state = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS[style])
        batch = jnp.asarray(X, dtype), jnp.asarray(Y, dtype)
        step = two_layer_net.STYLES[style][1]
        if isinstance(step, fgd.Step):
            state, history = fgd.fit(step, step.init(state), batch, num_steps=500)
            state = state.params
        else:
            state, history = two_layer_net.repeat(step, state, batch, num_steps=500)
        assert {x.dtype.name for x in jax.tree.leaves((state, history))} == {dtype}
        if style == "module":
            state = [state["linear1"], state["linear2"]]
        if isinstance(state, list):
            state = [
                layer[k] for layer in state for k in ("w", "kernel", "b", "bias") if k in layer
            ]
        return np.asarray(history["loss"], float), [np.asarray(p, float) for p in state]


def hand_written_relu(torch):
    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            grad_input = grad_output.clone()
            grad_input[x < 0] = 0
            return grad_input

    return Relu.apply


@cache
def theirs(style):
    """The same in PyTorch, in float64, as its users write it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores they wait for one another, a hundred times over
    x, y = torch.tensor(X), torch.tensor(Y)
    if style in ("raw", "autograd", "custom-relu"):
        params = [torch.tensor(p, requires_grad=True) for p in GAUSSIAN]
        relu = hand_written_relu(torch) if style == "custom-relu" else torch.relu

        def net(x):
            return relu(x @ params[0]) @ params[1]

    else:
        linear = [torch.nn.Linear(*shape, dtype=x.dtype) for shape in ((D_IN, H), (H, D_OUT))]
        params = [p for layer in linear for p in layer.parameters()]
        with torch.no_grad():
            for p, value in zip(params, LINEAR, strict=True):
                p.copy_(torch.tensor(value.T.copy()))

        class TwoLayerNet(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear1, self.linear2 = linear

            def forward(self, x):
                return self.linear2(self.linear1(x).clamp(min=0))

        sequential = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1])
        net = TwoLayerNet() if style == "module" else sequential

    optimizer = {
        "adam": lambda: torch.optim.Adam(params, lr=1e-4),
        "module": lambda: torch.optim.SGD(params, lr=1e-4),
    }.get(style, lambda: None)()
    rate = 1e-4 if style == "sequential" else 1e-6
    losses = []
    for _ in range(500):
        loss = (net(x) - y).square().sum()
        losses.append(loss.item())
        for p in params:
            p.grad = None
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        else:
            with torch.no_grad():
                for p in params:
                    p -= rate * p.grad
    torch.set_num_threads(threads)
    bare = style in ("raw", "autograd", "custom-relu")
    return np.array(losses), [p if bare else p.T for p in (p.detach().numpy() for p in params)]


@pytest.mark.parametrize("style", two_layer_net.STYLES)
def test_golden_losses(style):
    losses, _ = ours(style, "float64")
    np.testing.assert_allclose(losses[[0, 100, 499]], GOLDEN[style], **FLOAT64)


@pytest.mark.parametrize("style", two_layer_net.STYLES)
def test_float64_equals_torch_at_every_step(style):
    pytest.importorskip("torch")
    (losses, params), (expected, final) = ours(style, "float64"), theirs(style)
    np.testing.assert_allclose(losses, expected, **FLOAT64)
    for p, q in zip(params, final, strict=True):
        assert p.shape == q.shape
        np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("style", two_layer_net.STYLES)
def test_float32_is_as_close_as_torchs(style):
    pytest.importorskip("torch")
    (losses, params), (expected, final) = ours(style, "float32"), theirs(style)
    rtol, atol, params_atol = FLOAT32[style]
    np.testing.assert_allclose(losses, expected, rtol=rtol, atol=atol)
    for p, q in zip(params, final, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=params_atol)


def test_styles_draw_what_torch_draws():
    """Gaussian weights for the bare arrays; U(−1/√in, 1/√in), biases included, for the layers."""
    for style, (init, _) in two_layer_net.STYLES.items():
        leaves = [np.ravel(p) for p in jax.tree.leaves(init(jax.random.key(0)))]
        assert sorted(p.size for p in leaves) in ([1000, 100_000], [10, 100, 1000, 100_000])
        for p in leaves:
            n_in = {100_000: D_IN, 100: D_IN, 1000: H, 10: H}[p.size]
            deviation = 1 if len(leaves) == 2 else (3 * n_in) ** -0.5
            assert abs(p.std() / deviation - 1) < 3 * p.size**-0.5, style
            assert len(leaves) == 2 or 0.8 < abs(p).max() * n_in**0.5 <= 1, style


KINKS = np.array([-2.0, -1e-300, -0.0, 0.0, 1e-300, 3.0])
WEIGHTS = np.array([1.0, -2.0, 3.0, -4.0, 5.0, -6.0])


def test_hand_written_backward_pass(x64):
    """R3b: zero below 0; at 0, either sign of it, and above, what comes from behind passes."""
    gradient = np.where(KINKS < 0, 0, WEIGHTS)
    for relu in (autograd.relu, jax.jit(autograd.relu), jax.vmap(autograd.relu)):
        value, backward = jax.vjp(relu, jnp.asarray(KINKS))
        np.testing.assert_array_equal(value, np.maximum(KINKS, 0))
        np.testing.assert_array_equal(backward(jnp.asarray(WEIGHTS))[0], gradient)


def test_hand_written_backward_pass_equals_torchs():
    torch = pytest.importorskip("torch")
    x = torch.tensor(KINKS, requires_grad=True)
    y = hand_written_relu(torch)(x)
    y.backward(torch.tensor(WEIGHTS))
    with jax.enable_x64(True):
        value, backward = jax.vjp(autograd.relu, jnp.asarray(KINKS))
        np.testing.assert_array_equal(value, y.detach().numpy())
        np.testing.assert_array_equal(backward(jnp.asarray(WEIGHTS))[0], x.grad.numpy())


def test_hand_written_backward_pass_equals_differences():
    """Away from 0, inside another function."""
    points = jnp.array([-3.0, -0.5, -0.01, 0.01, 0.7, 2.0])
    fgd.testing.check_gradients(lambda x, _: jnp.sum(jnp.sin(autograd.relu(x) * x)), points, None)


def test_conventions_at_kinks(x64):
    """Away from its kinks clip is torch's clamp; on them jax takes the middle, torch passes all."""
    torch = pytest.importorskip("torch")
    x = torch.tensor([-2.0, -1.0, 0.3, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    torch.clamp(x, -1, 1).sum().backward()
    clamp = autograd.slopes(autograd.clamp, jnp.asarray(x.detach().numpy()))
    np.testing.assert_array_equal(x.grad, [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(clamp, [0, 0.5, 1, 0.5, 0])
    zero = torch.zeros(1, requires_grad=True)
    torch.relu(zero).backward()
    assert zero.grad.item() == jax.grad(jax.nn.relu)(0.0) == 0


def test_norm_and_its_gradients(x64):
    """R2a: y, ∂y/∂x, and ∂y/∂z, for which torch needs retain_grad()."""
    torch = pytest.importorskip("torch")
    x = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    z = 4 * x
    z.retain_grad()
    y = z.norm()
    y.backward()
    value, gradient = jax.value_and_grad(lambda x: jnp.linalg.norm(4 * x))(jnp.ones(2))
    second_half = jax.grad(jnp.linalg.norm)(4 * jnp.ones(2))
    np.testing.assert_allclose(value, y.item(), rtol=1e-14)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-14)
    np.testing.assert_allclose(second_half, z.grad, rtol=1e-14)


def test_stop_gradient_is_detach(x64):
    """R4c, in a function where cutting the wrong factor would show."""
    torch = pytest.importorskip("torch")
    x = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    (x.sin() * (x**2).detach()).sum().backward()
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(x) * jax.lax.stop_gradient(x**2)))(
        jnp.asarray(x.detach().numpy())
    )
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-14)


def test_no_key_is_eval(x64):
    """R4d: without a key a model with dropout is torch's in eval(); with one, train()'s in mean."""
    torch = pytest.importorskip("torch")
    weight, rows = np.random.default_rng(0).normal(size=(6, 3)), X[:4, :6]
    theirs = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(6, 3, bias=False)).double()
    with torch.no_grad():
        theirs[1].weight.copy_(torch.tensor(weight.T.copy()))
        expected = theirs.eval()(torch.tensor(rows)).numpy()

    model = fgd.models.from_flax(
        lambda rngs: nnx.Sequential(
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(6, 3, use_bias=False, param_dtype=float, rngs=rngs),
        ),
        jnp.asarray(rows),
    )
    params = jax.tree.map(lambda _: jnp.asarray(weight), model.init(jax.random.key(0)))
    apply = partial(model.apply, params, jnp.asarray(rows))
    np.testing.assert_allclose(apply(), expected, rtol=1e-12)

    keys = jax.random.split(jax.random.key(1), 4000)
    draws = np.asarray(jax.vmap(lambda key: apply(key=key))(keys))
    np.testing.assert_array_equal(apply(key=keys[7]), apply(key=keys[7]))  # same key, same mask
    error = draws.std(axis=0) / 4000**0.5
    assert (error > 0).all()
    assert (abs(draws.mean(axis=0) - expected) < 5 * error).all()
