"""examples/mnist.py as its reader runs it: in a process of its own."""

import re

import pytest
from scripts import assert_picture, assert_refused, run
from test_mnist import needs_files


def numbers(done):
    """The numbers that the example printed, by name."""
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(mean training loss|test accuracy|compile time|training time) +([\d.]+)",
                       done.stdout, re.M)  # fmt: skip
    assert len(found) == 4, done.stdout
    return {name: float(value) for name, value in found}


def test_bundled_sample(tmp_path):
    done = run("mnist.py", "--source", "sample", "--output", tmp_path / "out")
    found = numbers(done)
    assert "NOT the full set" in done.stdout
    assert 0.8 < found["mean training loss"] < 1.0
    assert found["test accuracy"] > 0.85
    for name in ("loss.png", "digits.png"):
        assert_picture(tmp_path / "out" / name)
    assert "step/s" not in done.stderr  # no progress bar where no terminal is


@pytest.mark.slow
@needs_files
def test_full_files_reproduce_r5e(tmp_path):
    """Published: mean loss 0.905 after one epoch (PyTorch 2.13: 0.894)."""
    found = numbers(run("mnist.py", "--source", "files", "--output", tmp_path))
    assert 0.85 < found["mean training loss"] < 0.95
    assert found["test accuracy"] >= 0.88


@pytest.mark.slow
@needs_files
def test_adam_for_five_epochs(tmp_path):
    found = numbers(run("mnist.py", "--optimizer", "adam", "--epochs", 5, "--output", tmp_path))
    assert found["test accuracy"] > 0.975


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--batch-size", "many"], "--batch-size"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--optimizer", "newton"], "--optimizer"),
        (["--source", "web"], "source must be one of"),
        (["--source", "sample", "--batch-size", "4001"], "batch_size=4001 is larger"),
        (["--data-dir", "/nowhere"], "lacks train-images-idx3-ubyte"),
        (["--output", "/proc/fgd"], "/proc/fgd"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    assert_refused(tmp_path, "mnist.py", arguments, message)
