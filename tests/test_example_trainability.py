"""examples/trainability.py as its reader runs it, and its dimension against those of known sets."""

import importlib
import re

import numpy as np
import pytest
from scripts import EXAMPLES, assert_picture, assert_refused, run


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("trainability")


def koch(n):
    """Whether each of n × n pixels lies under the quadratic Koch curve, of dimension 3/2."""
    points, turns = np.array([0, 1 + 0j]), np.array([1, 1j, 1, -1j, -1j, 1, 1j, 1]) / 4
    for _ in range(4):
        steps = np.diff(points)[:, None] * turns
        corners = points[:-1, None] + np.cumsum(steps, axis=1)
        points = np.concatenate([points[:1], corners.ravel()])
    from matplotlib.path import Path

    shape = Path([*np.stack([points.real, points.imag], 1).tolist(), [1, -2], [0, -2]])
    at = (np.arange(n) + 0.5) / n
    grid = np.stack(np.meshgrid(at, at - 0.5), -1).reshape(-1, 2)
    return shape.contains_points(grid).reshape(n, n)


@pytest.mark.parametrize(
    ("inside", "dimension"),
    [
        (np.arange(256)[:, None] + 0 * np.arange(256)[None] < 100, 1),  # a line
        (np.hypot(*np.mgrid[:256, :256] - 128.0) < 90, 1),  # a circle
        (np.indices((256, 256)).sum(axis=0) % 2 == 0, 2),  # a plane of borders
        (koch(256), 1.5),
    ],
)
def test_box_counting_dimension(example, inside, dimension):
    assert example.box_counting_dimension(inside) == pytest.approx(dimension, abs=0.08)


def test_no_border_has_no_dimension(example):
    assert example.box_counting_dimension(np.ones([16, 16], bool)) == 0


def test_pictures_are_drawn(tmp_path):
    """Small rates converge, large ones diverge; the border is more than a line."""
    done = run("trainability.py", "--pixels", 32, "--num-steps", 100, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^window \d: ([\d.]+)% converge, dimension ([\d.]+)$", done.stdout, re.M)
    shares, dimensions = np.array(found, float).T
    assert len(found) == 4
    assert 20 < shares[0] < 80
    assert (dimensions < 2).all()
    assert_picture(tmp_path / "trainability.png")


def test_a_pixel_is_a_training_in_float64(example):
    """Far from the border: the same measure from descent with gradients on paper."""
    import jax
    import jax.numpy as jnp

    problem = example.problem(0)
    (x, y), start = jax.tree.map(lambda a: np.asarray(a, float), problem)
    for first, last in ((1.0, 1.2), (0.6, 2.6)):
        u, v, losses = *start, []
        for _ in range(100):
            with np.errstate(all="ignore"):
                hidden = np.tanh(x @ u / 4)
                error = hidden @ v / 16 - y
                losses.append(np.mean(error**2))
                slope = 2 * error / len(x) / 16
                back = slope @ v.T * (1 - hidden**2) / 4
                u, v = u - 10**first * x.T @ back, v - 10**last * hidden.T @ slope
        relative = np.nan_to_num(np.array(losses) / losses[0], nan=1e6, posinf=1e6).clip(max=1e6)
        converges = relative[-20:].mean() < 1
        expected = -relative.mean() if converges else (1 / relative).mean()
        pixel = example.pixel_of(*problem, num_steps=100)
        assert pixel(jnp.float32(first), jnp.float32(last)) == pytest.approx(expected, rel=1e-3)
        assert converges == (first == 1.0)


def test_the_problem_is_the_same_in_float64(example):
    import jax

    single = example.problem(0)
    with jax.enable_x64(True):
        double = example.problem(0)
        assert {x.dtype for x in jax.tree.leaves(double)} == {np.dtype(float)}
        jax.tree.map(np.testing.assert_array_equal, single, double)


def test_nonsense_is_one_line_and_exit_code_2(tmp_path):
    assert_refused(tmp_path, "trainability.py", ["--pixels", "12"], "--pixels must be a multiple")
