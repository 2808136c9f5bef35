"""Whatever is given to the public API: an error in words, or the right answer.

Arrays of any shape and dtype, empty ones, NaN and infinities, Python's numbers, trees and what is
no array at all. An error is a TypeError or ValueError (OverflowError) that begins with the
function's name; an answer is compared with NumPy's in float64, NaN for NaN.
"""

import re
import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from problems import examples

import fgd


@pytest.fixture(autouse=True, scope="module")
def users():
    """As users have it: no strictness but fgd's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


FLOATS = [np.float32, np.float64, np.float16, jnp.bfloat16]
DTYPES = [*FLOATS, np.bool_, np.uint8, np.int8, np.int32, np.int64, np.complex64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-30, 3e38, float("nan"), float("inf"), float("-inf")]


@st.composite
def arrays(draw, shape=None, dtypes=DTYPES, special=True):
    """NumPy's or JAX's."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    shape = draw(shapes) if shape is None else shape
    dtype = draw(st.sampled_from(dtypes))
    values = np.random.default_rng(draw(st.integers(0, 99))).normal(0, 3, shape)
    if special and values.size and draw(st.booleans()):
        values.flat[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from(SPECIAL))
    with np.errstate(all="ignore"):
        values = values.astype(dtype)
        return jnp.asarray(values) if draw(st.booleans()) else values


ODD = st.sampled_from(
    [None, "words", b"", object(), np.array(["a", "b"]), [1.0, 2.0], {}, jax.random.key(0)]
)
NUMBER = st.sampled_from(
    [0, 1, -1, 2, 0.5, 1e-3, float("nan"), float("inf"), 10**400, True, 1j, np.float32(2)]
)
ANYTHING = arrays() | NUMBER | ODD
TREES = st.recursive(
    ANYTHING,
    lambda x: st.lists(x, max_size=2) | st.dictionaries(st.sampled_from("ab"), x, max_size=2),
    max_leaves=3,
)
SMALL = st.integers(0, 4)


def answer(function, *args, says, **kwargs):
    """What is answered; None if it is refused in words."""
    try:
        with np.errstate(all="ignore"):
            return jax.block_until_ready(function(*args, **kwargs))
    except (TypeError, ValueError, OverflowError) as error:
        text = str(error)
        assert re.match(rf"({says})(:| )", text), f"{type(error).__name__}: {text}"  # noqa: PT017
        assert "Traced<" not in text
        assert "functools.partial(" not in text
        assert len(text) < 800
        return None


def wide(x):
    """In float64."""
    return np.asarray(x).astype(np.float64)


def agree(came, expected, dtype, rtol=None):
    """To the digits of `dtype`; what it can't hold may be infinite, what is not finite NaN."""
    info = jnp.finfo(dtype)
    came, expected = wide(came), np.asarray(expected, np.float64)
    assert came.shape == expected.shape
    fits = np.isfinite(expected) & (abs(expected) < 1e-3 * float(info.max))
    limit = 40 * float(info.eps) if rtol is None else rtol
    np.testing.assert_allclose(
        came[fits], expected[fits], rtol=limit, atol=limit * np.max(abs(expected[fits]), initial=1)
    )
    assert not np.isfinite(came[np.isnan(expected)]).any()


def of_floats(*xs):
    """The least precise of the floats that are computed with."""
    kinds = [
        x.dtype if jnp.issubdtype(getattr(x, "dtype", int), jnp.floating) else np.float32
        for x in xs
    ]
    return max(
        (np.float32 if k == np.float64 else k for k in kinds), key=lambda k: float(jnp.finfo(k).eps)
    )


def moderate(*xs):
    """Whether no intermediate result can overflow."""
    return all(np.all(~(abs(wide(x)) > 1e2)) for x in xs)


@examples(60, 1000)
@given(ANYTHING, ANYTHING, st.sampled_from(["mean", "sum", "none", "all", None]), st.booleans())
def test_mse(pred, target, reduction, alike):
    target = pred if alike else target
    came = answer(fgd.losses.mse, pred, target, reduction=reduction, says="mse")
    if came is None:
        return
    assert np.shape(pred) == np.shape(target)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mean of nothing
        square = (wide(pred) - wide(target)) ** 2
        rows = square.mean(axis=tuple(range(1, square.ndim)))
        expected = {"mean": np.mean, "sum": np.sum, "none": lambda _: rows}[reduction](square)
    if moderate(pred, target):
        agree(came, expected, of_floats(pred, target))


