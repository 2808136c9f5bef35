"""Which rows a step sees: a function of (key, step), with no state and no stored permutation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgd.data._shuffle import shuffle as shuffled


class Order(NamedTuple):
    """The order in which steps visit rows.

    Attributes:
      rows: how many there are.
      batch_size: how many a step sees.
      shuffle: each epoch in an order of its own; or round and round as they stand.
    """

    rows: int
    batch_size: int
    shuffle: bool

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the rows."""
        return self.rows // self.batch_size

    def at(self, key: jax.Array, step: jax.Array) -> jax.Array:
        """The rows of the batch that follows `step` completed steps, [batch_size]."""
        within = jnp.arange(self.batch_size, dtype=jnp.int32)
        if self.shuffle:
            epoch, i = jnp.divmod(step, self.steps_per_epoch)
            return shuffled(key, epoch, i * self.batch_size + within, self.rows)
        start = _times_modulo(step, self.batch_size, self.rows)
        return (start + within.astype(jnp.uint32)) % self.rows


def _times_modulo(a: jax.Array, b: int, n: int) -> jax.Array:
    """a · b mod n in 32 bits, for n < 2³¹: Horner's rule over the bits of b."""
    n_, a_ = jnp.uint32(n), a.astype(jnp.uint32) % jnp.uint32(n)
    product = jnp.uint32(0)
    for bit in f"{b:b}":
        product = 2 * product % n_
        if bit == "1":
            product = (product + a_) % n_
    return product
