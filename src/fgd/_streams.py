"""Random streams: every use of a key has its own, a function of (key, tag, counter)."""

import jax

# `jax.random.split(key)[i]` equals `fold_in(key, i)`, so small tags would collide with a user's
# own splits. These are large, distinct and never reused for another purpose.
SHUFFLE = 0x53_48_55_46  # "SHUF": the order of rows in an epoch
LOSS = 0x4C_4F_53_53  # "LOSS": the key that a stochastic loss receives at a step


def stream(key: jax.Array, tag: int, counter: int | jax.Array) -> jax.Array:
    """The key of draw number `counter` (an epoch, a step) in the stream named `tag`."""
    return jax.random.fold_in(jax.random.fold_in(key, tag), counter)