@st.composite
def classified(draw):
    shape = draw(st.tuples(SMALL, SMALL))
    labels = arrays(shape[:1], [np.int32, np.uint8, np.int64], special=False)
    return draw(arrays(shape) | ANYTHING), abs(np.asarray(draw(labels))) % max(shape[1], 1)


@examples(60, 1000)
@given(classified() | st.tuples(ANYTHING, ANYTHING), st.sampled_from(["mean", "sum", "none"]))
def test_classification(given_, reduction):
    logits, labels = given_
    entropy = answer(
        fgd.losses.cross_entropy, logits, labels, reduction=reduction, says="cross_entropy"
    )
    right = answer(fgd.losses.accuracy, logits, labels, reduction=reduction, says="accuracy")
    assert (entropy is None) == (right is None)
    if entropy is None:
        return
    z, rows = wide(logits), np.arange(len(labels))
    assert z.ndim == 2
    reduced = {"mean": np.mean, "sum": np.sum, "none": lambda x: x}[reduction]
    with np.errstate(all="ignore"):
        top = z.max(axis=1, keepdims=True)
        expected = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - z[rows, labels]
    agree(right, reduced((z.argmax(axis=1) == labels) * 1.0), np.float32)
    if moderate(logits):
        agree(entropy, reduced(expected), of_floats(logits))


@examples(30, 500)
@given(ANYTHING | arrays(dtypes=[np.uint8]), NUMBER, NUMBER)
def test_normalize(x, mean, std):
    came = answer(fgd.data.normalize, x, mean, std, says="normalize")
    if came is not None:
        agree(came, (wide(x) / 255 - float(mean)) / float(std), np.float32)


@examples(30, 300)
@given(
    TREES | st.integers(1, 6).flatmap(lambda n: st.lists(arrays((n, 2)), max_size=2)),
    NUMBER | st.floats(0, 1),
)
def test_split(data, fraction):
    parts = answer(fgd.data.split, jax.random.key(0), data, fraction, says="split")
    if parts is None:
        return
    first, second = (jax.tree.leaves(part) for part in parts)
    for a, b, x in zip(first, second, jax.tree.leaves(data), strict=True):
        assert len(a) == round(float(fraction) * len(x))
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            together = np.concatenate([np.asarray(a), np.asarray(b)]).astype(x.dtype)
            assert sorted(map(str, together.tolist())) == sorted(map(str, np.asarray(x).tolist()))


@examples(30, 300)
@given(
    ANYTHING | st.integers(0, 3),
    ANYTHING | arrays(dtypes=[np.int32, np.int8]),
    NUMBER | st.integers(0, 200),
)
def test_shuffle(epoch, positions, n):
    rows = answer(fgd.data.shuffle, jax.random.key(0), epoch, positions, n, says="shuffle")
    if rows is not None and np.size(positions):
        order = np.asarray(fgd.data.shuffle(jax.random.key(0), epoch, np.arange(n), n))
        assert (np.sort(order) == np.arange(n)).all()
        assert (np.asarray(rows) == order[np.asarray(positions)]).all()


@examples(30, 300)
@given(NUMBER | arrays(()), NUMBER, NUMBER, NUMBER)
def test_line(n, slope, intercept, noise):
    given_ = {"slope": slope, "intercept": intercept, "noise": noise}
    came = answer(fgd.data.linear, jax.random.key(0), n, says="linear", **given_)
    if came is not None and noise == 0:
        x, y = map(wide, came)
        assert x.shape == (int(n), 1)
        agree(y, float(slope) * x + float(intercept), np.float32)


