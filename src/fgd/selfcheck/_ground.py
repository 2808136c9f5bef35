"""What fgd stands on, at awkward sizes: one, primes, one more than a power of two."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fgd
from fgd.selfcheck._outcome import Outcome, check, near, normal, single


@check("jax: products, then their sums, past 32,768 rows")
def _matvecs() -> Outcome:
    matrix, rows = normal(0, 3, 3), [normal(n, n, 3) for n in (32_769, 100_003)]
    (w,) = single(matrix)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((w @ row) ** 2)))
    expected = [((x @ matrix.T) ** 2).sum(axis=1) for x in rows]
    return near(expected, [squares(x) for x in single(*rows)], 1e-5)


SIZES = (1, 7, 1), (33, 129, 65), (257, 1031, 3)
PAIRS = [(normal(m, m, n), normal(n, n, k)) for m, n, k in SIZES]


@check("jax: products of matrices")
def _products() -> Outcome:
    came = jax.jit(lambda pairs: [a @ b for a, b in pairs])([single(*pair) for pair in PAIRS])
    return near([a @ b for a, b in PAIRS], came, 1e-5)


@check("jax: products in the precision that is set", precision=None)
def _products_as_set() -> Outcome:
    a, b = PAIRS[1]
    came = np.asarray(jnp.matmul(*single(a, b)))
    error = np.max(abs(came - a @ b)) / np.max(abs(a @ b))
    kinds = {"float32": 1e-5, "TensorFloat-32": 2e-3, "bfloat16": 2e-2, "none of them": np.inf}
    kind = next(kind for kind, limit in kinds.items() if error <= limit)
    came = f"{kind}, relative error {error:.1e}"
    return Outcome("float32, TensorFloat-32 or bfloat16", came, bool(error <= 2e-2))


@check("jax: sums, maxima, variances, log-sum-exps")
def _reductions() -> Outcome:
    arrays = [normal(1, 65_537), normal(2, 257, 1031), normal(3, 1, 1)]

    def reduced(arrays: Sequence[Any], xp: Any) -> list[Any]:
        along = [(x, axis) for x in arrays for axis in range(x.ndim)]
        sums = [f(x, axis) for x, axis in along for f in (xp.sum, xp.max, xp.var)]
        return sums + [xp.log(xp.sum(xp.exp(x), axis)) for x, axis in along]

    return near(reduced(arrays, np), jax.jit(partial(reduced, xp=jnp))(single(*arrays)), 1e-5)


@check("jax: threefry, key 0 and counter 0 (Salmon and others, 2011)")
def _threefry() -> Outcome:
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 0)
    came = " ".join(f"{x:08x}" for x in np.asarray(jax.random.key_data(key)))
    return Outcome("6b200159 99ba4efe", came, came == "6b200159 99ba4efe")


@check("convolution and its two gradients")
def _convolution() -> Outcome:
    x, w, g = normal(0, 3, 13, 11, 5), normal(1, 3, 3, 5, 7), normal(2, 3, 11, 9, 7)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    y, dw = np.einsum("rhwcij,ijco->rhwo", windows, w), np.einsum("rhwcij,rhwo->ijco", windows, g)
    dx = np.zeros_like(x)
    for i, j in np.ndindex(3, 3):
        dx[:, i : i + 11, j : j + 9] += g @ w[i, j].T

    def convolved(x: jax.Array, w: jax.Array) -> jax.Array:
        dims = "NHWC", "HWIO", "NHWC"
        return fgd.conv.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=dims)

    @jax.jit
    def all_three(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        y, back = jax.vjp(convolved, x, w)
        return y, *back(g)

    return near((y, dx, dw), all_three(*single(x, w, g)), 1e-5)


@check("shuffle: every row at every place equally often, χ² in deviations")
def _shuffle() -> Outcome:
    n, epochs = 65, 1000

    @jax.jit
    def orders(key: jax.Array) -> jax.Array:
        order = partial(fgd.data.shuffle, key, positions=jnp.arange(n), n=n)
        return jax.lax.map(order, jnp.arange(epochs))

    rows = np.asarray(orders(jax.random.key(0)))
    counts = np.array([np.bincount(place, minlength=n) for place in rows.T])
    chi = ((counts - epochs / n) ** 2).sum() / (epochs / n)
    deviations = (chi - n * (n - 1)) / (np.sqrt(2) * n)  # of orders: a row has one place in each
    is_order = (np.sort(rows, axis=1) == np.arange(n)).all()
    came = f"{deviations:.1f}" if is_order else "orders with a row twice"
    return Outcome("-6 … 6", came, bool(is_order and abs(deviations) < 6))


@check("keys: each step of each seed draws its own, uniform numbers")
def _streams() -> Outcome:
    def loss_fn(params: jax.Array, batch: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key) + 0 * params * jnp.sum(batch)

    step, n = fgd.train_step(loss_fn, fgd.sgd(0.0)), 500
    runs = [fgd.fit(step, step.init(0.0, key), jnp.ones(3), num_steps=n) for key in (0, 1)]
    drawn = np.concatenate([history["loss"] for _, history in runs])
    low, own = np.mean(drawn < 0.5), len(np.unique(drawn))
    is_right = bool(abs(low - 0.5) < 0.1 and own > 2 * n - 3)  # of 2²³ values, two may be the same
    return Outcome(f"{2 * n} values, half below ½", f"{own} values, {low:.2f} below ½", is_right)
