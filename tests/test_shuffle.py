"""The order of rows: a bijection, uniform, and independent of everything else that is random."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from problems import examples
from scipy.stats import chi2

import fgd
from fgd import _keys


@examples(6, 60)
@given(
    st.integers(1, 3000) | st.sampled_from([63, 64, 65, 128, 129, 4096, 4097]), st.integers(0, 9)
)
@example(1, 0)
@example(65, 3)
@example(4097, 9)
def test_bijection(n, epoch):
    rows = fgd.data.shuffle(jax.random.key(1), epoch, jnp.arange(n), n)
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))


def test_any_size_from_any_start():
    n = 2**31 - 1
    positions = jnp.array([0, 1, n // 2, n - 1], jnp.int32)
    rows = fgd.data.shuffle(jax.random.key(0), 3, positions, n)
    assert ((rows >= 0) & (rows < n)).all()
    alone = jnp.stack([fgd.data.shuffle(jax.random.key(0), 3, p, n) for p in positions])
    np.testing.assert_array_equal(rows, alone)


def p_value(counts, expected):
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1)


OTHERS = [pytest.param(n, marks=pytest.mark.slow) for n in (4, 6, 7, 9, 10, 11, 100, 129)]


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12, 64, 65, *OTHERS])
def test_uniform(n):
    """χ² of the row at a position, and of the rows at a pair of positions, over epochs."""
    epochs = 100 * n * (n - 1) if n <= 12 else 300_000
    positions = jnp.array(sorted({0, 1, n // 2, n - 2, n - 1}))
    shuffle = jax.vmap(lambda epoch: fgd.data.shuffle(jax.random.key(7), epoch, positions, n))
    rows = np.asarray(jax.jit(shuffle)(jnp.arange(epochs)))
    tests = len(positions) + len(positions) * (len(positions) - 1) // 2
    for i in range(len(positions)):
        counts = np.bincount(rows[:, i], minlength=n)
        assert p_value(counts, epochs / n) > 1e-3 / tests, f"position {positions[i]}"
    for i, j in itertools.combinations(range(len(positions)), 2):
        pairs = np.bincount(rows[:, i] * n + rows[:, j], minlength=n * n).reshape(n, n)
        assert (np.diag(pairs) == 0).all()
        counts = pairs[~np.eye(n, dtype=bool)]
        assert counts.size == 2 or p_value(counts, epochs / counts.size) > 1e-3 / tests, (i, j)


def test_the_order_does_not_depend_on_the_precision():
    for n in (20, 1000):
        rows = fgd.data.shuffle(jax.random.key(0), 3, jnp.arange(10), n)
        with jax.enable_x64(True):
            np.testing.assert_array_equal(
                rows, fgd.data.shuffle(jax.random.key(0), 3, jnp.arange(10), n)
            )


def test_epochs_are_independent():
    """Pairs (row at position 0 in epoch e, and in epoch e + 1) are uniform too."""
    n, epochs = 12, 40_000
    shuffle = jax.vmap(lambda epoch: fgd.data.shuffle(jax.random.key(2), epoch, jnp.int32(0), n))
    rows = np.asarray(shuffle(jnp.arange(epochs)))
    counts = np.bincount(rows[:-1] * n + rows[1:], minlength=n * n)
    assert p_value(counts, (epochs - 1) / n**2) > 1e-3


def test_keys_are_disjoint():
    """No two uses of one key ever draw from the same derived key, a user's own splits included."""
    key, count = jax.random.key(0), 2000
    numbers = jnp.arange(count)
    derived = [
        jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers),
        *[
            jax.vmap(lambda i, tag=tag: _keys.draw_key(key, tag, i))(numbers)
            for tag in (_keys.SHUFFLE, _keys.LOSS)
        ],
        jax.random.split(key, count),
    ]
    data = [np.asarray(jax.random.key_data(keys)) for keys in derived]
    # split(key, k)[i] is fold_in(key, i): the collision that tags are there to avoid.
    np.testing.assert_array_equal(data[0], data[3])
    distinct = np.unique(np.concatenate(data[:3]), axis=0)
    assert len(distinct) == 3 * count


def test_bad_n():
    with pytest.raises(ValueError, match="n must be in 1"):
        fgd.data.shuffle(jax.random.key(0), 0, jnp.arange(2), 0)
