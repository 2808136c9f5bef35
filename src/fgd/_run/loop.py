"""Steps in a loop: `lax.scan`, whose derivative keeps everything or computes blocks again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgd import _jax

Body = Callable[[Any, None], tuple[Any, Any]]


def scan(body: Body, state: Any, length: int, blocks: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """`lax.scan(body, state, length=length)`, whose derivative recomputes block by block.

    Args:
      blocks: the steps of a block, of a block within it, and so on. The derivative keeps the state
        at the beginning of each, and within an innermost one what every step leaves.
    """
    if not blocks:
        return _loop(body, state, length)
    block, within = blocks[0], blocks[1:]

    def in_blocks(state: Any, block: int, count: int) -> tuple[Any, Any]:
        def steps_of_a_block(state: Any, _: None) -> tuple[Any, Any]:
            return scan(body, state, block, tuple(b for b in within if b < block))

        # XLA can't merge what a loop computes again with what another loop computed, so there is
        # no common subexpression to protect.
        state, outputs = _loop(jax.checkpoint(steps_of_a_block, prevent_cse=False), state, count)
        return state, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

    state, outputs = in_blocks(state, block, length // block)
    if rest := length % block:
        state, last = in_blocks(state, rest, 1)
        outputs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), outputs, last)
    return state, outputs


def _loop(body: Body, state: Any, length: int) -> tuple[Any, Any]:
    """`lax.scan`, compiled as a loop even if it runs once.

    Composition bit for bit needs every step to be compiled as the same loop body.
    """
    if length != 1:
        return jax.lax.scan(body, state, length=length)
    with _jax.keep_loop():
        return jax.lax.scan(body, state, length=length)
