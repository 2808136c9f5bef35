"""examples/mnist_99.py as its reader runs it: in a process of its own."""

import re

import pytest
from scripts import assert_picture, assert_refused, run
from test_mnist import needs_files


@pytest.mark.slow
@needs_files
def test_one_pass_over_mnist(tmp_path):
    """Over many seeds the mean is 99.0 %; the standard deviation, less than 0.1 %."""
    done = run("mnist_99.py", "--seeds", 2, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    mean, least = map(float, re.findall(r"(?:mean|least) ([\d.]+)", done.stdout))
    assert mean > 0.986
    assert 0.986 < least <= mean
    for name in ("test accuracy", "data and compile", "training and test", "from the start"):
        assert re.search(rf"^{name} +[\d.]+", done.stdout, re.M), done.stdout
    assert_picture(tmp_path / "misread.png")


def test_the_sample_is_too_small(tmp_path):
    """In a process of its own: optax's schedule can't be traced under strict promotion."""
    done = run("mnist_99.py", "--source", "sample", "--output", tmp_path)
    assert done.returncode == 2
    assert "takes the full training set, not 4,000" in done.stderr.splitlines()[-1]


def test_nonsense_is_one_line_and_exit_code_2(tmp_path):
    assert_refused(tmp_path, "mnist_99.py", ["--seeds", "0"], "--seeds")
