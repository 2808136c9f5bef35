"""What a check is: a name, and a function that says what was expected and what came."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgd._checks import PyTree
from fgd._keys import has_keys


class Outcome(NamedTuple):
    """What was expected, what came, and whether that is right."""

    expected: str
    came: str
    is_right: bool


Check = Callable[[], Outcome]
CHECKS: dict[str, Check] = {}


def check(name: str, *, precision: str | None = "highest") -> Callable[[Check], Check]:
    """Adds a check. Names of those of JAX alone begin with "jax".

    Products are in float32 whatever precision is set, or seven digits could not be compared.
    """

    def add(function: Check) -> Check:
        def checked() -> Outcome:
            with jax.default_matmul_precision(precision) if precision else nullcontext():
                return function()

        return CHECKS.setdefault(name, checked)

    return add


def near(expected: PyTree, came: PyTree, tolerance: float) -> Outcome:
    """Numbers that may differ by `tolerance`, relative to the largest of their array."""
    want, have = ([_numbers(x) for x in jax.tree.leaves(tree)] for tree in (expected, came))
    if [x.shape for x in want] != [x.shape for x in have]:
        shapes = [str([x.shape for x in xs]) for xs in (want, have)]
        return Outcome(f"shapes {shapes[0]}", f"shapes {shapes[1]}", False)
    errors = [np.max(abs(h - w)) / (np.max(abs(w)) or 1) for w, h in zip(want, have, strict=True)]
    is_right = all(error <= tolerance for error in errors)  # NaN is not
    if sum(x.size for x in want) <= 4:
        flat = [np.concatenate([x.ravel() for x in xs]) for xs in (want, have)]
        expected_, came_ = (", ".join(f"{x:.7g}" for x in xs) for xs in flat)
        return Outcome(expected_, came_, is_right)
    limit = f"relative error ≤ {tolerance:.0e}" if tolerance else "the same bits"
    return Outcome(limit, f"relative error {np.max(errors):.1e}", is_right)


def _numbers(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if has_keys(x) else x).astype(np.float64)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Numbers of float32, in float64."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def single(*arrays: np.ndarray) -> list[jax.Array]:
    """The same numbers as JAX's arrays of float32."""
    return [jnp.array(x, jnp.float32) for x in arrays]
