"""`linear` and `mlp`: linear layers, with activations between them."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fgd import _checks
from fgd._checks import PyTree
from fgd.models._model import Model, require_layers, seeded


def linear(n_in: int, n_out: int) -> Model:
    """y = x·w + b, params {"w": [n_in, n_out], "b": [n_out]}.

    Both are drawn from U(−1/√n_in, 1/√n_in), as `torch.nn.Linear` does.

    Args:
      n_in: features of x, [rows, n_in]; further axes are flattened.
      n_out: features of y.

    Raises:
      TypeError, ValueError: a size that is not a positive int, or x of another size.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> model = fgd.models.linear(3, 2)
      >>> model.apply(model.init(0), jnp.ones([5, 3])).shape
      (5, 2)
    """
    sizes = (
        _checks.count("linear", "n_in", n_in, least=1),
        _checks.count("linear", "n_out", n_out, least=1),
    )
    layer = mlp(sizes)
    return Model(
        lambda key: layer.init(key)[0],
        lambda params, x, *, key=None: layer.apply([params], x, key=key),
    )


def mlp(
    sizes: Sequence[int], *, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
) -> Model:
    """A multilayer perceptron: linear layers with an activation between them.

    Params are `[{"w": [in, out], "b": [out]}, …]`, drawn as `torch.nn.Linear` does:
    U(−1/√in, 1/√in) for both.

    Args:
      sizes: features before, between and after the layers: [784, 200, 10] has two layers.
      activation: the function between layers.

    Raises:
      TypeError, ValueError: sizes that are not positive ints or fewer than two; at apply, x whose
        rows have another size. Axes after the first are flattened: images go in as they are.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> model = fgd.models.mlp([784, 200, 10])
      >>> model.apply(model.init(0), jnp.ones([5, 28, 28])).shape
      (5, 10)
    """
    if not isinstance(sizes, Sequence):
        raise TypeError(f"mlp: sizes must be a list of ints, got {_checks.describe(sizes)}")
    _checks.require_callable("mlp", "activation", activation, " such as jax.nn.relu")
    sizes = tuple(
        _checks.count("mlp", f"sizes[{i}]", size, least=1) for i, size in enumerate(sizes)
    )
    if len(sizes) < 2:
        raise ValueError(f"mlp: expected at least two sizes, got {list(sizes)}")

    @jax.jit
    def init(key: Key[Array, ""]) -> list[dict[str, jax.Array]]:
        keys = jax.vmap(jax.random.split)(jax.random.split(key, len(sizes) - 1))
        shapes = [shape for n_in, n_out in pairwise(sizes) for shape in ((n_in, n_out), (n_out,))]
        bounds = [1 / math.sqrt(n_in) for n_in in sizes[:-1] for _ in "wb"]
        leaves = iter(_uniform(keys.reshape(-1), shapes, bounds))
        return [{"w": w, "b": b} for w, b in zip(leaves, leaves, strict=True)]

    def apply(
        params: PyTree, x: Float[Array, "rows *features"], *, key: jax.Array | None = None
    ) -> Float[Array, "rows out"]:
        del key
        x = _flat(x, sizes[0])
        require_layers(params, [*pairwise(sizes)])
        for layer in params[:-1]:
            x = activation(_affine(layer, x))
        return _affine(params[-1], x)

    return Model(seeded("mlp", init), apply)


def _uniform(
    keys: jax.Array, shapes: list[tuple[int, ...]], bounds: list[float]
) -> list[jax.Array]:
    """For each (key, shape, bound), an array of that shape drawn from U(−bound, bound).

    Each is cut from a draw as long as the longest: XLA compiles one draw, where every length of its
    own would cost another quarter of a second of compiling.
    """
    counts = [math.prod(shape) for shape in shapes]

    def draw(key: jax.Array, bound: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (max(counts),), minval=-bound, maxval=bound)

    draws = jax.vmap(draw)(keys, jnp.array(bounds, float))
    return [x[:n].reshape(s) for x, n, s in zip(draws, counts, shapes, strict=True)]


def _affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    w, b = layer["w"], layer["b"]
    # One feature: the same product, as a pass that fuses with what surrounds it (R2c: 3 × faster).
    return (x * w if w.shape[0] == 1 else x @ w) + b[None]


def _flat(x: jax.Array, features: int) -> jax.Array:
    _checks.require_array("apply", "x", x, "floats")
    x = jnp.asarray(x)
    if x.ndim == 0 or math.prod(x.shape[1:]) != features:
        raise ValueError(
            f"apply: x has shape {x.shape}, expected [rows, …] with {features} values a row"
        )
    _checks.require_float_inputs(x)
    return x.reshape(x.shape[0], features)
