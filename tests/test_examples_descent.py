"""examples/descent.py and examples/optimizers.py as their readers run them, but shorter."""

import itertools
import re

import jax
import numpy as np
import pytest
from PIL import Image
from scripts import assert_picture, assert_refused, run

import fgd


def rows(text, names):
    """The numbers after each name at the start of a line."""
    found = {}
    for name in names:
        (line,) = re.findall(rf"^{re.escape(name)} +(.*)$", text, re.M)
        found[name] = [float(x) if x != "stays" else np.inf for x in line.split()]
    return found


STEPS, FRAMES = 50, 3
OPTIMIZERS = ["sgd", "momentum", "nesterov", "averaging", "adagrad", "rmsprop", "adam"]


@pytest.fixture(scope="module")
def descent(tmp_path_factory):
    """What it printed, in three parts, and its folder."""
    output = tmp_path_factory.mktemp("descent")
    done = run("descent.py", "--num-steps", STEPS, "--frames", FRAMES, "--output", output)
    assert done.returncode == 0, done.stderr
    return re.split(r"^(?=x² − y² from|Beale)", done.stdout, flags=re.M), output


def test_learning_rates(descent):
    (text, *_), _ = descent
    found = rows(text, ["too small", "right", "oscillates", "diverges"])
    for rate, x, closed_form in found.values():
        assert closed_form == pytest.approx((1 - 2 * rate) ** 20, abs=1e-6)
        assert x == pytest.approx(closed_form, rel=1e-4, abs=2e-6)
    slow, right, oscillating, diverging = (x for _, x, _ in found.values())
    assert 0.5 < slow < 1
    assert right < 1e-6 < oscillating < 1 < diverging


def test_saddles(descent):
    (_, text, _), _ = descent
    position = rows(text, ["position", "closed form"])
    assert position["position"] == pytest.approx(position["closed form"], rel=1e-4)
    assert position["closed form"] == pytest.approx([0.96**STEPS, 1e-3 * 1.04**STEPS], abs=1e-6)

    found = rows(text, OPTIMIZERS)
    np.testing.assert_array_equal(found["sgd"], [np.inf, np.inf])  # 174 in the full run, and never
    np.testing.assert_array_equal(found["averaging"], [np.inf, np.inf])
    x_y, v = np.array([[1.0, 1e-3], [0.8, -0.6]]), np.zeros((2, 2))  # momentum by its formula
    left = [np.inf, np.inf]
    for t in range(1, STEPS):
        (x, y), (x2, y2) = x_y
        v = 0.9 * v + [[2 * x, -2 * y], [4 * x2**3, -3 * y2**2]]
        x_y = x_y - 0.02 * v
        left = [min(n, t) if y > 0.9 else n for n, y in zip(left, x_y[:, 1], strict=True)]
        x_y[x_y[:, 1] > 0.9] = 0.95  # far enough: stays out, does not overflow
    assert found["momentum"] == left == [46, 30]
    assert found["rmsprop"][0] < 10 < found["adam"][0] < 46  # they divide by the gradient's size


def test_valley(descent):
    (*_, text), _ = descent
    found = rows(text, OPTIMIZERS)
    assert all(np.isfinite(numbers).all() for numbers in found.values())
    x, y = 1.0, 1.5  # sgd, gradients by hand
    for _ in range(STEPS):
        errors = [c - x + x * y**k for k, c in enumerate([1.5, 2.25, 2.625], start=1)]
        dx = sum(2 * e * (y**k - 1) for k, e in enumerate(errors, start=1))
        dy = sum(2 * e * k * x * y ** (k - 1) for k, e in enumerate(errors, start=1))
        x, y = x - 0.01 * dx, y - 0.01 * dy
    assert found["sgd"][1:3] == pytest.approx([x, y], abs=1e-3)


def test_descent_draws(descent):
    _, output = descent
    for name in ("rates.png", "saddles.png", "valley.png"):
        assert_picture(output / name)
    with Image.open(output / "saddle.gif") as film:
        assert film.n_frames == FRAMES
        frames = []
        for i in range(FRAMES):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB"), float))
    assert min(frames[0].shape[:2]) >= 300
    assert all(np.abs(a - b).max() > 50 for a, b in itertools.pairwise(frames))


BATCHES = ["stochastic, 1 row", "mini-batch, 20 rows", "batch, all rows"]
MOMENTUM = ["v ← μ·v + g", "v ← (1 − α)·v + α·g"]
ADAPTIVE = ["AdaGrad", "RMSProp", "Adam"]


@pytest.mark.slow
def test_optimizers(tmp_path):
    done = run("optimizers.py", "--num-steps", 300, "--batch-size", 20, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    x, y = (np.asarray(a, float)[:, 0] for a in fgd.data.linear(jax.random.key(0), 500, noise=0.3))
    ((w, b, lowest),) = rows(done.stdout, ["least squares"]).values()
    assert [w, b] == pytest.approx(np.polyfit(x, y, 1), abs=1e-3)
    assert lowest == pytest.approx(np.mean((w * x + b - y) ** 2), abs=1e-6)

    gradients = -2 * np.stack([x * y, y])  # of each row, at w = b = 0: R5c
    for name, numbers in {
        "gradient at (0, 0)": gradients.mean(axis=1),
        "mean of those of rows": gradients.mean(axis=1),
        "their spread": gradients.std(axis=1),
    }.items():
        (printed,) = re.findall(rf"^{re.escape(name)} +∂w +(\S+), ∂b +(\S+)$", done.stdout, re.M)
        assert [float(number) for number in printed] == pytest.approx(numbers, abs=2e-5)

    found = rows(done.stdout, BATCHES + MOMENTUM + ADAPTIVE)
    w_, b_ = 0.0, 0.0  # batch descent by hand
    for _ in range(300):
        error = w_ * x + b_ - y
        w_, b_ = w_ - 0.1 * 2 * np.mean(error * x), b_ - 0.1 * 2 * np.mean(error)
    assert found["batch, all rows"][:2] == pytest.approx([w_, b_], abs=2e-4)
    for w, b, loss, excess, _ in found.values():
        assert loss == pytest.approx(np.mean((w * x + b - y) ** 2), abs=2e-4)
        assert excess == pytest.approx(loss - lowest, rel=1e-2, abs=2e-6)
        assert loss < 2 * lowest
    one, some, every = (found[name][-1] for name in BATCHES)
    # The noise of a gradient goes as 1/√rows: √20 = 4.5 between these; a full batch has none.
    assert 3 < one / some < 7
    assert every < some / 20
    plain, averaging = (found[name][-1] for name in MOMENTUM)
    assert averaging < plain / 3
    (apart,) = re.findall(r"at most ([\d.e+-]+) apart", done.stdout)
    assert float(apart) < 1e-5
    for name in ("losses.png", "paths.png"):
        assert_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("descent.py", ["--num-steps", "0"], "--num-steps"),
        ("descent.py", ["--num-steps", "3000000000"], "where the counter ends"),
        ("descent.py", ["--frames", "some"], "--frames"),
        ("descent.py", ["--learning-rate", "nan"], "--learning-rate"),
        ("optimizers.py", ["--batch-size", "501"], "batch_size=501 is larger"),
        ("optimizers.py", ["--learning-rate", "1e308"], "learning_rate must be finite"),
        ("optimizers.py", ["--seed", "99999999999"], "--seed must fit"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, script, arguments, message):
    assert_refused(tmp_path, script, arguments, message)
