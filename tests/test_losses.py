"""Losses: closed forms and analytic gradients in float64, and labels that can't be right."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd
from fgd.losses import accuracy, binary_accuracy, binary_cross_entropy, cross_entropy, mse

DRAW = np.random.default_rng(0)
LOGITS = 3 * DRAW.normal(size=(5, 4))
LABELS = np.array([0, 3, 1, 1, 2])
PRED, TARGET = DRAW.normal(size=(5, 3)), DRAW.normal(size=(5, 3))
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def test_mse(x64):
    square = (PRED - TARGET) ** 2
    pred, target = jnp.asarray(PRED), jnp.asarray(TARGET)
    np.testing.assert_allclose(mse(pred, target), square.mean(), rtol=1e-14)
    np.testing.assert_allclose(mse(pred, target, reduction="sum"), square.sum(), rtol=1e-14)
    rows = mse(pred, target, reduction="none")
    np.testing.assert_allclose(rows, square.mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(mse(pred[:, 0], target[:, 0], reduction="none"), square[:, 0])
    np.testing.assert_allclose(
        jax.grad(mse)(pred, target), 2 * (PRED - TARGET) / PRED.size, rtol=1e-14
    )


def test_cross_entropy(x64):
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    rows = -np.log(SOFTMAX[np.arange(5), LABELS])
    np.testing.assert_allclose(cross_entropy(logits, labels, reduction="none"), rows, rtol=1e-12)
    np.testing.assert_allclose(cross_entropy(logits, labels), rows.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        cross_entropy(logits, labels, reduction="sum"), rows.sum(), rtol=1e-12
    )
    np.testing.assert_allclose(
        jax.grad(cross_entropy)(logits, labels), (SOFTMAX - np.eye(4)[LABELS]) / 5, rtol=1e-12
    )


def test_cross_entropy_of_huge_logits_is_exact():
    logits = jnp.array([[1e4, 0.0], [-1e4, 0.0]])
    np.testing.assert_allclose(
        cross_entropy(logits, jnp.array([1, 1]), reduction="none"), [1e4, 0.0]
    )
    assert jnp.isfinite(jax.grad(cross_entropy)(logits, jnp.array([1, 1]))).all()


def test_masked_classes():
    """A logit of −∞ is a class of probability 0, not NaN."""
    logits = jnp.array([[0.0, -jnp.inf, 1.0]])
    expected = np.log(1 + np.exp(-1))
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([2])), expected, rtol=1e-6)
    gradient = jax.grad(cross_entropy)(logits, jnp.array([2]))
    p = 1 / (1 + np.e)
    np.testing.assert_allclose(gradient, [[p, 0, -p]], rtol=1e-6)


def test_bytes_do_not_wrap():
    assert mse(jnp.array([0], jnp.uint8), jnp.array([20], jnp.uint8)) == 400


def test_accuracy():
    logits = jnp.asarray(LOGITS, jnp.float32)
    right = LOGITS.argmax(axis=1) == LABELS
    assert accuracy(logits, jnp.asarray(LABELS), reduction="none").tolist() == right.tolist()
    np.testing.assert_allclose(accuracy(logits, jnp.asarray(LABELS)), right.mean(), rtol=1e-6)
    assert float(accuracy(logits, jnp.asarray(LABELS), reduction="sum")) == right.sum()


@pytest.mark.parametrize("wrong", [-1, 4, 2**31 - 1])
def test_labels_out_of_range(wrong):
    """NaN in a compiled program, loss and gradient of that row; an error where it can be seen."""
    logits, labels = (
        jnp.asarray(LOGITS, jnp.float32),
        jnp.asarray(LABELS, jnp.int32).at[2].set(wrong),
    )
    rows = jax.jit(lambda z, y: cross_entropy(z, y, reduction="none"))(logits, labels)
    assert jnp.isnan(rows).tolist() == [False, False, True, False, False]
    gradient = jax.jit(jax.grad(cross_entropy))(logits, labels)
    assert jnp.isnan(gradient).any(axis=1).tolist() == [False, False, True, False, False]
    for loss in (cross_entropy, accuracy):
        with pytest.raises(ValueError, match=rf"label {wrong} is out of range, expected 0 … 3"):
            loss(logits, labels)


def test_known_labels_inside_a_compiled_function():
    """Labels closed over are known when the program is made."""
    logits, labels = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    compiled = jax.jit(lambda z: cross_entropy(z, labels))
    np.testing.assert_allclose(compiled(logits), cross_entropy(logits, labels), rtol=1e-6)
    wrong = labels + 7
    with pytest.raises(ValueError, match="label 7 is out of range"):
        jax.jit(lambda z: cross_entropy(z, wrong))(logits)


def test_small_labels_do_not_wrap():
    """uint8 labels among 300 classes: the comparison must not happen in uint8."""
    labels = jnp.array([255], jnp.uint8)
    assert jnp.isfinite(jax.jit(cross_entropy)(jnp.zeros([1, 300]), labels))
    assert jnp.isnan(jax.jit(cross_entropy)(jnp.zeros([1, 255]), labels))


def test_supervised():
    model = fgd.models.linear(2, 1)
    params = model.init(jax.random.key(0))
    x, y = jnp.ones((3, 2)), jnp.zeros((3, 1))
    plain = fgd.supervised(model, mse)
    np.testing.assert_allclose(plain(params, (x, y)), mse(model.apply(params, x), y))
    doubled = fgd.supervised(
        model.apply, mse, preprocess=lambda x: 2 * x, metrics={"max": lambda p, t: jnp.max(p - t)}
    )
    loss, metrics = doubled(params, (x, y))
    np.testing.assert_allclose(loss, mse(model.apply(params, 2 * x), y))
    np.testing.assert_allclose(metrics["max"], model.apply(params, 2 * x).max())


@pytest.mark.usefixtures("as_users")
def test_supervised_wants_pairs():
    loss_fn = fgd.supervised(lambda params, x: x * params, mse)  # a function without `key`, too
    assert loss_fn(1.0, (jnp.ones(2), jnp.ones(2))) == 0
    for batch in (jnp.ones((2, 3)), {"x": 1, "y": 2}, (1, 2, 3)):
        with pytest.raises(TypeError, match=r"expected a batch \(inputs, targets\), got"):
            loss_fn(1.0, batch)


def test_supervised_passes_the_key():
    def apply(params, x, *, key=None):
        return params * x * (0.0 if key is None else jax.random.uniform(key))

    loss_fn = fgd.supervised(apply, mse)
    batch = jnp.ones((3, 1)), jnp.ones((3, 1))
    assert loss_fn(2.0, batch) == 1.0
    assert loss_fn(2.0, batch, jax.random.key(0)) != 1.0


@pytest.mark.usefixtures("as_users")
def test_bad_arguments():
    with pytest.raises(ValueError, match=r"pred has shape \(5, 1\) and target \(5,\)"):
        mse(jnp.ones((5, 1)), jnp.ones(5))
    with pytest.raises(ValueError, match='reduction must be "mean"'):
        mse(jnp.ones(5), jnp.ones(5), reduction="max")
    for loss in (cross_entropy, accuracy):
        with pytest.raises(TypeError, match="labels have dtype float32, expected integers"):
            loss(jnp.ones((5, 4)), jnp.ones(5))
        with pytest.raises(ValueError, match=r"expected logits \[rows, classes\]"):
            loss(jnp.ones((5, 4)), jnp.ones((5, 1), int))


@pytest.mark.parametrize("loss", [cross_entropy, accuracy])
def test_one_class_is_no_choice(loss, as_users):
    """Its softmax is 1 whatever the logit: the loss would be 0, and nothing would be learned."""
    with pytest.raises(
        ValueError, match=r"logits have shape \(5, 1\), one class, .* give two logits"
    ):
        loss(jnp.ones((5, 1)), jnp.zeros(5, int))
    with pytest.raises(ValueError, match="one class"):
        jax.jit(jax.grad(lambda z: loss(z, jnp.zeros(5, int))))(jnp.ones((5, 1)))


# Weights, leading axes, smoothing, yes or no.

TIMES = DRAW.normal(size=(5, 3, 4))  # [rows, time, classes]
TOKENS = DRAW.integers(0, 4, (5, 3))
YES = DRAW.integers(0, 2, (5, 3))
COUNTS = np.array([2, 0, 1, 3, 1])
OF_ROWS = {
    "mse": (mse, PRED, TARGET),
    "cross_entropy": (cross_entropy, LOGITS, LABELS),
    "smoothed": (partial(cross_entropy, label_smoothing=0.1), LOGITS, LABELS),
    "of tokens": (cross_entropy, TIMES, TOKENS),
    "binary": (binary_cross_entropy, PRED, YES),
    "accuracy": (accuracy, TIMES, TOKENS),
    "binary_accuracy": (binary_accuracy, PRED, YES),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_weights_are_repetitions(name, x64):
    """A row of weight 3 counts as three rows, one of weight 0 as none."""
    loss, pred, target = OF_ROWS[name]
    pred, target = jnp.asarray(pred), jnp.asarray(target)
    repeated = [jnp.repeat(x, COUNTS, axis=0) for x in (pred, target)]
    weights = jnp.asarray(COUNTS)
    for reduction in ("mean", "sum"):
        expected = loss(*repeated, reduction=reduction)
        found = loss(pred, target, weights=weights, reduction=reduction)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    each = loss(pred, target, reduction="none")
    np.testing.assert_allclose(
        loss(pred, target, weights=weights, reduction="none"), np.asarray(each) * COUNTS, rtol=1e-12
    )
    np.testing.assert_allclose(loss(pred, target), each.mean(), rtol=1e-12)
    compiled = jax.jit(lambda w: loss(pred, target, weights=w))
    assert compiled(jnp.zeros(5, int)) == 0
    np.testing.assert_allclose(compiled(weights), loss(*repeated), rtol=1e-12)


def test_weights_of_tokens(x64):
    """A mask leaves out what is padding, whatever is there."""
    mask = DRAW.integers(0, 2, (5, 3))
    logits, tokens = jnp.asarray(TIMES), jnp.asarray(TOKENS)
    kept = mask.astype(bool)
    expected = cross_entropy(logits[kept], tokens[kept])
    np.testing.assert_allclose(cross_entropy(logits, tokens, weights=jnp.asarray(mask)), expected)


def test_leading_axes(x64):
    logits, tokens = jnp.asarray(TIMES), jnp.asarray(TOKENS)
    for loss in (cross_entropy, accuracy):
        flat = loss(logits.reshape(15, 4), tokens.reshape(15), reduction="none")
        rows = flat.reshape(5, 3).mean(axis=1)
        np.testing.assert_allclose(loss(logits, tokens, reduction="none"), rows, rtol=1e-12)
        np.testing.assert_allclose(loss(logits, tokens), flat.mean(), rtol=1e-12)


def test_label_smoothing(x64):
    """The cross-entropy of the softened target: 1 − ε + ε/n for the label, ε/n for all others."""
    target = 0.7 * np.eye(4)[LABELS] + 0.3 / 4
    expected = -(target * np.log(SOFTMAX)).sum(axis=1).mean()
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    found = cross_entropy(logits, labels, label_smoothing=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    traced = jax.jit(lambda e: cross_entropy(logits, labels, label_smoothing=e))(0.3)
    np.testing.assert_allclose(traced, expected, rtol=1e-12)


def test_binary_cross_entropy(x64):
    p = 1 / (1 + np.exp(-PRED))
    each = -np.where(YES, np.log(p), np.log(1 - p))
    logits = jnp.asarray(PRED)
    for targets in (jnp.asarray(YES), jnp.asarray(YES, bool), jnp.asarray(YES, float)):
        np.testing.assert_allclose(
            binary_cross_entropy(logits, targets, reduction="none"), each.mean(axis=1), rtol=1e-12
        )
    gradient = jax.grad(binary_cross_entropy)(logits, jnp.asarray(YES))
    np.testing.assert_allclose(gradient, (p - YES) / YES.size, rtol=1e-12)
    np.testing.assert_allclose(binary_accuracy(logits, jnp.asarray(YES)), ((p > 0.5) == YES).mean())
    ends = binary_cross_entropy(
        jnp.array([1e4, -1e4, 1e4, jnp.inf]), jnp.array([1, 1, 0, 1]), reduction="none"
    )
    np.testing.assert_allclose(ends, [0, 1e4, 1e4, 0])
    unknown = jax.jit(binary_cross_entropy)(logits[0], jnp.array([0.0, 0.5, 1.0]))
    assert jnp.isnan(unknown)


def test_wide_integers_do_not_wrap(as_users):
    """NumPy's int64, where JAX has int32: 2⁴⁰ would be 0."""
    found = mse(np.array([2**40, 0]), np.array([0, 0]))
    np.testing.assert_allclose(found, 2.0**79, rtol=1e-6)
