"""Models with running statistics: PyTorch's BatchNorm, the laws, and the traps."""

from functools import partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from problems import close, same

import fgd
from fgd.models import from_flax

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(40, 6, 6, 2)) * [1, 3] + [0, 2]  # images, NHWC
Y = DRAW.normal(size=(40, 2))
ROWS, RATE = 8, 0.05  # of a batch


@pytest.fixture(autouse=True)
def promotion():
    """Flax's BatchNorm counts on implicit promotion, if only to ask what it would be."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Linen(linen.Module):
    conv: bool = False
    dropout: float = 0.0

    @linen.compact
    def __call__(self, x, train: bool):
        dense = partial(linen.Dense, param_dtype=float)
        if self.conv:
            x = linen.Conv(3, (3, 3), padding="VALID", param_dtype=float, name="first")(x)
        else:
            x = dense(3, name="first")(x.reshape(len(x), -1))
        norm = linen.BatchNorm(not train, momentum=0.9, param_dtype=float, name="norm")
        x = linen.relu(norm(x)).reshape(len(x), -1)
        x = linen.Dropout(self.dropout, deterministic=not train)(x)
        return dense(2, name="last")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs, conv=False, dropout=0.0):
        make = {"rngs": rngs, "param_dtype": float}
        if conv:
            self.first = nnx.Conv(2, 3, (3, 3), padding="VALID", **make)
        else:
            self.first = nnx.Linear(72, 3, **make)
        self.norm = nnx.BatchNorm(3, momentum=0.9, **make)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(48 if conv else 3, 2, **make)
        self.conv = conv

    def __call__(self, x):
        x = self.first(x if self.conv else x.reshape(len(x), -1))
        return self.last(self.dropout(nnx.relu(self.norm(x)).reshape(len(x), -1)))


KINDS = ["linen", "nnx"]


def make(kind, **options):
    module = Linen(**options) if kind == "linen" else partial(Nnx, **options)
    return from_flax(module, np.ones((1, 6, 6, 2)))


def floats(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, float), tree)


def data():
    return jnp.asarray(X, float), jnp.asarray(Y, float)


def begin(model, learning_rate=RATE, seed=0):
    """A step of descent on the squared error, and its state, in the default precision."""
    loss_fn = fgd.supervised(model, fgd.losses.mse)
    optimizer = fgd.momentum(learning_rate)
    step = fgd.train_step(loss_fn, optimizer)
    params, model_state = model.init(jax.random.key(seed))
    return step, step.init(floats(params), key=seed, model_state=floats(model_state))


def statistics(model_state):
    """Flax's, wherever they are: linen keeps them under the name of their collection."""
    return model_state.get("batch_stats", model_state)["norm"]


