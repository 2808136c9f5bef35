"""Synthetic data, splitting and normalizing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd


def test_linear_is_a_line_with_noise():
    """R1's data: x ~ N(0, 1) of shape [100, 1], y = a + b·x + 0.1·N(0, 1)."""
    x, y = fgd.data.linear(
        jax.random.key(0), 10_000, slope=2.0, intercept=-1.0, noise=0.1, inputs=jax.random.normal
    )
    assert x.shape == y.shape == (10_000, 1)
    residual = np.asarray(y - (2 * x - 1))
    np.testing.assert_allclose([residual.std(), x.std()], [0.1, 1.0], rtol=0.03)
    np.testing.assert_allclose([residual.mean(), x.mean()], 0.0, atol=0.03)
    assert abs(np.corrcoef(residual[:, 0], x[:, 0])[0, 1]) < 0.03
    exact_x, exact_y = fgd.data.linear(jax.random.key(0), 500)
    assert 0 <= exact_x.min() < exact_x.max() <= 1
    np.testing.assert_allclose(exact_y, 3 * exact_x + 0.8, rtol=1e-6)


@pytest.mark.parametrize(("rows", "fraction", "first"), [(100, 0.8, 80), (7, 0.5, 4), (2, 0.5, 1)])
def test_split_loses_no_row(rows, fraction, first):
    data = {"x": jnp.arange(rows), "y": 10 * jnp.arange(rows)}
    parts = fgd.data.split(jax.random.key(0), data, fraction)
    assert [len(part["x"]) for part in parts] == [first, rows - first]
    together = np.concatenate([part["x"] for part in parts])
    np.testing.assert_array_equal(np.sort(together), np.arange(rows))
    for part in parts:
        np.testing.assert_array_equal(part["y"], 10 * np.asarray(part["x"]))  # rows stay together


def test_split_shuffles():
    first, _ = fgd.data.split(jax.random.key(0), jnp.arange(100), 0.8)
    other, _ = fgd.data.split(jax.random.key(1), jnp.arange(100), 0.8)
    assert not jnp.array_equal(first, jnp.arange(80))
    assert not jnp.array_equal(first, other)


def test_normalize():
    pixels = np.arange(256, dtype=np.uint8)
    expected = (np.arange(256) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(fgd.data.normalize(jnp.asarray(pixels)), expected, atol=1e-6)
    np.testing.assert_allclose(
        fgd.data.normalize(jnp.asarray(pixels), 0.1307, 0.3081),
        (np.arange(256) / 255 - 0.1307) / 0.3081,
        atol=1e-6,
    )


@pytest.mark.usefixtures("as_users")
def test_bad_arguments():
    with pytest.raises(ValueError, match="n must be at least 1"):
        fgd.data.linear(jax.random.key(0), 0)
    for fraction in (0.0, 1.0, 1.5, 0.001, float("nan")):
        with pytest.raises(ValueError, match="leaves a part without rows"):
            fgd.data.split(jax.random.key(0), jnp.arange(10), fraction)
    with pytest.raises(ValueError, match=r"split: data\[0\] has 2 rows but data\[1\] has 3"):
        fgd.data.split(jax.random.key(0), (jnp.ones(2), jnp.ones(3)), 0.5)
    with pytest.raises(TypeError, match="expected uint8 pixels, got float32"):
        fgd.data.normalize(jnp.ones(3))
