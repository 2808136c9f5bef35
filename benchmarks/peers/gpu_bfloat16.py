"""The layers in bfloat16, parameters and the loss in float32."""

import jax
import jax.numpy as jnp

from benchmarks.peers import gpu


def mixed(apply):
    def apply_in_bfloat16(params, x, *, key=None):
        params, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))
        return apply(params, x, key=key).astype(jnp.float32)

    return apply_in_bfloat16


JOBS = gpu.jobs("r5e", "cnn", through=mixed)
