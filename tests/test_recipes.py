"""The recipes of docs/recipes.md, with the page's own code, at reduced size."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgd

PAGE = (Path(__file__).parents[1] / "docs/recipes.md").read_text()
CELLS = [
    re.sub(r"^:tags:.*\n", "", cell)
    for cell in re.findall(r"^```\{code-cell\}\n(.*?)^```", PAGE, re.M | re.S)
]


@pytest.fixture(autouse=True)
def plain():
    """The page's code is promised to run with the settings that JAX has by default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def page(*wanted, **names):
    """Functions and texts of the page by name, which see `names` and each other."""
    names |= {"fgd": fgd, "jax": jax, "jnp": jnp, "np": np, "optax": optax}
    for cell in CELLS:
        for part in ast.parse(cell).body:
            name = getattr(part, "name", None)
            if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant):
                name = part.targets[0].id
            if name in wanted:
                exec(compile(ast.Module([part], []), "recipes.md", "exec"), names)
    return [names[name] for name in wanted]


def run(loss_fn, optimizer, params, data, **options):
    step = fgd.train_step(loss_fn, optimizer)
    return fgd.fit(step, step.init(params), data, **options)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def table(rows, classes=3, seed=0):
    x, noise = (
        normal(rows, 4, seed=seed),
        np.random.default_rng(seed + 1).normal(size=(rows, classes)),
    )
    return x, jnp.asarray(np.argmax(np.asarray(x)[:, :classes] + noise, axis=1), jnp.int32)


mlp = functools.cache(lambda *sizes: fgd.models.mlp(sizes))


def classifier(sizes=(4, 8, 3), **options):
    model = mlp(*sizes)
    return model, fgd.supervised(model, fgd.losses.cross_entropy, **options)


def logsumexp(z):
    return np.log(np.sum(np.exp(np.asarray(z, np.float64)), axis=-1))


def test_what_the_tabs_show_is_executed():
    def tidy(code):
        return "\n".join(line.rstrip() for line in code.splitlines() if line.strip())

    tabs = re.findall(r":::\{tab-item\} fgd\n```python\n(.*?)```", PAGE, re.S)
    assert len(tabs) > 10
    cells = tidy("\n".join([*CELLS]))
    scripts = tidy("\n".join(page("net", "train", "predict")))
    for tab in tabs:
        for paragraph in tab.split("\n\n"):
            told = tidy(paragraph)
            assert told in cells or told in scripts or "Checkpoints" in told, told


def test_lines_of_code():
    """The page's table is what `benchmarks.lines` counts, and says where fgd is longer."""
    lines = pytest.importorskip("benchmarks.lines")
    counts = {peer: lines.lines(peer) for peer in lines.PEERS}
    for job, (words, _) in lines.JOBS.items():
        ours, *theirs = (counts[peer][job] for peer in lines.PEERS)
        assert f"| {words} | {ours} | {theirs[0]} | {theirs[1]} |" in PAGE
        assert ours <= min(theirs) or job == "average"
    assert all(set(known) == set(lines.JOBS) for known in counts.values())


@pytest.mark.slow
def test_early_stopping_keeps_the_best():
    model, loss_fn = classifier()
    step, patience = fgd.train_step(loss_fn, fgd.adam(0.05)), fgd.Patience("loss", 3)
    x, y = table(100, seed=5)
    _, history = fgd.train(
        step,
        step.init(model.init(0)),
        table(30),
        batch_size=10,
        num_epochs=200,
        evaluate=(x, y),
        stop_when=patience,
    )
    z = np.asarray(model.apply(patience.best_state.params, x), np.float64)
    best = np.mean(logsumexp(z) - z[np.arange(100), y])
    np.testing.assert_allclose(best, patience.best_value, rtol=1e-5)
    assert patience.best_value == history["evaluate"]["loss"].min()
    assert 1 < len(history["evaluate"]["loss"]) < 200


def test_class_weights_give_every_class_the_same_say():
    model, loss_fn = classifier()
    x, y = table(60)
    weights = (len(y) / (3 * np.bincount(y)))[y]
    z = np.asarray(model.apply(model.init(0), x), np.float64)
    each = logsumexp(z) - z[np.arange(60), y]
    by_class = np.mean([each[y == label].mean() for label in range(3)])
    np.testing.assert_allclose(
        jax.jit(loss_fn)(model.init(0), (x, y, weights.astype(np.float32))), by_class, rtol=1e-5
    )


