"""examples/linear_regression.py and large_regression.py as their reader runs them."""

import re

import pytest
from scripts import assert_picture, assert_refused, run

NUMBER = r"-?\d+\.?\d*(?:e-?\d+)?"


def lines(done):
    """Every line that it printed, as the numbers in it."""
    assert done.returncode == 0, done.stderr
    return [
        (line, [float(number) for number in re.findall(NUMBER, line.replace(",", ", "))])
        for line in done.stdout.splitlines()
        if line and not line.startswith("wrote")
    ]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    """Everything that --part all prints, by the row of its lesson; and the pictures."""
    output = tmp_path_factory.mktemp("out")
    printed, row = {}, None
    for line, numbers in lines(run("linear_regression.py", "--every", 500, "--output", output)):
        if found := re.match(r"(R\d\w?): ", line):
            row = printed.setdefault(found[1], [])
        else:
            row.append((line, numbers))
    return printed, output


def test_r1_three_ways_agree(lessons):
    *ways, (_, (apart,)) = lessons[0]["R1"]
    assert [line.split()[0] for line, _ in ways] == ["NumPy", "jax.grad", "fgd"]
    assert apart < 2e-6  # float32
    for _, (w, b, training, validation) in ways:
        assert abs(w - 2) < 0.05  # the line's, up to noise of 0.1 on 80 points
        assert abs(b - 1) < 0.05
        assert 0.5 < training / 0.01 < 1.5
        assert 0.4 < validation / 0.01 < 2
        assert training < validation
    for numbers in zip(*(numbers for _, numbers in ways), strict=True):
        assert max(numbers) - min(numbers) < 3e-6


def test_r2b_as_published(lessons):
    (_, ours), (_, published), _ = lessons[0]["R2b"]
    assert published[:3] == [8.229387, 5.082875, 5.602187]
    assert abs(ours[0] - 8.229387) < 1e-4
    assert abs(ours[1] - 5.082875) < 2e-5
    assert abs(ours[2] - 5.602187) < 2e-5


def test_r4(lessons):
    """The loss falls, w and b approach 3 and 0.8; at a tenth of the rate there is far to go."""
    rows = [numbers for _, numbers in lessons[0]["R4a"]]
    assert [step for step, *_ in rows] == [500, 1000, 1500, 2000]
    distances = [(w - 3) ** 2 + (b - 0.8) ** 2 for _, w, b, _ in rows]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.05
    losses = [loss for *_, loss in rows]
    assert losses == sorted(losses, reverse=True)
    ((_, (w, b, loss)),) = lessons[0]["R4b"]
    assert 1e-3 < loss < 1
    assert 0 < w < 3
    assert 0.8 < b < 2.4


def test_r5d_as_published(lessons):
    """To every digit that was printed, but for the last one's rounding in float32."""
    first, published, losses, published_losses, (_, (_, apart)) = lessons[0]["R5d"]
    assert published[1] == [10.2335, -41.1289, -6.0890]
    assert published_losses[1] == [0.4142104, 0.2260517, 0.2231874, 0.2204667]
    assert first[1] == pytest.approx(published[1], abs=1e-4)
    assert losses[1][:4] == pytest.approx(published_losses[1], abs=3e-7)
    assert losses[1][4:] == [0, 10, 20, 30]
    assert apart < 1e-6


@pytest.mark.parametrize(
    "name", ["five_points", "five_points_loss", "line", "module", "fifteen_points"]
)
def test_pictures(lessons, name):
    assert_picture(lessons[1] / f"{name}.png")


@pytest.mark.parametrize("flags", [(), pytest.param(("--tree-sums",), marks=pytest.mark.slow)])
def test_r2c(tmp_path, flags):
    """500 of the steps; the whole number of them is in test_regression_parity."""
    head, *table = lines(
        run("large_regression.py", "--num-steps", 500, *flags, "--output", tmp_path)
    )
    assert head[0].startswith("500 steps on ")
    rows = {line.split()[0]: numbers for line, numbers in table[2:]}
    assert table[1][1][1] == 164.63
    assert [rows[name][2] for name in ("loss", "weight", "bias")] == [0.120936, 0.9995, 0.5632]
    for name in rows:
        assert abs(rows[name][0] - rows[name][1]) < 1e-5
    for name in ("line", "loss"):
        assert_picture(tmp_path / f"{name}.png")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("linear_regression.py", ["--part", "six-points"], "--part"),
        ("linear_regression.py", ["--every", "0"], "--every"),
        ("linear_regression.py", ["--every", "7", "--part", "line"], "--every 7 does not divide"),
        ("linear_regression.py", ["--output", "/proc/fgd"], "/proc/fgd"),
        ("large_regression.py", ["--num-steps", "-1"], "--num-steps"),
        ("large_regression.py", ["--num-steps", "3000000000"], "2³¹ − 1"),
        ("large_regression.py", ["--output", "/proc/fgd"], "/proc/fgd"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, script, arguments, message):
    assert_refused(tmp_path, script, arguments, message)