@examples(40, 500)
@given(
    ANYTHING | arrays(dtypes=FLOATS),
    NUMBER | SMALL | st.tuples(SMALL, SMALL),
    st.none() | SMALL | st.tuples(SMALL, SMALL),
)
def test_pools(x, window, strides):
    for pool, of in ((fgd.conv.max_pool, np.max), (fgd.conv.avg_pool, np.mean)):
        came = answer(pool, x, window, strides, says=pool.__name__)
        if came is None:
            continue
        (h, w), (down, right) = (
            np.broadcast_to(s, 2) for s in (window, window if strides is None else strides)
        )
        windows = np.lib.stride_tricks.sliding_window_view(
            np.asarray(x).astype(np.complex128), (h, w), (1, 2)
        )
        windows = windows[:, ::down, ::right]
        if np.iscomplexobj(x):
            continue
        with np.errstate(all="ignore"):
            expected = of(windows.real, axis=(-2, -1))
        if moderate(x):
            agree(came, expected, of_floats(x))


@examples(20, 300)
@given(
    arrays(),
    arrays(),
    st.sampled_from(["SAME", "VALID", [(1, 0), (0, 2)], "OTHER"]),
    st.tuples(SMALL, SMALL),
)
def test_convolution(x, w, padding, strides):
    """What lax answers, and its error."""

    def of(convolution):
        try:
            return convolution(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        except Exception as error:
            return error

    ours, theirs = of(fgd.conv.conv_general_dilated), of(jax.lax.conv_general_dilated)
    if isinstance(theirs, Exception):
        assert type(ours) is type(theirs), (ours, theirs)
    else:
        np.testing.assert_allclose(wide(ours), wide(theirs), rtol=1e-2, atol=1e-2)


MODELS = {
    "linear": fgd.models.linear(3, 2),
    "mlp": fgd.models.mlp([4, 3, 2], activation=lambda x: x),
}


@examples(40, 500)
@given(st.sampled_from(sorted(MODELS)), TREES | st.none(), ANYTHING | arrays(dtypes=FLOATS))
def test_models(name, params, x):
    params = MODELS[name].init(0) if params is None else params
    came = answer(MODELS[name].apply, params, x, says="apply")
    if came is not None:
        y = wide(x).reshape(np.shape(x)[0], -1)
        for layer in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, dict)):
            with np.errstate(all="ignore"):
                y = y @ wide(layer["w"]) + wide(layer["b"])
        if moderate(x):
            agree(came, y, of_floats(x), rtol=1e-1 if of_floats(x) == jnp.bfloat16 else None)


@examples(20, 300)
@given(st.lists(ANYTHING, max_size=3) | st.lists(SMALL | st.booleans(), max_size=3))
def test_sizes(sizes):
    model = answer(fgd.models.mlp, sizes, says="mlp")
    if model is not None:
        y = model.apply(model.init(0), jnp.ones([2, int(sizes[0])]))
        assert y.shape == (2, int(sizes[-1]))


@examples(40, 500)
@given(
    st.sampled_from(["sgd", "momentum", "adagrad", "rmsprop", "adam"]),
    ANYTHING,
    TREES | arrays(dtypes=FLOATS),
)
def test_optimizers(name, learning_rate, params):
    """One step from g, of which every formula is known."""
    optimizer = answer(getattr(fgd, name), learning_rate, says=name)
    if optimizer is None:
        return
    step = answer(fgd.train_step, lambda p, b: 0.0, optimizer, says="train_step")
    if callable(learning_rate) or answer(step.init, params, says="step.init") is None:
        return
    grads = jax.tree.map(lambda p: jnp.full_like(jnp.asarray(p), 0.5), params)
    updates, _ = optimizer.update(grads, optimizer.init(jax.tree.map(jnp.asarray, params)))
    length = {"sgd": 0.5, "momentum": 0.5, "adagrad": 1, "rmsprop": 0.5 / (0.1 * 0.5), "adam": 1}[
        name
    ]
    for update in jax.tree.leaves(updates):
        agree(
            update,
            np.full(update.shape, -float(learning_rate) * length),
            of_floats(update),
            rtol=3e-2,
        )