def test_one_logit_is_two_of_which_one_is_zero():
    z, y = normal(50, 1), table(50, 2)[1]
    two = jnp.concatenate([jnp.zeros_like(z), z], axis=1)
    close(fgd.losses.binary_cross_entropy(z, y[:, None]), fgd.losses.cross_entropy(two, y))
    close(fgd.losses.binary_accuracy(z, y[:, None]), fgd.losses.accuracy(two, y))


def test_gru_is_a_numpy_loop():
    _, gru = page("normal", "gru")
    model = gru(5, 3)
    params, text = model.init(0), np.random.default_rng(0).integers(0, 5, (2, 7), np.int32)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h, logits = np.zeros((2, 3)), []
    for t in range(7):
        x = p["embed"][text[:, t]]
        reset, keep = np.split(1 / (1 + np.exp(-np.hstack([x, h]) @ p["gates"])), 2, 1)
        h = keep * h + (1 - keep) * np.tanh(np.hstack([x, reset * h]) @ p["new"])
        logits.append(h @ p["out"])
    close(jax.jit(model.apply)(params, text), np.stack(logits, 1))


def test_transformer_is_a_numpy_loop():
    _, transformer = page("normal", "transformer")
    model = transformer(5, 8, 2, 6)
    params, text = model.init(0), np.random.default_rng(0).integers(0, 5, (2, 6), np.int32)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    for row, found in zip(text, jax.jit(model.apply)(params, text), strict=True):
        x = p["embed"][row] + p["place"]
        # Query, key and value of each head, one after the other: [time, 3, heads, width].
        q, k, v = np.moveaxis((norm(x) @ p["qkv"]).reshape(6, 3, 2, 4), 1, 0)
        seen = np.zeros((6, 2, 4))
        for t in range(6):
            for head in range(2):
                scores = np.exp(k[: t + 1, head] @ q[t, head] / 2)
                seen[t, head] = scores / scores.sum() @ v[: t + 1, head]
        x = x + seen.reshape(6, 8) @ p["mix"]
        up = norm(x) @ p["up"]
        gelu = up / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        close(found, norm(x + gelu @ p["down"]) @ p["out"], 1e-4, 1e-5)


@pytest.mark.slow
def test_a_text_that_repeats_is_learnt_and_written():
    letters = np.array(list("abc"))
    _, gru, write = page("normal", "gru", "write", letters=letters)
    codes = jnp.arange(60) % 3
    rows = jnp.stack([codes[i : i + 8] for i in range(12)])
    model = gru(3, 8)
    loss_fn = fgd.supervised(model, fgd.losses.cross_entropy)
    data = rows[:, :-1], rows[:, 1:]
    state, history = run(loss_fn, fgd.adam(0.05), model.init(0), data, num_steps=150)
    assert history["loss"][-1] < 0.01 < np.log(3) / 2 < history["loss"][0]
    drawn = write(model, state.params, "abcabca", 30, jax.random.key(0))
    assert "".join(letters[drawn]) == "bca" * 10


def test_a_linear_autoencoder_reaches_principal_components():
    x = normal(40, 6) @ normal(6, 6, seed=1)
    model = fgd.models.mlp([6, 2, 6], activation=lambda x: x)
    loss_fn = fgd.supervised(model, fgd.losses.mse)
    _, history = run(loss_fn, fgd.adam(0.02), model.init(0), (x, x), num_steps=2000)
    centered = np.asarray(x, np.float64) - x.mean(0)
    least = np.sum(np.linalg.svd(centered)[1][2:] ** 2) / x.size
    assert least * (1 - 1e-4) < history["loss"][-1] < least * 1.01


