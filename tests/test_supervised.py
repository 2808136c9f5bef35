"""Supervised losses: weights of rows, in training, evaluation and hypergradients; bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd

DRAW = np.random.default_rng(1)
X, LABELS = DRAW.normal(size=(12, 3)), DRAW.integers(0, 4, 12)
COUNTS = DRAW.integers(0, 4, 12)
MODEL = fgd.models.mlp([3, 5, 4], activation=jnp.tanh)


def loss_of(**options):
    return fgd.supervised(
        MODEL, fgd.losses.cross_entropy, metrics={"accuracy": fgd.losses.accuracy}, **options
    )


def floats(tree):
    return jax.tree.map(lambda x: x.astype(float), tree)


def data():
    return jnp.asarray(X), jnp.asarray(LABELS)


def test_weights_are_repetitions(x64):
    """A run over weighted rows is the run over as many copies of each; so is an evaluation."""
    loss_fn = loss_of()
    step = fgd.train_step(loss_fn, fgd.adam(0.01))
    state = step.init(floats(MODEL.init(0)))
    weighted = *data(), jnp.asarray(COUNTS)
    repeated = tuple(jnp.repeat(x, COUNTS, axis=0) for x in data())
    ours, history = fgd.fit(step, state, weighted, num_steps=5)
    theirs, expected = fgd.fit(step, state, repeated, num_steps=5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours.params, theirs.params
    )
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-12)
        found = fgd.evaluate(loss_fn, ours, weighted, batch_size=5)[name]
        np.testing.assert_allclose(found, fgd.evaluate(loss_fn, theirs, repeated)[name], rtol=1e-9)


def test_weights_of_tokens(x64):
    """[rows, time]: all that is padding counts for nothing, in both."""
    model = fgd.models.Model(
        lambda key: {"w": jax.random.normal(key, (3, 4))}, lambda params, x: x @ params["w"]
    )
    loss_fn = fgd.supervised(model, fgd.losses.cross_entropy)
    params = model.init(jax.random.key(0))
    x, tokens = jnp.asarray(DRAW.normal(size=(6, 2, 3))), jnp.asarray(DRAW.integers(0, 4, (6, 2)))
    mask = jnp.asarray([[1, 1], [1, 0], [0, 1], [1, 1], [0, 0], [1, 1]])
    kept = np.asarray(mask, bool)
    expected = fgd.losses.cross_entropy((x @ params["w"])[kept], tokens[kept])
    np.testing.assert_allclose(loss_fn(params, (x, tokens, mask)), expected, rtol=1e-12)
    found = fgd.evaluate(loss_fn, params, (x, tokens, mask), batch_size=4)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_derivative_by_weights(x64):
    """Of a loss after a run, by the weight that each row had: finite differences."""
    loss_fn = loss_of()
    step = fgd.train_step(loss_fn, fgd.sgd(0.5))
    start = step.init(floats(MODEL.init(0)))
    rows = data()

    def after(weights):
        state, _ = fgd.fit(step, start, (*rows, weights), batch_size=4, num_steps=9)
        return fgd.losses.cross_entropy(MODEL.apply(state.params, rows[0]), rows[1])

    weights = jnp.asarray(1.0 + 0.1 * DRAW.normal(size=12))
    gradient = jax.grad(after)(weights)
    for i in (0, 7):
        e = 1e-5 * np.eye(12)[i]
        np.testing.assert_allclose(
            gradient[i], (after(weights + e) - after(weights - e)) / 2e-5, rtol=1e-6
        )


def test_a_batch_without_weight_changes_nothing():
    loss_fn = loss_of()
    step = fgd.train_step(loss_fn, fgd.sgd(0.5))
    state = step.init(MODEL.init(0))
    batch = jnp.float32(X), jnp.asarray(LABELS), jnp.zeros(12)
    after, metrics = step(state, batch)
    assert metrics["loss"] == 0
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


@pytest.mark.parametrize("run", ["fit", "train", "evaluate"])
def test_bad_weights(run):
    loss_fn = loss_of()
    step = fgd.train_step(loss_fn, fgd.sgd(0.5))
    state = step.init(MODEL.init(0))

    def call(weights):
        rows = np.float32(X), LABELS, weights
        if run == "evaluate":
            fgd.evaluate(loss_fn, state, rows)
        else:
            getattr(fgd, run)(step, state, rows, num_steps=1)

    ones = np.ones(12, np.float32)
    with pytest.raises(ValueError, match=f"{run}: weights must not be negative or NaN"):
        call(ones - 2 * np.eye(12, dtype=np.float32)[3])
    with pytest.raises(ValueError, match=f"{run}: weights must not be .* infinite"):
        call(ones * np.float32([1, np.inf] * 6))
    with pytest.raises(ValueError, match=f"{run}: all weights are 0"):
        call(0 * ones)
    with pytest.raises(ValueError, match=rf"{run}: weights have shape \(12, 3\), expected \(12,\)"):
        call(np.ones([12, 3], np.float32))
    with pytest.raises(
        ValueError, match=rf"{run}: data\[0\] has 12 rows .*must share their leading axis"
    ):
        call(ones[:5])


# compute_dtype


def test_bfloat16():
    """Gradients are float32's to bfloat16's two to three digits, and nothing else is converted."""
    plain, narrow = (loss_of(compute_dtype=dtype) for dtype in (None, jnp.bfloat16))
    params, batch = MODEL.init(0), (jnp.float32(X), jnp.asarray(LABELS))
    for a, b in zip(
        *(jax.tree.leaves(jax.grad(f, has_aux=True)(params, batch)[0]) for f in (narrow, plain)),
        strict=True,
    ):
        assert a.dtype == jnp.float32
        assert jnp.linalg.norm(a - b) < 0.02 * jnp.linalg.norm(b)  # measured: at most 0.006
    step = fgd.train_step(narrow, fgd.adam(0.01))
    text = jax.jit(step.update).lower(step.init(params), batch).as_text()
    assert "xbf16>" in text
    assert not [x for x in text.splitlines() if "dot_general" in x and "bf16" not in x]
    start = step.init(params)
    whole, history = fgd.fit(step, start, batch, batch_size=4, num_steps=7)
    begun, first = fgd.fit(step, start, batch, batch_size=4, num_steps=3)
    ended, second = fgd.fit(step, begun, batch, batch_size=4, num_steps=4)
    jax.tree.map(np.testing.assert_array_equal, ended.params, whole.params)
    losses = np.concatenate([first["loss"], second["loss"]])
    np.testing.assert_array_equal(losses, history["loss"])
    kept = jax.tree.leaves((whole.params, whole.opt_state))
    assert {x.dtype for x in kept if jnp.issubdtype(x.dtype, jnp.floating)} == {
        jnp.dtype("float32")
    }
    assert history["loss"].dtype == jnp.float32
    assert fgd.evaluate(narrow, whole, batch)["loss"].dtype == jnp.float32


def test_bfloat16_of_a_model_with_statistics():
    """BatchNorm's running mean and variance stay float32."""
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
            return linen.Dense(4)(x)

    rows = jnp.float32(X), jnp.asarray(LABELS)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = fgd.models.from_flax(Net(), rows[0])
        loss_fn = fgd.supervised(model, fgd.losses.cross_entropy, compute_dtype=jnp.bfloat16)
        step = fgd.train_step(loss_fn, fgd.sgd(0.1))
        start = step.init(model.init(0))
        state, history = fgd.fit(step, start, rows, num_steps=20)
    before, after = (jax.tree.leaves(s.model_state) for s in (start, state))
    assert {x.dtype for x in after} == {jnp.dtype("float32")}
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("wrong", [-100, 99])
def test_what_has_no_weight_may_be_anything(wrong, x64):
    """A label of no class, where the weight is 0: neither the loss nor its gradient is NaN."""
    weights = np.array([1.0] * 9 + [0.0] * 3)
    labels = jnp.asarray(np.where(weights == 0, wrong, LABELS))
    params, kept = floats(MODEL.init(0)), weights > 0
    loss_fn, rows = loss_of(), (jnp.asarray(X), labels, jnp.asarray(weights))

    def plain(params):
        return loss_fn(params, (jnp.asarray(X)[kept], labels[kept]))[0]

    def weighted(params):
        return loss_fn(params, rows)[0]

    def direct(params):
        logits = MODEL.apply(params, rows[0])
        return fgd.losses.cross_entropy(logits, rows[1], weights=rows[2])

    expected = jax.value_and_grad(plain)(params)
    for function in (weighted, direct, jax.jit(direct)):
        found = jax.jit(jax.value_and_grad(function))(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)
    evaluated = fgd.evaluate(loss_fn, params, rows, batch_size=5)
    np.testing.assert_allclose(evaluated["loss"], expected[0], rtol=1e-9)
    targets = jnp.asarray(np.where(weights == 0, wrong, LABELS % 2))
    logits = jnp.asarray(X[:, 0])
    np.testing.assert_allclose(
        jax.jit(fgd.losses.binary_cross_entropy)(logits, targets, weights=rows[2]),
        fgd.losses.binary_cross_entropy(logits[kept], targets[kept]),
        rtol=1e-9,
    )


def test_losses_that_weights_do_not_fit(as_users):
    weights, x = jnp.ones(12), jnp.float32(X)
    params = MODEL.init(0)

    def of_rows(pred, target):
        return jnp.sum(pred, axis=1)

    with pytest.raises(ValueError, match=r"of_rows gives shape \(1,\) for one row"):
        fgd.supervised(MODEL, of_rows)(params, (x, x[:, 0], weights))
    with pytest.raises(TypeError, match="there are weights, but targets are None"):
        fgd.supervised(MODEL, lambda pred, _: jnp.mean(pred))(params, (x, None, weights))
    two = {"a": jnp.ones([12, 3]), "b": jnp.ones([12, 2])}
    with pytest.raises(ValueError, match=r"weights have shape \(12, 3\), expected \(12,\)"):
        fgd.supervised(MODEL, lambda pred, _: jnp.mean(pred))(params, (x, two, jnp.ones([12, 3])))
