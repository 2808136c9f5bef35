"""Random access into a random order: no permutation is stored, sorted or carried along."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import count, describe, is_concrete, require_array
from fgd._keys import SHUFFLE, draw_key, require_key

_EXACT = 64  # up to here an order is drawn whole: a Feistel network on so few rows is not uniform
_ROUNDS = 8  # from 65 rows on, positions and pairs of positions then pass a χ² test


def shuffle(key: jax.Array, epoch: int | jax.Array, positions: jax.Array, n: int) -> jax.Array:
    """The rows that stand at `positions` in the order of `epoch`.

    For every (key, epoch) the map from position to row is a bijection on 0 … n − 1: a keyed
    Feistel network on the next power of two, walked along its cycles until it lands below n.

    Args:
      key: typed PRNG key of the run.
      epoch: which order, an int32 scalar; orders of different epochs are independent.
      positions: integers in [0, n), any shape.
      n: number of rows, 1 … 2³¹ − 1 (a Python int).

    Returns:
      int32 rows in [0, n), of the shape of `positions`.

    Raises:
      TypeError, ValueError: no key, or what is not integers of these ranges (as far as known).

    Source:
      Mitchell, Stokes, Frank and Holmes, "Bandwidth-Optimal Random Shuffling for GPUs",
      ACM TOPC 2022, section 3 (cycle-walking); the network and its mixing function are fgd's.

    Example:
      >>> import fgd, jax, jax.numpy as jnp
      >>> rows = fgd.data.shuffle(jax.random.key(0), 0, jnp.arange(1000), 1000)
      >>> bool((jnp.sort(rows) == jnp.arange(1000)).all())
      True
    """
    _check(key, epoch, positions, n)
    key = draw_key(key, SHUFFLE, epoch)
    if n <= _EXACT:
        order = jnp.argsort(jax.random.bits(key, (n,), jnp.uint32))
        return order[jnp.asarray(positions)].astype(jnp.int32)
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)
    bits = (n - 1).bit_length()

    def walk(rows: jax.Array) -> jax.Array:
        return jnp.where(rows < n, rows, _feistel(round_keys, rows, bits))

    rows = _feistel(round_keys, jnp.asarray(positions).astype(jnp.uint32), bits)
    return jax.lax.while_loop(lambda rows: jnp.any(rows >= n), walk, rows).astype(jnp.int32)


def _check(key: Any, epoch: Any, positions: Any, n: Any) -> None:
    require_key("shuffle", key)
    if not 0 < count("shuffle", "n", n, least=0) < 2**31:
        raise ValueError(f"shuffle: n must be in 1 … 2³¹ − 1, got {n}")
    for name, x in (("epoch", epoch), ("positions", positions)):
        require_array("shuffle", name, x, "integers")
        if not jnp.issubdtype(jnp.result_type(x), jnp.integer):
            raise TypeError(f"shuffle: {name} is {describe(x)}, expected integers")
    if jnp.shape(epoch) != ():
        raise ValueError(f"shuffle: epoch has shape {jnp.shape(epoch)}, expected a scalar")
    for name, x, end in (("epoch", epoch, 2**31), ("positions", positions, n)):
        known = np.asarray(x) if is_concrete(x) else np.zeros(0)
        if known.size and not (known.min() >= 0 and known.max() < end):
            raise ValueError(f"shuffle: {name} must be in [0, {end}), got {describe(x)}")


def _feistel(round_keys: jax.Array, x: jax.Array, bits: int) -> jax.Array:
    """A bijection on [0, 2^bits): each round swaps two halves and encrypts one with the other."""
    low = bits // 2
    high = bits - low
    for round_key in round_keys:
        left, right = x >> low, x & jnp.uint32((1 << low) - 1)
        left = (left ^ _mix(right ^ round_key)) & jnp.uint32((1 << high) - 1)
        x = (right << high) | left
        high, low = low, high
    return x


def _mix(x: jax.Array) -> jax.Array:
    """A 32-bit integer hash, Wellons' lowbias32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