def test_vae_is_its_two_integrals():
    constant = fgd.models.Model(lambda _: None, lambda params, x: jnp.tile(params, (len(x), 1)))
    (loss,) = page("vae_loss", encoder=constant, decoder=constant)
    mean, log_var = np.array([0.7, -1.2]), np.array([-0.5, 0.3])
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    params = {"encoder": jnp.array([*mean, *log_var]), "decoder": normal(784)}
    value, parts = jax.jit(loss)(params, images, jax.random.key(1))
    z, kl = np.linspace(-15, 15, 100_001), 0.0
    for m, v in zip(mean, np.exp(log_var), strict=True):
        log_q = -((z - m) ** 2) / (2 * v) - np.log(2 * np.pi * v) / 2
        log_p = -(z**2) / 2 - np.log(2 * np.pi) / 2
        kl += np.sum(np.exp(log_q) * (log_q - log_p)) * (z[1] - z[0])
    np.testing.assert_allclose(parts["kl"], kl, rtol=1e-5)
    p = 1 / (1 + np.exp(-np.asarray(params["decoder"], np.float64)))
    x = np.asarray(images, np.float64).reshape(3, 784) / 255
    pixels = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(1).mean()
    np.testing.assert_allclose(parts["pixels"], pixels, rtol=1e-5)
    np.testing.assert_allclose(value, kl + pixels, rtol=1e-5)


@pytest.mark.slow
def test_vae_trains_with_a_key():
    encoder, decoder = fgd.models.mlp([784, 8, 4]), fgd.models.mlp([2, 8, 784])
    (loss,) = page("vae_loss", encoder=encoder, decoder=decoder)
    images = jnp.tile(jnp.arange(28, dtype=jnp.uint8) * 9, (20, 28, 1))
    params = {"encoder": encoder.init(0), "decoder": decoder.init(1)}
    _, history = run(loss, fgd.adam(0.01), params, images, batch_size=10, num_steps=60)
    assert set(history) == {"loss", "kl", "pixels"}
    close(history["loss"], history["kl"] + history["pixels"])
    assert history["loss"][-1] < history["loss"][0]
    assert (history["kl"] >= 0).all()


def gan():
    generator, discriminator = mlp(32, 8, 6), mlp(6, 8, 1)
    names = page("make", "d_loss", "g_loss", generator=generator, discriminator=discriminator)
    _, *losses = names
    d_step, g_step = (fgd.train_step(loss, fgd.adam(0.01, 0.5)) for loss in losses)
    (alternate,) = page("alternate", d_step=d_step, g_step=g_step)
    states = d_step.init(discriminator.init(0), key=0), g_step.init(generator.init(1), key=1)
    return d_step, g_step, alternate, states, losses


def test_gan_of_a_discriminator_that_says_the_same_of_all():
    """With probability p of being real: −log p − log(1 − p), and for the generator −log p."""
    *_, (d, g), (d_loss, g_loss) = gan()
    always = jax.tree.map(jnp.zeros_like, d.params)
    always[1]["b"] = jnp.array([0.7])
    p, key = 1 / (1 + np.exp(-0.7)), jax.random.key(0)
    close(jax.jit(d_loss)(always, (g.params, normal(9, 6)), key), -np.log(p) - np.log(1 - p))
    close(jax.jit(g_loss)(g.params, always, key), -np.log(p))


@pytest.mark.slow
def test_gan_in_a_scan_is_the_loop():
    d_step, g_step, alternate, (d, g), _ = gan()
    pixels, keys = jax.nn.sigmoid(normal(300, 6)), jax.random.split(jax.random.key(2), 5)
    (d_end, g_end), losses = alternate(d, g, pixels, keys)
    expected = []
    for key in keys:
        rows = jax.random.randint(key, [50], 0, 300)
        kept = g.params
        d, first = d_step(d, (g.params, pixels[rows]))
        assert all(map(np.array_equal, jax.tree.leaves(kept), jax.tree.leaves(g.params)))
        g, second = g_step(g, d.params)
        expected.append((first["loss"], second["loss"]))
    close(losses, tuple(np.array(x) for x in zip(*expected, strict=True)))
    close((d_end.params, g_end.params), (d.params, g.params), 1e-4)


