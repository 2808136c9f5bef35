"""That jax computes what fgd stands on; the release excluded for wrong results fails here.

(0.11.1 is excluded too: it is right, but a loop that stacks its outputs takes quadratic time.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize("n", [32_768, 32_769, 100_000])
def test_vmapped_matvec_then_reduction(n):
    """jax 0.10.2 is silently wrong here on CPU, past 32,768 rows (jax#39103)."""
    draw = np.random.default_rng(0)
    rows, matrix = draw.normal(size=(n, 3)), draw.normal(size=(3, 3))
    w = jnp.asarray(matrix, jnp.float32)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((w @ row) ** 2)))
    expected = ((rows @ matrix.T) ** 2).sum(axis=1)
    np.testing.assert_allclose(
        squares(jnp.asarray(rows, jnp.float32)), expected, rtol=1e-3, atol=1e-4
    )
