"""examples/distill.py as its reader runs it: in a process of its own."""

import re

import pytest
from scripts import assert_picture, assert_refused, at_full_size, run
from test_mnist import needs_files


def accuracies(done):
    """Mean and least test accuracy, by what the networks learned from."""
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(ten .*?|an epoch .*?) +(0\.\d+)(?: +(0\.\d+))?", done.stdout, re.M)
    found, real, epoch = ([float(x) for x in numbers if x] for _, *numbers in rows)
    return found, real, epoch


@pytest.mark.slow
def test_ten_images_teach_more_than_ten_real_ones(tmp_path):
    small = ["--source", "sample", "--hidden", 32, "--networks", 2, "--num-steps", 40]
    done = run("distill.py", *small, "--learning-rate", 0.1, "--output", tmp_path)
    found, real, _ = accuracies(done)
    assert found[0] > real[0] + 0.1
    assert_picture(tmp_path / "lesson.png")


@pytest.mark.slow
@needs_files
@at_full_size
def test_ten_images_teach_as_much_as_an_epoch(tmp_path):
    found, real, epoch = accuracies(run("distill.py", "--output", tmp_path))
    assert found[0] >= 0.895
    assert found[0] > epoch[0] > real[0]
    assert found[1] > 0.86


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-steps", "0"], "--num-steps"),
        (["--learning-rate", "inf"], "--learning-rate"),
        (["--source", "sample", "--batch-size", "4001"], "batch_size=4001 is larger"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    assert_refused(tmp_path, "distill.py", arguments, message)
