"""fgd.models.cnn: PyTorch's network and its initialisation, and dropout's statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import close

import fgd
from fgd.models import cnn

DRAW = np.random.default_rng(0)
NETWORKS = {  # by name: image, network, (kernel, stride, pool) of its convolutions, flat, padding
    "as it comes": (
        (12, 10),
        cnn([12, 10], [4, 6], [9, 3]),
        [(5, 1, 2), (5, 1, 2)],
        (3, 2, 6),
        "same",
    ),
    "record": (
        (14, 13, 2),
        cnn([14, 13, 2], [3, 5], [7, 6, 3], kernel_size=[5, 3], pool=[2, 1], padding="VALID"),
        [(5, 1, 2), (3, 1, 1)],
        (3, 2, 5),
        "valid",
    ),
    "strided": (
        (17, 16),
        cnn([17, 16], [3, 5], [7, 3], strides=[2, 1], pool=[1, 2], padding="VALID"),
        [(5, 2, 1), (5, 1, 2)],
        (1, 1, 5),
        "valid",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_torchs(name):
    torch = pytest.importorskip("torch")
    shape, model, layers, flat, padding = NETWORKS[name]
    params = model.init(jax.random.key(0))
    convolutions, dense = params[: len(layers)], params[len(layers) :]
    modules = []
    for p, (size, stride, pool) in zip(convolutions, layers, strict=True):
        module = torch.nn.Conv2d(*p["w"].shape[2:], size, stride, padding=padding)
        module.weight.data = torch.tensor(np.array(p["w"]).transpose(3, 2, 0, 1).copy())
        module.bias.data = torch.tensor(np.array(p["b"]))
        modules += [module, torch.nn.ReLU(), torch.nn.MaxPool2d(pool)]
    modules.append(torch.nn.Flatten())
    for i, p in enumerate(dense):
        w = np.array(p["w"])
        if i == 0:  # torch flattens channels first
            w = w.reshape(*flat, -1).transpose(2, 0, 1, 3).reshape(w.shape)
        module = torch.nn.Linear(*w.shape)
        module.weight.data, module.bias.data = torch.tensor(w.T.copy()), torch.tensor(p["b"] + 0)
        modules += [module, torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])

    height, width, depth = (*shape, 1)[:3]
    x = DRAW.normal(size=(4, height, width, depth)).astype(np.float32)
    labels = np.array([0, 2, 1, 1])
    logits = net(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    images = jnp.asarray(x.reshape(4, *shape))
    np.testing.assert_allclose(
        model.apply(params, images), logits.detach().numpy(), rtol=1e-5, atol=1e-5
    )
    loss_fn = fgd.supervised(model, fgd.losses.cross_entropy)
    gradient = jax.grad(loss_fn)(params, (images, jnp.asarray(labels)))
    linear = [module for module in net if isinstance(module, torch.nn.Linear)]
    first = linear[0].weight.grad.numpy().T
    expected = [
        {"w": m.weight.grad.numpy().transpose(2, 3, 1, 0), "b": m.bias.grad.numpy()}
        for m in net
        if isinstance(m, torch.nn.Conv2d)
    ] + [{"w": m.weight.grad.numpy().T, "b": m.bias.grad.numpy()} for m in linear]
    expected[len(layers)]["w"] = (
        first.reshape(flat[2], *flat[:2], -1).transpose(1, 2, 0, 3).reshape(first.shape)
    )
    close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_strides_with_padding_around():
    """PyTorch has none such. Where the linear layer adds all, the sum of lax's convolution."""
    model = cnn([9, 10], [3], [1], kernel_size=4, strides=2, pool=1, activation=lambda x: x)
    (layer, last), x = model.init(jax.random.key(0)), jnp.asarray(DRAW.normal(size=(4, 9, 10, 1)))
    assert last["w"].shape == (5 * 5 * 3, 1)
    params = [{"w": layer["w"], "b": jnp.zeros(3)}, {"w": jnp.ones((75, 1)), "b": jnp.zeros(1)}]
    layout = ("NHWC", "HWIO", "NHWC")
    theirs = jax.lax.conv_general_dilated(x, layer["w"], (2, 2), "SAME", dimension_numbers=layout)
    np.testing.assert_allclose(model.apply(params, x)[:, 0], theirs.sum((1, 2, 3)), rtol=1e-4)


def test_initial_parameters_have_torchs_distribution():
    """Two-sample Kolmogorov-Smirnov on weights and biases of Conv2d(5, 400, 3)."""
    torch = pytest.importorskip("torch")
    from scipy.stats import ks_2samp

    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(5, 400, 3)
    ours = cnn([4, 4, 5], [400], [2], kernel_size=3).init(jax.random.key(0))
    assert [p["w"].shape for p in ours] == [(3, 3, 5, 400), (1600, 2)]
    for a, b in ((ours[0]["w"], theirs.weight), (ours[0]["b"], theirs.bias)):
        assert ks_2samp(np.ravel(a), b.detach().numpy().ravel()).pvalue > 1e-3


