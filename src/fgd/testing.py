"""For your own tests: is this gradient right?"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fgd import _checks, _trees
from fgd._checks import PyTree

_TOLERANCE = 1e-6  # relative; central differences in float64 are good for about 1e-9
_STEP = np.cbrt(np.finfo(np.float64).eps)  # balances truncation, h², against rounding, ε/h
_ELEMENTS = 100  # of each leaf that are looked at one by one


def check_gradients(
    loss: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batch: PyTree,
    *,
    analytic: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> None:
    """Asserts that `jax.grad(loss)` is right, in float64.

    It is compared with central differences, (loss(θ + h·d) − loss(θ − h·d)) / 2h, along every
    parameter (of a large leaf, along 100 of them) and along a random direction of all parameters;
    and with a formula, if there is one. A wrong `jax.custom_vjp` or `custom_jvp` is found out, too.
    Where the loss has a kink (a ReLU at exactly 0) differences say nothing: choose other points.

    Args:
      loss: `loss(params, batch) -> scalar`. It must follow its arguments' dtype: a cast to float32
        inside leaves differences without digits.
      params: pytree of floats; converted to float64.
      batch: anything; its float arrays are converted to float64.
      analytic: `analytic(params, batch) -> gradient`, a tree like `params`.

    Raises:
      AssertionError: a gradient is off by more than 1e-6 of the leaf's largest; says where it is
        worst, both values and the relative error.
      TypeError: a parameter is not a float.
      ValueError: the loss is not a scalar; the formula's tree does not match; says which leaf.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> def loss(params, batch):
      ...     return jnp.mean((params["w"] * batch - 1) ** 2)
      >>> def formula(params, batch):
      ...     return {"w": jnp.mean(2 * (params["w"] * batch - 1) * batch)}
      >>> fgd.testing.check_gradients(loss, {"w": 0.5}, jnp.arange(3.0), analytic=formula)
    """
    _checks.require_callable("check_gradients", "loss", loss, " of (params, batch)")
    if analytic is not None:
        _checks.require_callable("check_gradients", "analytic", analytic, " of (params, batch)")
    _trees.require_floats("check_gradients", params)
    with jax.enable_x64(True):
        params, batch = _float64(params), _float64(batch)
        value = jax.eval_shape(loss, params, batch)
        if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"check_gradients: the loss is {value}, expected a float scalar")
        value, gradient = jax.jit(jax.value_and_grad(loss))(params, batch)
        others = {"central difference": _differences(loss, params, batch)}
        if analytic is not None:
            others["formula"] = _float64(analytic(params, batch))
            if problem := _trees.mismatch(params, others["formula"]):
                raise ValueError(f"check_gradients: the formula's gradient{problem}")
        checks = [
            check
            for name, other in others.items()
            for check in _compare(name, gradient, other, abs(float(value)))
        ]
        checks.append(_along_a_random_direction(loss, params, batch, gradient, abs(float(value))))
    error, message = max(checks, key=lambda check: np.nan_to_num(check[0], nan=np.inf))
    if not error <= _TOLERANCE:
        raise AssertionError(f"check_gradients: {message}, relative error {error:.2g}")


def _float64(tree: PyTree) -> PyTree:
    def convert(leaf: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if is_float else leaf

    return jax.tree.map(convert, tree)


def _differences(loss: Callable[..., Any], params: PyTree, batch: PyTree) -> PyTree:
    """Central differences in the shape of `params`; NaN where a large leaf was not looked at."""
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(0)

    def one_leaf(k: int, leaf: jax.Array) -> np.ndarray:
        @jax.jit
        def at(elements: jax.Array) -> jax.Array:
            def difference(i: jax.Array) -> jax.Array:
                h = _STEP * jnp.maximum(1, abs(leaf.ravel()[i]))

                def moved(by: jax.Array) -> jax.Array:
                    new = leaf.ravel().at[i].add(by).reshape(leaf.shape)
                    return loss(
                        jax.tree.unflatten(tree, [*leaves[:k], new, *leaves[k + 1 :]]), batch
                    )

                return (moved(h) - moved(-h)) / (2 * h)

            return jax.lax.map(difference, elements)

        elements = draw.choice(leaf.size, min(leaf.size, _ELEMENTS), replace=False)
        numeric = np.full(leaf.size, np.nan)
        numeric[elements] = at(jnp.asarray(elements))
        return numeric.reshape(leaf.shape)

    return jax.tree.unflatten(tree, [one_leaf(k, leaf) for k, leaf in enumerate(leaves)])


def _compare(
    name: str, gradient: PyTree, other: PyTree, value: float
) -> Iterator[tuple[float, str]]:
    """The worst element of each leaf: (relative error, where and what)."""
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(other), strict=True
    ):
        a, b = np.asarray(ours), np.asarray(theirs)
        if a.size == 0:
            continue
        looked_at = ~np.isnan(b) if name == "central difference" else np.ones(b.shape, bool)
        errors = np.where(looked_at, _relative(a, b, np.max(abs(a), initial=0), value), 0)
        worst = np.unravel_index(np.argmax(np.nan_to_num(errors, nan=np.inf)), errors.shape)
        index = f"[{', '.join(map(str, worst))}]" if worst else ""
        where = f"∂loss/∂params{jax.tree_util.keystr(path)}{index}"
        yield errors[worst], f"{where} is {a[worst]:.9g} by autodiff, {b[worst]:.9g} by the {name}"


def _along_a_random_direction(
    loss: Callable[..., Any], params: PyTree, batch: PyTree, gradient: PyTree, value: float
) -> tuple[float, str]:
    """One directional derivative, to which every parameter contributes."""
    flat, unravel = ravel_pytree(params)
    slopes, _ = ravel_pytree(gradient)
    d = np.random.default_rng(1).normal(size=flat.size)
    d *= _STEP / np.linalg.norm(d)
    change = (loss(unravel(flat + d), batch) - loss(unravel(flat - d), batch)) / (2 * _STEP)
    ours, numeric = float(slopes @ d) / _STEP, float(change)
    error = _relative(ours, numeric, np.linalg.norm(slopes), value)
    where = "∂loss along a random direction"
    return float(error), f"{where} is {ours:.9g} by autodiff, {numeric:.9g} by the difference"


def _relative(a: Any, b: Any, largest: Any, value: float) -> Any:
    """|a − b| over the largest slope, or over what rounding of the loss lets one see."""
    return abs(a - b) / max(largest, 1e-3 * value, np.finfo(np.float64).tiny)
