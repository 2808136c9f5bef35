"""`cnn`: convolutions and pooling, then linear layers."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fgd import _checks
from fgd._checks import PyTree
from fgd._keys import as_key
from fgd.conv import conv_general_dilated, max_pool
from fgd.models._model import Model, require_layers, seeded


def cnn(
    image_shape: Sequence[int],
    channels: Sequence[int],
    features: Sequence[int],
    *,
    kernel_size: int | Sequence[int] = 5,
    strides: int | Sequence[int] = 1,
    pool: int | Sequence[int] = 2,
    padding: str = "SAME",
    dropout: float = 0.0,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> Model:
    """A convolutional network: convolution, max-pooling and activation; again; then linear layers.

    Params are a list, [{"w": [size, size, in, out], "b": [out]}, …] for the convolutions and
    [{"w": [in, out], "b": [out]}, …] for the linear layers. Both are drawn as `torch.nn.Conv2d`
    and `torch.nn.Linear` do: U(−1/√n, 1/√n), n the inputs that each output sees. Between the two,
    images are flattened as height, width, channels.

    For activations that never fall (relu, tanh) this is also convolution, activation, pooling, with
    the work of the activation divided by the area of the pool.

    Args:
      image_shape: height and width, and channels if not 1.
      channels: of each convolution's result.
      features: of each linear layer's result; the last are the outputs.
      kernel_size: height and width of the kernels, one for all or one for each convolution.
      strides: steps from one place of the kernel to the next, likewise.
      pool: height, width and strides of the pooling, likewise; 1 is none.
      padding: "SAME", zeros around the image so that a convolution keeps its size (divided by the
        strides, rounded up), or "VALID", none.
      dropout: in training mode (a key is given), the probability in [0, 1) with which each feature
        between linear layers is set to 0; the others are divided by 1 − dropout.
      activation: the function between layers.

    Raises:
      TypeError, ValueError: sizes that are not positive ints, too few of them, images too small for
        the kernels and pools, another padding, a dropout that is no such probability; at apply, x
        of another shape or not of floats.

    Source:
      LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition",
      1998; dropout: Srivastava et al., JMLR 15, 2014.

    Example:
      >>> import fgd, jax.numpy as jnp
      >>> model = fgd.models.cnn([28, 28], [32, 64], [256, 10])
      >>> model.apply(model.init(0), jnp.ones([5, 28, 28])).shape
      (5, 10)
    """
    image, channels, features = (
        _sizes(name, sizes, least)
        for name, sizes, least in (
            ("image_shape", image_shape, 2), ("channels", channels, 1), ("features", features, 1)
        )
    )  # fmt: skip
    height, width, *depths = image
    if len(depths) > 1:
        raise ValueError(f"cnn: expected image_shape [height, width, channels], got {list(image)}")
    kernels = _one_for_each("kernel_size", kernel_size, len(channels))
    steps = _one_for_each("strides", strides, len(channels))
    pools = _one_for_each("pool", pool, len(channels))
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'cnn: padding must be "SAME" or "VALID", got {padding!r}')
    if isinstance(dropout, bool) or not isinstance(dropout, float | int) or not 0 <= dropout < 1:
        raise ValueError(f"cnn: dropout must be a probability in [0, 1), got {dropout!r}")

    _checks.require_callable("cnn", "activation", activation, " such as jax.nn.relu")

    depth = depths[0] if depths else 1
    expected = height, width, depth
    shapes: list[tuple[int, ...]] = []
    layers = list(zip(kernels, steps, pools, strict=True))
    for i, ((size, stride, area), out) in enumerate(zip(layers, channels, strict=True)):
        shapes.append((size, size, depth, out))
        lost, depth = (size - 1 if padding == "VALID" else 0), out
        height, width = (math.ceil((n - lost) / stride) // area for n in (height, width))
        if height < 1 or width < 1:
            raise ValueError(
                f"cnn: after convolution {i} and its pooling nothing is left of images "
                f"{image[0]} × {image[1]}; use fewer layers, or smaller kernel_size, strides or "
                "pool"
            )
    sizes = (height * width * depth, *features)
    shapes += pairwise(sizes)

    counts = [math.prod(shape) + shape[-1] for shape in shapes]

    @jax.jit
    def init(key: Key[Array, ""]) -> list[dict[str, jax.Array]]:
        # One draw, cut into the layers: XLA takes a quarter of a second to compile each draw.
        draws = jax.random.uniform(key, (sum(counts),), minval=-1, maxval=1)
        params = []
        for shape, count, end in zip(shapes, counts, accumulate(counts), strict=True):
            layer = draws[end - count : end] / math.sqrt(math.prod(shape[:-1]))
            params.append({"w": layer[: -shape[-1]].reshape(shape), "b": layer[-shape[-1] :]})
        return params

    def apply(
        params: PyTree, x: Float[Array, "rows height width ..."], *, key: jax.Array | None = None
    ) -> Float[Array, "rows out"]:
        x = _images(x, expected)
        require_layers(params, shapes)
        if key is not None:
            key = as_key("apply", key)
        layout = "NHWC", "HWIO", "NHWC"
        for layer, (_, stride, area) in zip(params[: len(layers)], layers, strict=True):
            by = stride, stride
            x = conv_general_dilated(x, layer["w"], by, padding, dimension_numbers=layout)
            x = max_pool(x, area) if area > 1 else x
            # The bias is the same in each pool: adding it once is enough.
            x = activation(x + layer["b"][None, None, None])
        x = x.reshape(x.shape[0], -1)
        for i, layer in enumerate(params[len(layers) : -1]):
            x = activation(x @ layer["w"] + layer["b"][None])
            if dropout and key is not None:
                kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - dropout, x.shape)
                x = jnp.where(kept, x / (1 - dropout), 0)
        return x @ params[-1]["w"] + params[-1]["b"][None]

    return Model(seeded("cnn", init), apply)


def _sizes(name: str, sizes: Sequence[int], least: int) -> tuple[int, ...]:
    if not isinstance(sizes, Sequence):
        raise TypeError(f"cnn: {name} must be a list of ints, got {sizes!r}")
    if len(sizes) < least:
        raise ValueError(f"cnn: {name} must have at least {least} of them, got {list(sizes)}")
    return tuple(_checks.count("cnn", f"{name}[{i}]", n, least=1) for i, n in enumerate(sizes))


def _one_for_each(name: str, sizes: int | Sequence[int], layers: int) -> tuple[int, ...]:
    if not isinstance(sizes, Sequence):
        return (_checks.count("cnn", name, sizes, least=1),) * layers
    if len(sizes) != layers:
        raise ValueError(f"cnn: {name} has {len(sizes)} sizes for {layers} convolutions")
    return _sizes(name, sizes, layers)


def _images(x: jax.Array, expected: tuple[int, int, int]) -> jax.Array:
    _checks.require_array("apply", "x", x, "floats")
    x = jnp.asarray(x)
    x = x[..., None] if x.ndim == 3 and expected[2] == 1 else x
    if x.ndim != 4 or x.shape[1:] != expected:
        raise ValueError(
            f"apply: x has shape {x.shape}, expected [rows, {', '.join(map(str, expected))}]"
            + (" or without the last axis" if expected[2] == 1 else "")
        )
    _checks.require_float_inputs(x)
    return x
