"""examples/flax_model.py as its reader runs it: in a process of its own."""

import re

import pytest
from scripts import assert_picture, assert_refused, run
from test_mnist import needs_files


def numbers(done):
    """The numbers that the example printed, by name."""
    assert done.returncode == 0, done.stderr
    names = "mean training loss|test accuracy|the same weights"
    found = re.findall(rf"^({names}) +([\d.]+)", done.stdout, re.M)
    assert len(found) == 3, done.stdout
    return {name: float(value) for name, value in found}


@pytest.mark.parametrize("style", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_bundled_sample(tmp_path, style):
    """784·200 + 200 + 2·200 + 200·10 + 10 parameters; a mean and a variance of 200 units."""
    options = ["--style", style, "--output", tmp_path]
    done = run("flax_model.py", "--source", "sample", *options)
    found = numbers(done)
    assert f"{style}: 159,410 parameters, 400 running statistics" in done.stdout
    assert found["mean training loss"] < 0.3
    assert found["test accuracy"] > 0.92
    assert found["the same weights"] < 0.6  # the statistics are part of what was learned
    for name in ("loss.png", "wrong.png"):
        assert_picture(tmp_path / name)


@pytest.mark.slow
@needs_files
def test_full_files(tmp_path):
    found = numbers(run("flax_model.py", "--source", "files", "--output", tmp_path))
    assert found["test accuracy"] > 0.965


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "haiku"], "--style"),
        (["--epochs", "0"], "--epochs"),
        (["--source", "sample", "--batch-size", "4001"], "batch_size=4001 is larger"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    assert_refused(tmp_path, "flax_model.py", arguments, message)