@pytest.mark.slow
def test_folds_in_a_sweep_are_the_loop():
    model, loss_fn = classifier()
    x, y = table(160)
    folds = x.reshape(5, 32, 4), y.reshape(5, 32)
    (run,) = page("run", model=model, loss_fn=loss_fn, folds=folds)
    rates, decays = np.array([1e-3, 1e-1], np.float32), np.array([0, 1], np.float32)
    losses = fgd.sweep(run, fold=jnp.arange(5), rate=rates, decay=decays)
    assert losses.shape == (5, 2, 2)
    for fold, i, j in [(0, 0, 0), (3, 1, 1)]:
        left = np.arange(160) // 32 == fold
        # The others in the order of the page: those that come after the fold, and then the first.
        order = np.roll(np.arange(160), -32 * fold)[32:]
        step = fgd.train_step(loss_fn, optax.adamw(rates[i], weight_decay=decays[j]))
        state = step.init(model.init(0))
        state, _ = fgd.fit(step, state, (x[order], y[order]), batch_size=32, num_epochs=10)
        alone = fgd.evaluate(loss_fn, state, (x[left], y[left]))["loss"]
        np.testing.assert_allclose(losses[fold, i, j], alone, rtol=1e-4)


FROZEN = {"train": fgd.adam(0.03), "freeze": optax.set_to_zero()}


def test_frozen_layers_keep_their_bits_and_the_rest_trains_alone():
    model, loss_fn = classifier()
    data, params = table(40), model.init(0)
    options = {"batch_size": 10, "num_steps": 20}
    optimizer = optax.multi_transform(FROZEN, ["freeze", "train"])
    state, _ = run(loss_fn, optimizer, params, data, **options)
    assert all((state.params[0][name] == params[0][name]).all() for name in "wb")

    def last(layer, batch):
        return loss_fn([params[0], layer], batch)

    alone, _ = run(last, fgd.adam(0.03), params[1], data, **options)
    close(state.params[1], alone.params, 1e-4)


def test_masked_alone_goes_up_the_gradient():
    model, loss_fn = classifier()
    data, params = table(40), model.init(0)
    gradient = jax.jit(jax.grad(loss_fn))(params, data)
    optimizer = optax.masked(fgd.sgd(0.03), [False, True])
    state, _ = run(loss_fn, optimizer, params, data, num_steps=1)
    close(state.params[0], jax.tree.map(lambda w, g: w + g, params[0], gradient[0]))
    close(state.params[1], jax.tree.map(lambda w, g: w - 0.03 * g, params[1], gradient[1]))


def test_two_groups_have_two_optimizers():
    model, loss_fn = classifier()
    data, params = table(40), model.init(0)
    gradient = jax.jit(jax.grad(loss_fn))(params, data)
    groups = {"old": fgd.sgd(1e-3), "new": fgd.sgd(0.1)}
    optimizer = optax.multi_transform(groups, ["old", "new"])
    state, _ = run(loss_fn, optimizer, params, data, num_steps=1)
    for i, rate in enumerate((1e-3, 0.1)):
        expected = jax.tree.map(lambda w, g, rate=rate: w - rate * g, params[i], gradient[i])
        close(state.params[i], expected)


@pytest.mark.parametrize("optimizer", [fgd.sgd(0.1), optax.adamw(0.01)], ids=["sgd", "adamw"])
def test_accumulation_is_one_batch_of_as_many_rows(optimizer):
    model, loss_fn = classifier()
    data, params = table(48), model.init(0)
    parts = optax.MultiSteps(optimizer, 4).gradient_transformation()
    found, _ = run(loss_fn, parts, params, data, batch_size=4, num_steps=24, shuffle=False)
    whole, _ = run(loss_fn, optimizer, params, data, batch_size=16, num_steps=6, shuffle=False)
    close(found.params, whole.params, 1e-4, 1e-5)


def test_clipping_and_a_schedule_are_their_formulas():
    rates = optax.warmup_cosine_decay_schedule(0.0, 0.5, 4, 10)
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), fgd.sgd(rates))
    x = jnp.array([[3.0, -1.0]])
    state, _ = run(lambda w, x: jnp.sum((w - x[0]) ** 2), optimizer, jnp.zeros(2), x, num_steps=8)
    w = np.zeros(2)
    for t in range(8):
        rate = 0.5 * t / 4 if t < 4 else 0.25 * (1 + np.cos(np.pi * (t - 4) / 6))
        g = 2 * (w - np.array([3.0, -1.0]))
        w -= rate * g * min(1, 0.1 / np.linalg.norm(g))
    close(state.params, w)


