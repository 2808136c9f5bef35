"""Steps in a loop: `lax.scan`, whose derivative needs memory for √steps states only."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgd import _jax

Body = Callable[[Any, None], tuple[Any, Any]]


def scan(body: Body, state: Any, length: int) -> tuple[Any, Any]:
    """`lax.scan(body, state, length=length)`; its derivative recomputes block by block."""
    body = jax.checkpoint(body, prevent_cse=False, policy=_saved)
    block = _block(length)
    if block == 1:
        return _loop(body, state, length)

    def steps_of_a_block(state: Any, _: None) -> tuple[Any, Any]:
        return _loop(body, state, block)

    # XLA can't merge what a loop computes again with what another loop computed, so there is no
    # common subexpression to protect.
    recomputed = jax.checkpoint(steps_of_a_block, prevent_cse=False)
    state, outputs = _loop(recomputed, state, length // block)
    outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
    if rest := length % block:
        state, last = _loop(body, state, rest)
        outputs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), outputs, last)
    return state, outputs


def _saved(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether the derivative of a step keeps a value: not what is cheap to compute again."""
    return primitive.name not in _CHEAP


_CHEAP = frozenset(
    "abs add add_any and bitcast_convert_type broadcast_in_dim ceil clamp concatenate "
    "convert_element_type copy copy_p div dynamic_slice eq expand_dims floor gather ge gt imag "
    "integer_pow iota le lt max min mul name ne neg not or pad real reshape rev round select_n "
    "shift_left shift_right_arithmetic shift_right_logical sign slice square squeeze stop_gradient "
    "sub transpose xor".split()
)


def _block(length: int) -> int:
    """The steps of a block: near √length, and a divisor if there is one; 1 in short loops."""
    root = math.isqrt(length)
    if root < 4:
        return 1
    return next((k for k in range(root, root // 2, -1) if length % k == 0), root)


def _loop(body: Body, state: Any, length: int) -> tuple[Any, Any]:
    """`lax.scan`, compiled as a loop even if it runs once.

    Composition bit for bit needs every step to be compiled as the same loop body.
    """
    if length != 1:
        return jax.lax.scan(body, state, length=length)
    with _jax.keep_loop():
        return jax.lax.scan(body, state, length=length)
