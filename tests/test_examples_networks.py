"""autograd.py and two_layer_net.py as their readers run them: in processes of their own."""

import re

import numpy as np
import pytest
from scripts import assert_picture, assert_refused, run


def rows(done):
    """What was printed as `name   [numbers]` or `name   number`, by name."""
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^ *(\S.*?) {2,}\[?([-\d. e]+)\]?", done.stdout, re.M)
    return {name: np.array(text.split(), float) for name, text in found}


def test_autograd(tmp_path):
    done = run("autograd.py", "--output", tmp_path / "out")
    found = rows(done)
    # R2a, published.
    np.testing.assert_allclose(found["y"], [5.6569], atol=5e-5)
    np.testing.assert_allclose(found["∂y/∂x"], [2.8284, 2.8284], atol=5e-5)
    assert "published 5.6569" in done.stdout
    assert "published [2.8284 2.8284]" in done.stdout
    np.testing.assert_allclose(found["∂y/∂z"], [2**-0.5, 2**-0.5], atol=5e-5)
    graph = re.search(r"lambda ; a:f32\[2\]\. let\n(.*) in", done.stdout, re.S)
    operations = re.findall(r"= (\w+)", re.sub(r"\[.*?\]", "", graph[1]))
    assert operations == ["mul", "mul", "reduce_sum", "sqrt"]
    # R3b, R3c: below, at and above 0; clip has its kinks at −1 and 1.
    np.testing.assert_array_equal(found["at"], [-1, 0, 1])
    np.testing.assert_array_equal(found["ReLU by hand"], [0, 1, 1])
    np.testing.assert_array_equal(found["jax.nn.relu"], [0, 0, 1])
    np.testing.assert_array_equal(found["jnp.clip(x, -1, 1)"], [0.5, 1, 0.5])
    # R4c.
    np.testing.assert_array_equal(found["∇ Σ x·x"], [2, 2])
    np.testing.assert_array_equal(found["∇ Σ x·stop_gradient(x)"], [1, 1])
    np.testing.assert_array_equal(found["stop_gradient(x), changed"], [100, 1])
    np.testing.assert_array_equal(found["x, as it was"], [1, 1])
    assert_picture(tmp_path / "out" / "kinks.png")


@pytest.mark.slow
def test_autograd_elsewhere(tmp_path):
    """‖4·(3, −4)‖ = 20, its gradient 4·(3, −4)/5; nothing published is printed beside it."""
    done = run("autograd.py", "--x", 3, -4, "--output", tmp_path)
    found = rows(done)
    np.testing.assert_allclose(found["y"], [20])
    np.testing.assert_allclose(found["∂y/∂x"], [2.4, -3.2])
    np.testing.assert_allclose(found["∂y/∂z"], [0.6, -0.8])
    assert "published" not in done.stdout


def losses(done):
    """{style: {step: loss}}"""
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^([a-z-]+) +(\d+: .*)$", done.stdout, re.M)
    return {
        style: {int(t): float(v) for t, v in re.findall(r"(\d+): (\S+)", text)}
        for style, text in lines
    }


def test_all_styles(tmp_path):
    done = run("two_layer_net.py", "--num-steps", 23, "--output", tmp_path)
    found = losses(done)
    assert list(found) == ["raw", "autograd", "custom-relu", "sequential", "adam", "module"]
    for curve in found.values():
        assert list(curve) == [4, 8, 12, 16, 20, 23]  # with what is left of 23
        assert curve[23] < curve[4]
    for style in ("autograd", "custom-relu"):  # the same arithmetic: three digits are printed
        np.testing.assert_allclose(
            list(found[style].values()), list(found["raw"].values()), rtol=1e-2
        )
    assert found["raw"][4] > 1e7 > found["raw"][23]
    assert found["adam"][23] > 2 * found["sequential"][23]  # small steps of one size each
    assert found["module"][4] != found["sequential"][4]  # drawn in another order

    # R3d: Python runs an eager loss at each of two times 23 steps, a compiled one when it traces.
    calls = dict(re.findall(r"^(eager|compiled \w+) .*by Python: (\d+) ×$", done.stdout, re.M))
    assert calls == {"eager": "46", "compiled step": "1", "compiled run": "1"}
    assert re.search(r"23 steps of Adam, \d\d+ operations each", done.stdout)
    assert len(re.findall(r"[\d.]+ ms, +[\d.]+ ms;", done.stdout)) == 3
    assert_picture(tmp_path / "losses.png")


@pytest.mark.slow
def test_one_style_to_the_end(tmp_path):
    """R3e, all 500 steps: six orders of magnitude."""
    done = run("two_layer_net.py", "--style", "sequential", "--output", tmp_path)
    (curve,) = losses(done).values()
    assert list(curve) == [100, 200, 300, 400, 500]
    assert 0.1 < curve[100] < 10
    assert curve[500] < 1e-4
    assert_picture(tmp_path / "losses.png")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("autograd.py", ["--x", "one"], "--x"),
        ("autograd.py", ["--x", "0", "0"], "‖4x‖ is 0.0"),
        ("autograd.py", ["--x", "nan"], "‖4x‖ is nan"),
        ("autograd.py", ["--x", "1e30", "1"], "‖4x‖ is inf"),
        ("autograd.py", ["--output", "/proc/fgd"], "/proc/fgd"),
        ("two_layer_net.py", ["--style", "relu"], "--style"),
        ("two_layer_net.py", ["--num-steps", "0"], "--num-steps"),
        ("two_layer_net.py", ["--num-steps", "1.5"], "--num-steps"),
        ("two_layer_net.py", ["--output", "/proc/fgd"], "/proc/fgd"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, name, arguments, message):
    assert_refused(tmp_path, name, arguments, message)
