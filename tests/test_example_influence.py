"""examples/influence.py as its reader runs it: in a process of its own."""

import re

import pytest
from scripts import assert_picture, assert_refused, at_full_size, run
from test_mnist import needs_files

NAMES = "derivative of the run", "product of gradients", "the row's own loss"


def numbers(done):
    """What was printed for each name: its correlation with real retrainings, and an area."""
    assert done.returncode == 0, done.stderr
    return {
        name: [float(x) for x in re.findall(rf"^  {name} +(-?[\d.]+)$", done.stdout, re.M)]
        for name in NAMES
    }


@pytest.mark.slow
def test_a_derivative_foretells_retrainings(tmp_path):
    """At reduced size, on the sample; the true changes are real trainings without the rows."""
    small = ["--source", "sample", "--rows", 1000, "--hidden", 16, "--num-steps", 60]
    found = numbers(run("influence.py", *small, "--retrainings", 20, "--output", tmp_path))
    derivative, products, own = (abs(found[name][0]) for name in NAMES)
    assert derivative > 0.95
    assert derivative > max(products, own) + 0.1
    for name in ("foretold.png", "digits.png"):
        assert_picture(tmp_path / name)


@pytest.mark.slow
@needs_files
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=at_full_size) for s in (1, 2))])
def test_full_size(tmp_path, seed):
    found = numbers(run("influence.py", "--seed", seed, "--output", tmp_path))
    assert found[NAMES[0]][0] >= 0.95
    assert max(abs(found[name][0]) for name in NAMES[1:]) < 0.6
    # Flipped labels are found by both, and better by the rows' own loss.
    by_derivative, by_loss = found[NAMES[0]][1], found[NAMES[2]][1]
    assert 0.93 < by_derivative < by_loss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "19", "--source", "sample"], "--rows must be at least 20"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--retrainings", "0"], "--retrainings"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    assert_refused(tmp_path, "influence.py", arguments, message)