@examples(12, 100)
@given(
    TREES | st.integers(1, 5).flatmap(lambda n: arrays((n, 2), FLOATS)),
    st.none() | NUMBER | SMALL,
    NUMBER | SMALL,
)
def test_runs(data, batch_size, num_steps):
    """fit, train, step and evaluate of the mean of everything."""

    def rows(batch):
        parts = [
            jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1).sum(axis=1)
            for x in jax.tree.leaves(batch)
        ]
        return sum(parts)

    step = fgd.train_step(lambda w, batch: w * jnp.mean(rows(batch)), fgd.sgd(1.0))
    state = step.init(1.0)
    complex_or_keys = any(
        np.dtype(getattr(x, "dtype", float)).kind not in "biuf"
        for x in jax.tree.leaves(data)
        if not jnp.issubdtype(getattr(x, "dtype", float), jnp.bfloat16)
        and not isinstance(x, str | bytes | jax.Array)
    )
    if complex_or_keys or any(
        jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or jnp.iscomplexobj(x)
        for x in jax.tree.leaves(data)
        if isinstance(x, jax.Array)
    ):
        data = jax.tree.map(lambda x: "refused", data)  # the loss above is not for them
    options = {"batch_size": batch_size, "num_steps": num_steps, "shuffle": False}
    came = answer(fgd.fit, step, state, data, says="fit", **options)
    if num_steps == 0 or came is not None:
        options["on_divergence"] = "continue"  # `fit` does
        trained = answer(fgd.train, step, state, data, says="train", **options)
        assert (trained is None) == (came is None)
    means = answer(
        fgd.evaluate, lambda w, b: {"m": rows(b)}, 1.0, data, batch_size=2, says="evaluate"
    )
    if means is None:
        assert came is None
        return
    with np.errstate(all="ignore"):
        each = sum(
            wide(x).astype(np.float32).astype(np.float64).reshape(len(x), -1).sum(axis=1)
            for x in jax.tree.leaves(data)
        )
    agree(means["m"], each.mean(), np.float32, rtol=1e-4)
    if came is not None and num_steps:
        size = len(each) if batch_size is None else int(batch_size)
        first = each[np.arange(size) % len(each)].mean()
        agree(came[1]["loss"][0], first, np.float32, rtol=1e-4)


@examples(15, 200)
@given(
    st.dictionaries(
        st.sampled_from("ab"), TREES | arrays() | st.lists(NUMBER, max_size=3), max_size=2
    ),
    NUMBER | SMALL | st.none(),
)
def test_sweeps(axes, max_parallel):
    def run(**point):
        return point

    came = answer(fgd.sweep, run, says="sweep", max_parallel=max_parallel, **axes)
    if came is None:
        return
    whole = {  # a list of numbers is one axis, any other list a pytree of arrays
        name: jnp.asarray(values)
        if isinstance(values, list) and all(np.shape(x) == () for x in values)
        else values
        for name, values in axes.items()
    }
    lengths = [len(jax.tree.leaves(values)[0]) for values in whole.values()]
    for i, (name, values) in enumerate(whole.items()):
        first = tuple(slice(None) if k == i else 0 for k in range(len(axes)))
        for leaf, expected in zip(
            jax.tree.leaves(came[name]), jax.tree.leaves(values), strict=True
        ):
            assert leaf.shape == (*lengths, *expected.shape[1:])
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(leaf[first], np.asarray(expected).astype(leaf.dtype))


@examples(20, 200)
@given(ANYTHING | arrays(dtypes=FLOATS), ANYTHING, ANYTHING, NUMBER | SMALL)
def test_plots(a, b, c, number):
    plots = fgd.plots
    calls = {
        "loss_curve": lambda: plots.loss_curve(a, every=number),
        "digits": lambda: plots.digits(a, b, c, columns=number),
        "fitted_line": lambda: plots.fitted_line(a, b, lambda x: 2 * x),
        "paths": lambda: plots.paths({"one": a, "two": b}),
        "contours": lambda: plots.contours(lambda p: jnp.sum(p), (number, 2), (0, 1), levels=2),
        "sweep_curves": lambda: plots.sweep_curves(a, b=b),
        "sweep_heatmap": lambda: plots.sweep_heatmap(a, b=b, c=c),
    }
    for name, call in calls.items():
        try:
            answer(call, says=name)
        finally:
            plt.close("all")