def test_average_is_a_numpy_loop():
    model, loss_fn = classifier()
    step = fgd.train_step(loss_fn, fgd.ema(fgd.adam(0.03), 0.9))
    data, state = table(40), step.init(model.init(0))
    start, run = state, {"batch_size": 10, "num_steps": 12}
    ema = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.params)]
    for _ in range(12):
        state, _ = fgd.fit(step, state, data, batch_size=10, num_steps=1)
        leaves = jax.tree.leaves(state.params)
        ema = [0.9 * a + 0.1 * np.asarray(b, np.float64) for a, b in zip(ema, leaves, strict=True)]
    close(jax.tree.leaves(fgd.averaged(state).params), ema)
    whole, _ = fgd.train(step, start, data, **run)
    close(jax.tree.leaves(fgd.averaged(whole).params), ema)
    step = fgd.train_step(loss_fn, fgd.adam(0.03))
    plain, _ = fgd.fit(step, step.init(model.init(0)), data, **run)
    close(whole.params, plain.params)


@pytest.mark.slow
def test_bfloat16_rounds_and_keeps_float32():
    model, whole = classifier((4, 32, 3))
    _, half = classifier((4, 32, 3), compute_dtype=jnp.bfloat16)
    data, params = table(200), model.init(0)
    close(half(params, data), whole(params, data), rtol=2**-7)
    state, history = run(half, fgd.adam(0.01), params, data, batch_size=20, num_steps=50)
    exact, _ = run(whole, fgd.adam(0.01), params, data, batch_size=20, num_steps=50)
    kinds = {x.dtype for x in jax.tree.leaves((state.params, state.opt_state, history))}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    close(whole(state.params, data), whole(exact.params, data), rtol=2**-6)


@pytest.mark.slow
def test_a_run_that_fails_and_goes_on_is_the_whole(tmp_path):
    model, loss_fn = classifier()
    data, kept = table(40), fgd.Checkpoints(tmp_path / "kept", every=20)
    run = {"batch_size": 10, "num_steps": 70}

    def again(stop_when=None):
        step = fgd.train_step(loss_fn, fgd.adam(0.01))
        start = step.init(model.init(0))
        return fgd.train(
            step, start, data, **run, checkpoints=kept, evaluate_every=10, stop_when=stop_when
        )

    def fails(state, metrics):
        if state.step == 50:
            raise OSError("the machine is gone")
        return False

    with pytest.raises(OSError, match="gone"):
        again(fails)
    assert kept.latest() == 40
    state, history = again(lambda state, metrics: False)
    step = fgd.train_step(loss_fn, fgd.adam(0.01))
    whole, expected = fgd.fit(step, step.init(model.init(0)), data, **run)
    assert all(map(np.array_equal, jax.tree.leaves(state.params), jax.tree.leaves(whole.params)))
    assert (history["loss"] == expected["loss"]).all()


@pytest.mark.slow
def test_three_processes(tmp_path):
    """The page's scripts: the first is killed, the second ends the run, the third predicts."""
    scripts = dict(zip(("net", "train", "predict"), page("net", "train", "predict"), strict=True))
    for name, program in scripts.items():
        (tmp_path / f"{name}.py").write_text(program)
    here = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE}
    names = {}
    exec(scripts["net"], names)
    whole, _ = fgd.fit(names["step"], names["start"], names["mnist"].train, **names["run"])
    with subprocess.Popen([sys.executable, "train.py"], **here, env=os.environ) as first:
        for line in first.stdout:
            if line.strip() == "500":
                first.kill()
                break
    assert first.returncode < 0
    assert not (tmp_path / "digits.safetensors").exists()
    for script in "train.py", "predict.py":
        done = subprocess.run([sys.executable, script], **here, check=True, timeout=300)
    params = fgd.interop.load(tmp_path / "digits.safetensors", like=whole.params)
    close(params, whole.params, 1e-4, 1e-5)  # the test's own XLA has other flags
    predicted, labels = (line.split() for line in done.stdout.splitlines()[-2:])
    assert np.mean(np.array(predicted) == labels) > 0.8
