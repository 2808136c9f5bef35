"""What the derivative of a run keeps of its steps, and in which blocks it computes them again."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from fgd._run.loop import Body
from fgd._trees import nbytes

EVERYTHING = 2**28  # bytes up to which all steps are kept if nobody says otherwise
Blocks = tuple[int, ...]


class Memory(NamedTuple):
    """For a run that may be differentiated.

    Attributes:
      most: bytes that its derivative may keep; None: see `blocks_for`.
    """

    most: int | None = None


def saving(body: Body) -> Body:
    """`body`, of which the derivative keeps only what is costly to compute again.

    That is products and transcendental functions, and what `jax.ad_checkpoint.checkpoint_name` has
    named. Of a batch it is the numbers of its rows: they are gathered, and scaled, again.
    """
    return jax.checkpoint(body, prevent_cse=False, policy=_is_costly)


def _is_costly(primitive: Any, *operands: Any, **_: Any) -> bool:
    # `jax.checkpoint` can't keep complex numbers: it would round them as floats.
    dtypes = [getattr(x, "dtype", float) for x in operands]  # a token has none
    is_complex = any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes)
    return primitive.name not in _COMPUTED_AGAIN and not is_complex


_NAMES = """
abs add add_any and bitcast_convert_type broadcast_in_dim ceil clamp concatenate
convert_element_type copy copy_p div dynamic_slice eq expand_dims floor gather ge gt imag
integer_pow iota le lt max min mul ne neg not or pad real reshape rev round rsqrt select_n
shift_left shift_right_arithmetic shift_right_logical sign slice sqrt square squeeze stop_gradient
sub transpose xor
"""
_COMPUTED_AGAIN = frozenset(
    [*_NAMES.split(), "complex", "eig", "fft"]
)  # the last give complex numbers


def blocks_for(
    body: Body, state: Any, records: int, every: int, max_memory: int | None
) -> tuple[Blocks, Blocks]:
    """Blocks for the loop of `records` entries of the history, and for the steps of an entry.

    Args:
      body: a step, as `saving` returns it.
      every: steps of an entry.
      max_memory: bytes that the derivative may keep of all steps. None: everything, if that is no
        more than `EVERYTHING`, or else one level of blocks, which keeps about √steps states.

    Raises:
      ValueError: there are no blocks that keep as little as `max_memory`; says the least.
    """
    steps = records * every
    state_bytes, step_bytes = nbytes(state), _left(body, state)
    if max_memory is None:
        few = steps * step_bytes <= EVERYTHING
        blocks = () if few else _with_levels(1, steps, every, state_bytes, step_bytes)[0]
    else:
        blocks, kept = _fewest(steps, every, state_bytes, step_bytes, max_memory)
        if kept > max_memory:
            raise ValueError(
                f"fit: max_memory={max_memory:,} bytes is too little for the derivative of "
                f"{steps:,} steps, each of which leaves {step_bytes:,} bytes, with a state of "
                f"{state_bytes:,} bytes; it takes at least {kept:,}"
            )
    return tuple(b // every for b in blocks if b >= every), tuple(b for b in blocks if b < every)


def _fewest(steps: int, every: int, state: int, step: int, most: int) -> tuple[Blocks, int]:
    """As few levels of blocks as keep at most `most` bytes, or those that keep the least."""
    best = (), steps * step
    for levels in range(1, steps.bit_length()):
        if best[1] <= most:
            break
        best = min(best, _with_levels(levels, steps, every, state, step), key=lambda x: x[1])
    return best


def _with_levels(levels: int, steps: int, every: int, state: int, step: int) -> tuple[Blocks, int]:
    """So many levels of blocks, and the bytes that are kept. Each computes every step once more.

    With c states in each of d levels and k steps in an innermost block, cᵈ·k = steps, states take
    d·c·state bytes and the steps of a block k·step; their sum is least where c·state = k·step.
    """
    innermost = (steps * (state / max(step, 1)) ** levels) ** (1 / (levels + 1))
    count = max((steps / max(innermost, 1)) ** (1 / levels), 1)
    blocks, kept, outer = [], 0, steps
    for level in range(1, levels + 1):
        block = steps / count**level
        if block >= every:  # whole entries of the history
            block = every * _near(outer // every, block / every)
            kept += -(-outer // block) * state
        else:
            block = _near(min(outer, every), block)
            kept += outer // min(outer, every) * -(-min(outer, every) // block) * state
        blocks.append(block)
        outer = block
    return tuple(blocks), kept + outer * step


def _near(length: int, block: float) -> int:
    """A divisor of `length` near `block`, if there is one, so that no steps are left over."""
    block = min(max(round(block), 1), length)
    return next((k for k in range(block, block // 2, -1) if length % k == 0), block)


def _left(body: Body, state: Any) -> int:
    """Bytes that a step leaves for its derivative by everything, what it closes over included.

    A step that has no derivative, because of a callback for example, leaves none.
    """
    step = jax.make_jaxpr(lambda state: body(state, None))(state)
    flat = jax.tree.leaves(state)

    def left(closed_over: Any, flat: Any) -> Any:  # leaves: of a pullback itself JAX keeps notes
        def outputs(closed_over: Any, flat: Any) -> Any:
            return jax.core.eval_jaxpr(step.jaxpr, closed_over, *flat)

        return jax.tree.leaves(jax.vjp(outputs, closed_over, flat)[1])

    try:
        jaxpr = jax.make_jaxpr(left)(step.consts, flat).jaxpr
    except Exception:  # JAX has several; it says them again to who asks for the derivative
        return 0
    shared = {*jaxpr.constvars, *jaxpr.invars[: len(step.consts)]}  # by all steps
    kept = {x for x in jaxpr.outvars if not hasattr(x, "val")} - shared
    return sum(nbytes(x.aval) for x in kept)