def test_dropout():
    """Of outputs that are the mean hidden feature: unbiased, of variance h²·p/(1 − p)/n."""
    n, p = 500, 0.3
    model = cnn([4, 4], [2], [n, 1], dropout=p)
    params = model.init(jax.random.key(0))
    params[-1] = {"w": jnp.full((n, 1), 1 / n), "b": jnp.zeros(1)}
    params[-2] = {"w": jnp.zeros((8, n)), "b": jnp.ones(n)}  # every hidden feature is 1
    x = jnp.ones((1, 4, 4))
    np.testing.assert_allclose(model.apply(params, x), 1, rtol=1e-5)  # no key: evaluation mode
    keys = jax.random.split(jax.random.key(1), 2000)
    draws = np.ravel(jax.vmap(lambda key: model.apply(params, x, key=key))(keys))
    spread = np.sqrt(p / (1 - p) / n)
    assert abs(draws.mean() - 1) < 4 * spread / np.sqrt(len(draws))
    np.testing.assert_allclose(draws.std(), spread, rtol=4 / np.sqrt(2 * len(draws)))
    kept = draws * n * (1 - p)
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-2)  # whole features, scaled
    same = [model.apply(params, x, key=jax.random.key(i)) for i in (0, 0)]
    np.testing.assert_array_equal(*same)

    plain = cnn([4, 4], [2], [n, 1])
    np.testing.assert_array_equal(
        plain.apply(params, x, key=jax.random.key(0)), plain.apply(params, x)
    )


def test_layers_of_dropout_draw_apart():
    model = cnn([2, 2], [1], [64, 64, 64], dropout=0.5, activation=lambda x: x)
    params = model.init(jax.random.key(0))
    one = {"w": jnp.eye(64), "b": jnp.zeros(64)}
    params[1:] = [{"w": jnp.zeros((1, 64)), "b": jnp.ones(64)}, one, one]
    # Twice kept with probability 1/4; drawn alike, it would be 1/2.
    keys = jax.random.split(jax.random.key(1), 200)
    draws = jax.vmap(lambda key: model.apply(params, jnp.ones((1, 2, 2)), key=key))(keys)
    assert abs(float((draws > 0).mean()) - 0.25) < 0.02


def test_it_trains(x64):
    """Stripes, lying or standing; through fit, with dropout, in float64 too."""
    label = DRAW.integers(0, 2, 60)
    stripes = np.where(np.arange(8) % 2, 1.0, -1.0) * np.ones((60, 8, 8))
    x = np.where(label[:, None, None], stripes, stripes.transpose(0, 2, 1))
    x = jnp.asarray(x + DRAW.normal(size=x.shape), float)
    model = cnn([8, 8], [4], [8, 2], kernel_size=3, dropout=0.2)
    loss_fn = fgd.supervised(model, fgd.losses.cross_entropy)
    step = fgd.train_step(loss_fn, fgd.adam(0.01))
    state = step.init(model.init(jax.random.key(0)))
    state, _ = fgd.fit(step, state, (x, jnp.asarray(label)), batch_size=20, num_steps=120)
    assert fgd.losses.accuracy(model.apply(state.params, x), jnp.asarray(label)) > 0.95


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([28], [2], [3]), {}, ValueError, "image_shape must have at least 2"),
        (([28, 28, 1, 1], [2], [3]), {}, ValueError, r"expected image_shape \[height"),
        ((28, [2], [3]), {}, TypeError, "image_shape must be a list of ints, got 28"),
        (([28, 28], [], [3]), {}, ValueError, "channels must have at least 1"),
        (([28, 28], [2], []), {}, ValueError, "features must have at least 1"),
        (([28, 28], [2.5], [3]), {}, TypeError, r"channels\[0\] must be an int"),
        (([28, 28], [2, 2], [3]), {"kernel_size": [3]}, ValueError, "kernel_size has 1 sizes for"),
        (([28, 28], [2], [3]), {"pool": 0}, ValueError, "pool must be at least 1, got 0"),
        (([28, 28], [2], [3]), {"strides": 0}, ValueError, "strides must be at least 1, got 0"),
        (([7, 28], [2, 2, 2], [3]), {}, ValueError, "after convolution 2 .* images 7 × 28; use"),
        (([8, 8], [2], [3]), {"padding": "VALID", "kernel_size": 9}, ValueError, "nothing is left"),
        (([8, 8], [2], [3]), {"padding": "same"}, ValueError, 'padding must be "SAME"'),
        (([8, 8], [2], [3]), {"dropout": 1.0}, ValueError, r"probability in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match="cnn: .*" + message):
        cnn(*arguments, **options)


@pytest.mark.usefixtures("as_users")
def test_bad_images():
    model = cnn([8, 6], [2], [3])
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"x has shape \(5, 6, 8, 1\), expected \[rows, 8, 6, 1\]"):
        model.apply(params, jnp.ones((5, 6, 8)))
    with pytest.raises(TypeError, match=r"x has dtype uint8, expected a float; fgd.data.normalize"):
        model.apply(params, jnp.ones((5, 8, 6), jnp.uint8))