def network(torch, params, conv):
    """The same net in torch, with the same parameters; its rows are NHWC as well."""
    weights = jax.tree.map(lambda p: torch.tensor(np.asarray(p)), params)
    kernel, last = weights["first"]["kernel"], weights["last"]["kernel"]
    if conv:
        first, norm = torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)
        kernel = kernel.permute(3, 2, 0, 1)
        last = last.reshape(4, 4, 3, 2).permute(2, 0, 1, 3).reshape(48, 2)
    else:
        first, norm = torch.nn.Linear(72, 3), torch.nn.BatchNorm1d(3)
        kernel = kernel.T
    # torch's default momentum is 0.1, flax's 0.99; torch's 0.1 is flax's 0.9.
    net = torch.nn.Sequential(
        first, norm, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(len(last), 2)
    ).double()
    with torch.no_grad():
        for p, value in ((net[0].weight, kernel), (net[-1].weight, last.T)):
            p.copy_(value)
        for p, layer in ((net[0].bias, "first"), (net[-1].bias, "last")):
            p.copy_(weights[layer]["bias"])
    inputs = X.transpose(0, 3, 1, 2) if conv else X.reshape(len(X), -1)
    return net, torch.tensor(inputs.copy()), torch.tensor(Y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conv", [False, True], ids=["BatchNorm1d", "BatchNorm2d"])
def test_batch_norm_is_torchs(kind, conv, x64):
    """100 steps: every loss, the parameters, the running statistics, and both modes' outputs."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # on busy cores they wait for one another
    model = make(kind, conv=conv)
    step, start = begin(model)
    net, inputs, targets = network(torch, start.params, conv)
    state, history = fgd.fit(step, start, data(), batch_size=ROWS, num_steps=100, shuffle=False)

    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)
    losses = []
    for t in range(100):
        rows = torch.arange(t * ROWS, (t + 1) * ROWS) % len(X)
        loss = torch.nn.functional.mse_loss(net(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-9)
    norm = net[1]
    close(state.params["norm"]["scale"], norm.weight.detach(), rtol=1e-9)
    close(state.params["norm"]["bias"], norm.bias.detach(), rtol=1e-9)

    found = statistics(state.model_state)
    np.testing.assert_allclose(found["mean"], norm.running_mean, rtol=1e-9)
    # torch averages the unbiased variance of n values, n/(n − 1) of the batch's own, flax the
    # batch's own. Both start at 1 and forget it as 0.9ᵗ.
    n = ROWS * (16 if conv else 1)
    start_left = 0.9**100
    expected = start_left + n / (n - 1) * (found["var"] - start_left)
    np.testing.assert_allclose(expected, norm.running_var, rtol=1e-9)

    x, _ = data()
    found["var"] = jnp.asarray(norm.running_var.numpy())  # in a dict that is ours
    net.eval()
    y, after = model.apply(state.params, state.model_state, x)
    np.testing.assert_allclose(y, net(inputs).detach(), rtol=1e-9)
    assert same(after, state.model_state)
    net.train()
    y, _ = model.apply(state.params, state.model_state, x, key=jax.random.key(0))
    np.testing.assert_allclose(y, net(inputs).detach(), rtol=1e-9)


@pytest.mark.property  # CI's run of them is compiled as it is for users
@pytest.mark.parametrize("kind", KINDS)
def test_composition(kind):
    """fit(m), then fit(n), is fit(m + n) bit for bit, dropout and statistics included."""
    step, start = begin(make(kind, dropout=0.3))
    run = {"batch_size": 7}
    whole, history = fgd.fit(step, start, data(), num_steps=17, **run)
    state, _ = fgd.fit(step, start, data(), num_steps=8, **run)
    state, _ = fgd.fit(step, state, data(), num_steps=9, **run)
    assert same(whole, state)
    trained, recorded = fgd.train(step, start, data(), num_steps=17, **run)
    assert same((whole, history), (trained, recorded))
    assert not same(whole.model_state, start.model_state)


@pytest.mark.parametrize("kind", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_a_run_is_a_function(kind, x64):
    """vmap over seeds is the loop; grad is the central difference, through the statistics too.

    Through nnx's it is not: nnx.BatchNorm takes them for constants, as torch does. There the last
    loss is taken in training mode, which does not look at them.
    """
    model, h = make(kind), 1e-6
    key = None if kind == "linen" else jax.random.key(0)

    @jax.jit
    def run(learning_rate, seed):
        step, start = begin(model, learning_rate, seed)
        state, _ = fgd.fit(step, start, data(), batch_size=ROWS, num_steps=12)
        pred, _ = model.apply(state.params, state.model_state, data()[0], key=key)
        return fgd.losses.mse(pred, data()[1])

    seeds = jnp.arange(3)
    mapped = jax.vmap(partial(run, RATE))(seeds)
    np.testing.assert_allclose(mapped, [run(RATE, seed) for seed in seeds], rtol=1e-10)
    slope = (run(RATE + h, 0) - run(RATE - h, 0)) / (2 * h)
    np.testing.assert_allclose(jax.grad(run)(RATE, 0), slope, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_whole_batch_however_it_is_sharded(kind, x64):
    model = make(kind)
    step, start = begin(model)
    batch = data()
    alone, metrics = step(start, batch)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shards = jax.device_put(batch, NamedSharding(mesh, P("data")))
    state, sharded = step(jax.device_put(start, NamedSharding(mesh, P())), shards)
    assert len(shards[0].sharding.device_set) == 4
    close((state.params, state.model_state), (alone.params, alone.model_state), 1e-10, 1e-13)
    close(sharded, metrics, rtol=1e-10)
    run = {"batch_size": ROWS, "num_steps": 5}
    alone, over_devices = (fgd.fit(step, start, batch, **run, mesh=m)[0] for m in (None, mesh))
    close(
        (over_devices.params, over_devices.model_state),
        (alone.params, alone.model_state),
        1e-9,
        1e-12,
    )
    hidden = X.reshape(40, -1) @ np.asarray(start.params["first"]["kernel"])
    found = statistics(state.model_state)
    np.testing.assert_allclose(found["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * hidden.var(axis=0), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate(kind):
    """In evaluation mode no row sees another, whoever asks and however they are grouped."""
    model = make(kind, dropout=0.5)
    step, start = begin(model)
    state, _ = fgd.fit(step, start, data(), batch_size=ROWS, num_steps=30)

    def metrics(params, model_state, batch):
        x, y = batch
        pred, _ = model.apply(params, model_state, x)
        return {"error": fgd.losses.mse(pred, y, reduction="none")}

    found = [fgd.evaluate(metrics, state, data(), batch_size=n)["error"] for n in (1, 7, 40)]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)
    params, found = jax.tree.map(np.asarray, (state.params, statistics(state.model_state)))
    hidden = X.reshape(40, -1) @ params["first"]["kernel"] + params["first"]["bias"]
    hidden = (hidden - found["mean"]) / np.sqrt(found["var"] + 1e-5)
    hidden = np.maximum(hidden * params["norm"]["scale"] + params["norm"]["bias"], 0)
    pred = hidden @ params["last"]["kernel"] + params["last"]["bias"]
    expected = np.mean((pred - Y) ** 2)
    np.testing.assert_allclose(fgd.evaluate(metrics, state, data())["error"], expected, rtol=1e-4)
    run = {"batch_size": ROWS, "num_steps": 30, "evaluate_every": 15}
    for evaluate in (partial(fgd.evaluate, metrics, data=data()), data()):
        _, history = fgd.train(step, start, data(), evaluate=evaluate, **run)
        assert history["evaluate"]["step"].tolist() == [15, 30]
        (name,) = history["evaluate"].keys() - {"step"}
        np.testing.assert_allclose(history["evaluate"][name][-1], expected, rtol=1e-4)
    with pytest.raises(TypeError, match=r"metric_fn takes model_state.* the state of a run"):
        fgd.evaluate(metrics, state.params, data())


class LinenCounter(linen.Module):
    """Two collections of its own, one of them never written."""

    @linen.compact
    def __call__(self, x):
        calls = self.variable("counts", "calls", lambda: jnp.int32(0))
        scale = self.variable("constants", "scale", lambda: jnp.float32(2))
        if self.is_mutable_collection("counts") and not self.is_initializing():
            calls.value = calls.value + 1
        return scale.value * linen.Dense(2)(x)


class Count(nnx.Variable):
    pass


class NnxCounter(nnx.Module):
    def __init__(self, rngs):
        self.calls, self.scale = Count(jnp.int32(0)), nnx.Variable(jnp.float32(2))
        self.dense = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        self.calls[...] += 1  # in both modes; evaluation returns the state as it was
        return self.scale[...] * self.dense(x)


@pytest.mark.parametrize(
    ("module", "calls"),
    [(LinenCounter(), lambda s: s["counts"]["calls"]), (NnxCounter, lambda s: s["calls"])],
    ids=KINDS,
)
def test_any_variable_is_state(module, calls):
    model = from_flax(module, np.ones((1, 3)))
    params, model_state = model.init(jax.random.key(0))
    x = jnp.ones((1, 3))
    for _ in range(2):  # the same both times: nothing is remembered outside
        y, after = model.apply(params, model_state, x, key=jax.random.key(0))
        assert (int(calls(model_state)), int(calls(after))) == (0, 1)
        same_y, unchanged = model.apply(params, after, x)
        assert same((same_y, unchanged), (y, after))
    (kernel,) = (leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    np.testing.assert_allclose(y, 2 * kernel.sum(axis=0)[None], rtol=1e-5)


def test_metrics_and_preprocess():
    model = make("linen")
    loss_fn = fgd.supervised(
        model.apply,
        fgd.losses.mse,
        preprocess=lambda x: x / 2,
        metrics={"largest": lambda pred, y: jnp.max(abs(pred))},
    )
    step = fgd.train_step(loss_fn, fgd.sgd(0.0))
    params, model_state = model.init(jax.random.key(0))
    _, history = fgd.fit(step, step.init(params, model_state=model_state), data(), num_steps=1)
    pred, _ = model.apply(params, model_state, data()[0] / 2, key=jax.random.key(9))
    np.testing.assert_allclose(history["largest"], [jnp.max(abs(pred))], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [np.mean((pred - Y) ** 2)], rtol=1e-5)


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("kind", KINDS)
def test_traps(kind):
    model = make(kind)
    params, model_state = model.init(0)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.1))
    with pytest.raises(TypeError, match=r"the loss takes model_state.*step\.init\(model\.init\(0"):
        step.init(params)
    with pytest.raises(TypeError, match="model_state is given twice"):
        step.init(model.init(0), model_state=model_state)
    with pytest.raises(ValueError, match="apply: expected model_state of structure"):
        step(step.init(params, model_state={"norm": jnp.zeros(3)}), data())
    plain = fgd.train_step(lambda params, batch: 0.0, fgd.sgd(0.1))
    with pytest.raises(TypeError, match="a model_state, but the loss has no argument of that name"):
        plain.init(model.init(0))
