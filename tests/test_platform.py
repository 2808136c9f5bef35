"""That jax computes what fgd stands on; the releases excluded in pyproject.toml fail here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize("n", [32_768, 32_769, 100_000])
def test_vmapped_matvec_then_reduction(n):
    """jax 0.10.2 is silently wrong here on CPU, from 32,769 rows on (jax#39103)."""
    draw = np.random.default_rng(0)
    x, w = draw.normal(size=(n, 2)).astype(np.float32), draw.normal(size=(4, 2)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def mean_square(w):
        return jnp.mean((jnp.asarray(x) @ w) ** 2)

    expected = ((x.astype(np.float64) @ w.T.astype(np.float64)) ** 2).mean(axis=0)
    np.testing.assert_allclose(mean_square(jnp.asarray(w)), expected, rtol=1e-5)


def test_stacked_scan_outputs_are_linear_in_length():
    """jax 0.11.1 makes them quadratic (jax#40101): count the bytes that the program touches."""

    def bytes_accessed(length):
        def run(x):
            return jax.lax.scan(lambda c, _: (c * 0.5, c), x, length=length)

        compiled = jax.jit(run).lower(jnp.ones(64)).compile()
        return compiled.memory_analysis().temp_size_in_bytes + (
            compiled.memory_analysis().output_size_in_bytes
        )

    assert bytes_accessed(4000) < 6 * bytes_accessed(1000)
