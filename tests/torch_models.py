"""A table of PyTorch's models, each with its counterpart here: `MODELS`, by name.

Square wherever they can be, so that shapes say nothing and only the outputs tell.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import fgd

torch = pytest.importorskip("torch")
nn = torch.nn


class Model(NamedTuple):
    """A model in PyTorch and in JAX, and what has to be said about the two."""

    theirs: Callable[[], Any]
    ours: Callable[..., Any]  # of the parameters and the inputs
    inputs: tuple = ([4],)  # a row: an image (moved to channels last), [as it is], or n, words of n
    like: Callable[[], Any] | None = None  # None: as PyTorch names them
    names: dict | None = None
    flattened: dict | None = None
    right_from: str = "model, file"  # what is enough to be right


class Net(nn.Module):
    """Layers, registered in their order, and what is done with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, *x):
        return self.function(self, *x)


# Layers in JAX, as anyone would write them.


def dense(p, x):
    y = x @ p.get("w", p.get("kernel"))
    bias = p.get("b", p.get("bias"))
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def conv(p, x, strides=1, padding="VALID", groups=1):
    window = "DHW"[5 - x.ndim :]
    layout = f"N{window}C", f"{window}IO", f"N{window}C"
    y = jax.lax.conv_general_dilated(
        x, p["w"], (strides,) * len(window), padding,
        dimension_numbers=layout, feature_group_count=groups,
    )  # fmt: skip
    return y + jnp.broadcast_to(p["b"], y.shape) if "b" in p else y


def conv_transpose(p, x, strides=1):
    window = "DHW"[5 - x.ndim :]
    layout = f"N{window}C", f"{window}IO", f"N{window}C"
    w = p.get("w", p.get("kernel"))
    y = jax.lax.conv_transpose(x, w, (strides,) * len(window), "VALID", dimension_numbers=layout)
    return y + jnp.broadcast_to(p.get("b", p.get("bias")), y.shape)


def relu_conv(p, x, **options):
    return jax.nn.relu(conv(p, x, **options))


def batch_norm(p, x):
    mean, var, w, b = (jnp.broadcast_to(p[k], x.shape) for k in ("mean", "var", "w", "b"))
    return (x - mean) / jnp.sqrt(var + 1e-5) * w + b


def norm(p, x, axes=(-1,)):
    x = x - x.mean(axes, keepdims=True)
    x = x / jnp.sqrt((x**2).mean(axes, keepdims=True) + 1e-5)
    return x * jnp.broadcast_to(p["w"], x.shape) + jnp.broadcast_to(p["b"], x.shape)


def group_norm(p, x, groups):
    h = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    h = h - h.mean((1, 3), keepdims=True)
    h = (h / jnp.sqrt((h**2).mean((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
    return h * jnp.broadcast_to(p["w"], x.shape) + jnp.broadcast_to(p["b"], x.shape)


def flat(x):
    return x.reshape(len(x), -1)


def first(x):
    """Channels first, as PyTorch has them."""
    return jnp.moveaxis(x, -1, 1)


def table(p, x):
    return p["embedding"][x]


relu = jax.nn.relu


def by_name(model):
    """Parameters named as PyTorch's, of no values yet, by the types of its layers."""
    layers, like = dict(model.named_modules(remove_duplicate=False)), {}
    for key, value in model.state_dict().items():
        layer, _, kind = key.rpartition(".")
        own, shape = kind, tuple(value.shape)
        if isinstance(layers[layer], nn.Embedding | nn.EmbeddingBag):
            own = "embedding"
        elif isinstance(layers[layer], nn.ConvTranspose1d | nn.ConvTranspose2d):
            own, shape = kind.replace("weight", "w"), (*shape[2:], *shape[:2])[: 9 * len(shape)]
        elif kind == "weight":
            own = "w"
            shape = (*shape[2:], shape[1], shape[0]) if len(shape) > 1 else shape
        own = {"running_mean": "mean", "running_var": "var", "bias": "b"}.get(own, own)
        if kind != "num_batches_tracked":
            dtype = str(value.dtype).removeprefix("torch.")
            like.setdefault(layer, {})[own] = jax.ShapeDtypeStruct(shape, dtype)
    return like | like.pop("", {})


def fgds(model):
    """A model of fgd's own: how it is applied, and what it is like."""
    return {
        "ours": lambda p, x: model.apply(p, x),
        "like": lambda: jax.eval_shape(model.init, jax.random.key(0)),
    }


def flax(module, *sample):
    """A linen module, likewise."""

    def apply(params, *x):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return module.apply(params, *x)

    return {
        "ours": apply,
        "like": lambda: jax.eval_shape(module.init, jax.random.key(0), *map(jnp.asarray, sample)),
    }


def flax_nnx(factory):
    """An nnx module, likewise; its whole state but the drawn numbers."""

    def split():
        return nnx.split(factory(nnx.Rngs(0)), nnx.RngState, ...)

    def apply(params, *x):
        graph, randomness, _ = split()
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return nnx.merge(graph, randomness, params)(*x)

    return {"ours": apply, "like": lambda: split()[2]}


L, C1, C2, C3 = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
MODELS: dict[str, Model] = {}

# Dense layers.

MLP3 = fgds(fgd.models.mlp([4, 4, 4, 4]))


def chain(p, x, *layers):
    """Dense layers with relu between."""
    for layer in layers[:-1]:
        x = relu(dense(p[layer], x))
    return dense(p[layers[-1]], x)


def in_turn(*layers):
    def forward(m, x):
        for layer in layers[:-1]:
            x = m.get_submodule(layer)(x).relu()
        return m.get_submodule(layers[-1])(x)

    return forward


def alternating(*layers):
    """With a ReLU after each but the last."""
    return nn.Sequential(*[x for layer in layers[:-1] for x in (layer, nn.ReLU())], layers[-1])


MODELS |= {
    "linear": Model(lambda: L(4, 4), **fgds(fgd.models.linear(4, 4))),
    "sequential": Model(
        lambda: alternating(L(5, 4), L(4, 3)), inputs=([5],), **fgds(fgd.models.mlp([5, 4, 3]))
    ),
    "sequential, square": Model(lambda: alternating(L(4, 4), L(4, 4), L(4, 4)), **MLP3),
    "sequential of 15": Model(
        lambda: alternating(*[L(4, 4) for _ in range(8)]), **fgds(fgd.models.mlp([4] * 9))
    ),
    "net.0 … net.14": Model(
        lambda: Net(lambda m, x: m.net(x), net=alternating(*[L(4, 4) for _ in range(8)])),
        **fgds(fgd.models.mlp([4] * 9)),
    ),
    "nested sequentials": Model(
        lambda: nn.Sequential(alternating(L(4, 4), L(4, 4)), nn.ReLU(), alternating(L(4, 4))),
        names={"0.0": 0, "0.2": 1, "2.0": 2},
        **MLP3,
    ),
    "head, hidden, inp": Model(
        lambda: Net(in_turn("inp", "hidden", "head"), hidden=L(4, 4), inp=L(4, 4), head=L(4, 4)),
        names={"inp": 0, "hidden": 1, "head": 2},
        **MLP3,
    ),
    "head, hidden, inp, by name": Model(
        lambda: Net(in_turn("inp", "hidden", "head"), hidden=L(4, 4), inp=L(4, 4), head=L(4, 4)),
        lambda p, x: chain(p, x, "inp", "hidden", "head"),
    ),
    "features, classifier": Model(
        lambda: Net(
            lambda m, x: m.classifier(m.features(x)),
            features=nn.Sequential(L(4, 4), nn.ReLU()),
            classifier=alternating(L(4, 4), L(4, 4)),
        ),
        names={"features.0": 0, "classifier.0": 1, "classifier.2": 2},
        **MLP3,
    ),
    "module list": Model(
        lambda: Net(
            in_turn("layers.0", "layers.1", "layers.2"),
            layers=nn.ModuleList([L(4, 4), L(4, 4), L(4, 4)]),
        ),
        **MLP3,
    ),
    "module list and a head": Model(
        lambda: Net(
            in_turn("layers.0", "layers.1", "head"),
            layers=nn.ModuleList([L(4, 4), L(4, 4)]),
            head=L(4, 4),
        ),
        names={"layers.0": 0, "layers.1": 1, "head": 2},
        **MLP3,
    ),
    "module dict": Model(
        lambda: Net(
            in_turn("parts.b", "parts.a"), parts=nn.ModuleDict({"a": L(4, 4), "b": L(4, 4)})
        ),
        lambda p, x: chain(p, x, "parts.b", "parts.a"),
    ),
    "no bias": Model(lambda: L(4, 4, bias=False), lambda p, x: dense(p, x), right_from="model"),
    "no bias, not square": Model(lambda: L(4, 3, bias=False), lambda p, x: dense(p, x)),
    "residual, a layer used twice": Model(
        lambda: Net(lambda m, x: m.out(x + m.block(m.block(x).relu())), block=L(4, 4), out=L(4, 4)),
        lambda p, x: dense(p["out"], x + dense(p["block"], relu(dense(p["block"], x)))),
    ),
    "linen, fc1 and fc2": Model(
        lambda: Net(in_turn("fc2", "fc1"), fc1=L(4, 4), fc2=L(4, 4)),
        names={"fc2": "layers_0", "fc1": "layers_2"},
        **flax(linen.Sequential([linen.Dense(4), linen.relu, linen.Dense(4)]), jnp.ones([1, 4])),
    ),
    "nnx, numbered": Model(
        lambda: alternating(L(4, 4), L(4, 4)),
        names={"0": "layers.0", "2": "layers.2"},
        **flax_nnx(
            lambda rngs: nnx.Sequential(
                nnx.Linear(4, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 4, rngs=rngs)
            )
        ),
    ),
    "batch norm, of fgd's model_state": Model(
        lambda: nn.Sequential(L(4, 4), nn.BatchNorm1d(4), nn.ReLU(), L(4, 4)),
        names={"0": "Dense_0", "1": "BatchNorm_0", "3": "Dense_1"},
        ours=lambda v, x: BATCH_NORM.apply(*v, x)[0],
        like=lambda: jax.eval_shape(BATCH_NORM.init, jax.random.key(0)),
    ),
    "bfloat16": Model(
        lambda: Net(in_turn("a", "b"), a=L(4, 4), b=L(4, 4)).to(torch.bfloat16),
        lambda p, x: chain(p, x, "a", "b"),
    ),
    "float16": Model(
        lambda: Net(in_turn("a", "b"), a=L(4, 4), b=L(4, 4)).half(),
        lambda p, x: chain(p, x, "a", "b"),
    ),
}


class BatchNormed(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
        return linen.Dense(4)(linen.relu(x))


with jax.numpy_rank_promotion("allow"):
    BATCH_NORM = fgd.models.from_flax(BatchNormed(), jnp.ones([1, 4]))

# Images that are flattened.

IMAGE = ((4, 6, 6),)
CNN = fgds(fgd.models.cnn([6, 6, 4], [4, 4], [16, 4], kernel_size=3, pool=1, padding="VALID"))


def image_then(forward, ours, flattened, inputs=IMAGE, **layers):
    """A network of a convolution `conv` [4 channels, 3 × 3] and other layers."""
    return Model(
        lambda: Net(forward, conv=C2(4, 4, 3), **{k: f() for k, f in layers.items()}),
        ours, inputs, flattened=flattened,
    )  # fmt: skip


def by_channel(x):
    """The mean of each channel of a flattened image."""
    return x.reshape(len(x), -1, 4).mean(1)


def two_pools(m, x):
    h = m.conv(x).relu()
    h = h.unfold(2, 2, 2).unfold(3, 2, 2)
    return m.fc(torch.cat([h.mean((4, 5)).flatten(1), h.amax((4, 5)).flatten(1)], 1))


def our_two_pools(p, x):
    h = relu_conv(p["conv"], x).reshape(len(x), 2, 2, 2, 2, 4)
    both = [flat(first(h.mean((2, 4)))), flat(first(h.max((2, 4))))]
    return dense(p["fc"], jnp.concatenate(both, 1))


def text_cnn(m, x):
    h = m.table(x).mT
    return m.fc(torch.cat([conv(h).relu().amax(2) for conv in m.convs], 1))


def our_text_cnn(p, x):
    h = table(p["table"], x)
    both = [relu_conv(p[f"convs.{i}"], h).max(1) for i in range(2)]
    return dense(p["fc"], jnp.concatenate(both, 1))


def squeeze_excite(m, x):
    h = m.conv(x).relu()
    gate = m.up(m.down(h.mean((2, 3))).relu()).sigmoid()
    return m.fc((h * gate[:, :, None, None]).flatten(1))


def our_squeeze_excite(p, x):
    h = relu_conv(p["conv"], x)
    gate = jax.nn.sigmoid(chain(p, h.mean((1, 2)), "down", "up"))
    return dense(p["fc"], flat(h * gate[:, None, None]))


def time_embedding(m, x, t):
    h = m.conv(x) + m.time(t)[:, :, None, None]
    return m.fc(h.relu().flatten(1))


def our_time_embedding(p, x, t):
    return dense(p["fc"], flat(relu(conv(p["conv"], x) + dense(p["time"], t)[:, None, None])))


def our_pixel_shuffle(p, x):
    h = relu_conv(p["conv"], x).reshape(len(x), 4, 4, 4, 2, 2)
    return dense(p["fc"], flat(h.transpose(0, 1, 4, 2, 5, 3)))


def our_linear_view_conv(p, x):
    image = jnp.moveaxis(dense(p["seed"], x).reshape(len(x), 4, 6, 6), 1, -1)
    return dense(p["fc"], flat(relu_conv(p["conv"], image)))


def our_crnn(p, x):
    """Each column of the image is a flattened image itself: [rows, channels]."""
    h = relu_conv(p["conv"], x).transpose(0, 2, 1, 3)
    return dense(p["fc"], h.reshape(*h.shape[:2], -1))


MODELS |= {
    "cnn": Model(
        lambda: nn.Sequential(
            C2(4, 4, 3), nn.ReLU(), C2(4, 4, 3), nn.ReLU(), nn.Flatten(), L(16, 16), nn.ReLU(),
            L(16, 4),
        ),
        inputs=IMAGE, flattened={"5": 4}, **CNN,
    ),
    "cnn, features and classifier": Model(
        lambda: Net(
            lambda m, x: m.classifier(m.features(x).flatten(1)),
            features=alternating(C2(4, 4, 3), C2(4, 4, 3)).append(nn.ReLU()),
            classifier=alternating(L(16, 16), L(16, 4)),
        ),
        inputs=IMAGE,
        names={"features.0": 0, "features.2": 1, "classifier.0": 2, "classifier.2": 3},
        flattened={"classifier.0": 4}, **CNN,
    ),
    "flatten": image_then(
        lambda m, x: m.fc(m.conv(x).relu().flatten(1)),
        lambda p, x: dense(p["fc"], flat(relu_conv(p["conv"], x))),
        {"fc": 4}, fc=lambda: L(64, 64),
    ),
    "a second head": image_then(
        lambda m, x: m.policy(m.conv(x).flatten(1)) + 2 * m.value(m.conv(x).flatten(1)),
        lambda p, x: dense(p["policy"], h := flat(conv(p["conv"], x))) + 2 * dense(p["value"], h),
        {"policy": 4, "value": 4}, policy=lambda: L(64, 64), value=lambda: L(64, 64),
    ),
    "dense layers registered first": Model(
        lambda: Net(
            lambda m, x: m.out(m.fc(m.stem(x).relu().flatten(1)).relu()),
            fc=L(64, 64), out=L(64, 64), stem=C2(4, 4, 3),
        ),
        lambda p, x: dense(p["out"], relu(dense(p["fc"], flat(relu_conv(p["stem"], x))))),
        IMAGE, flattened={"fc": 4}, right_from="model",
    ),
    "squeeze-excite": image_then(
        squeeze_excite, our_squeeze_excite, {"fc": 4},
        down=lambda: L(4, 4), up=lambda: L(4, 4), fc=lambda: L(64, 64),
    ),
    "time embedding": image_then(
        time_embedding, our_time_embedding, {"fc": 4}, (*IMAGE, [4]),
        time=lambda: L(4, 4), fc=lambda: L(64, 64),
    ),
    "text cnn": Model(
        lambda: Net(
            text_cnn, table=nn.Embedding(8, 8),
            convs=nn.ModuleList([C1(8, 8, 2), C1(8, 8, 3)]), fc=L(16, 16),
        ),
        our_text_cnn, (8,), flattened={},
    ),
    "concatenated pools": image_then(two_pools, our_two_pools, {}, fc=lambda: L(32, 32)),
    "image and features": image_then(
        lambda m, x, y: m.fc(torch.cat([m.conv(x).flatten(1), y], 1)),
        lambda p, x, y: dense(
            p["fc"], jnp.concatenate([flat(first(conv(p["conv"], x))), y], 1)
        ),
        {}, (*IMAGE, [4]), fc=lambda: L(68, 68),
    ),
    "pixel shuffle": Model(
        lambda: Net(
            lambda m, x: m.fc(torch.pixel_shuffle(m.conv(x).relu(), 2).flatten(1)),
            conv=C2(4, 16, 3), fc=L(256, 16),
        ),
        our_pixel_shuffle, IMAGE, flattened={"fc": 4},
    ),
    "linear, view, conv": image_then(
        lambda m, x: m.fc(m.conv(m.seed(x).view(-1, 4, 6, 6)).relu().flatten(1)),
        our_linear_view_conv, {"fc": 4}, ([144],),
        seed=lambda: L(144, 144), fc=lambda: L(64, 64),
    ),
    "global average pool": image_then(
        lambda m, x: m.fc(m.conv(x).relu().mean((2, 3))),
        lambda p, x: dense(p["fc"], relu_conv(p["conv"], x).mean((1, 2))),
        {}, fc=lambda: L(4, 4),
    ),
    "a map of columns": image_then(
        lambda m, x: m.fc(m.conv(x).relu().permute(0, 3, 1, 2).flatten(2)),
        our_crnn, {"fc": 4}, fc=lambda: L(16, 16),
    ),
    "batch norm of a flattened image": image_then(
        lambda m, x: m.fc(m.norm(m.conv(x).relu().flatten(1))),
        lambda p, x: dense(p["fc"], batch_norm(p["norm"], flat(relu_conv(p["conv"], x)))),
        {"norm": 4, "fc": 4}, norm=lambda: nn.BatchNorm1d(64), fc=lambda: L(64, 64),
    ),
    "batch norm of a flattened image, last": image_then(
        lambda m, x: m.norm(m.conv(x).relu().flatten(1)).view(-1, 4, 16).mean(2),
        lambda p, x: by_channel(batch_norm(p["norm"], flat(relu_conv(p["conv"], x)))),
        {"norm": 4}, norm=lambda: nn.BatchNorm1d(64),
    ),
    "layer norm of a flattened image": image_then(
        lambda m, x: m.norm(m.conv(x).relu().flatten(1)).view(-1, 4, 16).mean(2),
        lambda p, x: by_channel(norm(p["norm"], flat(relu_conv(p["conv"], x)))),
        {"norm": 4}, norm=lambda: nn.LayerNorm(64),
    ),
    "a flattened image of as many numbers as another has channels": Model(
        lambda: Net(
            lambda m, x: m.norm(m.conv2(m.conv1(x)).flatten(1)).view(-1, 4, 16).mean(2),
            conv1=C2(4, 64, 1), conv2=C2(64, 4, 3), norm=nn.LayerNorm(64),
        ),
        lambda p, x: by_channel(norm(p["norm"], flat(conv(p["conv2"], conv(p["conv1"], x))))),
        IMAGE, flattened={"norm": 4},
    ),
    "norms between convolutions": Model(
        lambda: Net(
            lambda m, x: m.conv2(m.bn(m.conv1(x))), conv1=C2(4, 8, 3), bn=nn.BatchNorm2d(8),
            conv2=C2(8, 4, 3),
        ),
        lambda p, x: first(conv(p["conv2"], batch_norm(p["bn"], conv(p["conv1"], x)))), IMAGE,
        flattened={},
    ),
    "mask of a flattened image": image_then(
        lambda m, x: (m.conv(x).relu().flatten(1) * m.mask).view(-1, 4, 16).mean(2),
        lambda p, x: by_channel(flat(relu_conv(p["conv"], x)) * p["mask"][None]),
        {"": 4}, mask=lambda: nn.Parameter(torch.ones(64)),
    ),
    "conv1d, flatten": Model(
        lambda: Net(
            lambda m, x: m.fc(m.conv(x).flatten(1)), conv=C1(4, 4, 3), fc=L(16, 16)
        ),
        lambda p, x: dense(p["fc"], flat(conv(p["conv"], x))), ((4, 6),), flattened={"fc": 4},
    ),
    "conv3d, flatten": Model(
        lambda: Net(
            lambda m, x: m.fc(m.conv(x).flatten(1)), conv=C3(3, 3, 2), fc=L(24, 24)
        ),
        lambda p, x: dense(p["fc"], flat(conv(p["conv"], x))), ((3, 3, 3, 3),),
        flattened={"fc": 3},
    ),
    "linen, conv and norm": Model(
        lambda: Net(
            lambda m, x: m.fc(m.bn1(m.conv1(x)).relu().flatten(1)),
            conv1=C2(4, 4, 3), bn1=nn.BatchNorm2d(4), fc=L(64, 4),
        ),
        inputs=IMAGE, names={"conv1": "layers_0", "bn1": "layers_1", "fc": "layers_4"},
        flattened={"fc": 4},
        **flax(
            linen.Sequential([
                linen.Conv(4, (3, 3), padding="VALID"),
                linen.BatchNorm(use_running_average=True),
                linen.relu, flat, linen.Dense(4),
            ]),
            jnp.ones([1, 6, 6, 4]),
        ),
    ),
    "nnx, conv and norm": Model(
        lambda: nn.Sequential(
            C2(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), L(64, 4)
        ),
        inputs=IMAGE, names={"0": "layers.0", "1": "layers.1", "4": "layers.4"},
        flattened={"4": 4}, right_from="model",
        **flax_nnx(
            lambda rngs: nnx.Sequential(
                nnx.Conv(4, 4, (3, 3), padding="VALID", rngs=rngs),
                nnx.BatchNorm(4, use_running_average=True, rngs=rngs),
                nnx.relu, flat, nnx.Linear(64, 4, rngs=rngs),
            )
        ),
    ),
}  # fmt: skip

# Convolutions without dense layers, grouped and transposed ones.


def depthwise(m, x):
    return m.out(m.point(m.depth(x)).relu().mean((2, 3)))


def our_depthwise(p, x):
    h = relu_conv(p["point"], conv(p["depth"], x, groups=4))
    return dense(p["out"], h.mean((1, 2)))


class UpDefault(linen.Module):
    transposed: bool = False
    channels: int = 4

    @linen.compact
    def __call__(self, x):
        y = linen.ConvTranspose(
            self.channels, (3, 3), (2, 2), "VALID", transpose_kernel=self.transposed
        )(x)
        return first(y)


def up(channels_in, channels_out, **options):
    return lambda: nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, **options)


def up_net(channels_in, channels_out, name="up"):
    return lambda: Net(lambda m, x: getattr(m, name)(x), **{name: up(channels_in, channels_out)()})


SAMPLE = jnp.ones([1, 6, 6, 4])

MODELS |= {
    "convolutions alone": Model(
        lambda: Net(
            lambda m, x: m.conv2(m.conv1(x).relu()).mean((2, 3)),
            conv1=C2(4, 4, 3), conv2=C2(4, 4, 1),
        ),
        lambda p, x: conv(p["conv2"], relu_conv(p["conv1"], x)).mean((1, 2)), IMAGE,
    ),
    "grouped convolution": Model(
        lambda: C2(4, 6, 3, groups=2), lambda p, x: first(conv(p, x, groups=2)), IMAGE,
        right_from="model",
    ),
    "grouped convolution called conv": Model(
        lambda: Net(lambda m, x: m.conv(x), conv=C2(4, 6, 3, groups=2)),
        lambda p, x: first(conv(p["conv"], x, groups=2)), IMAGE,
    ),
    "depthwise separable": Model(
        lambda: Net(depthwise, depth=C2(4, 4, 3, groups=4), point=C2(4, 6, 1), out=L(6, 4)),
        our_depthwise, IMAGE, flattened={}, right_from="model",
    ),
    "a convolution called stem": Model(
        lambda: Net(lambda m, x: m.stem(x), stem=C2(4, 4, 3)),
        lambda p, x: first(conv(p["stem"], x)), IMAGE, right_from="model",
    ),
    "strided 1 × 1 shortcut": Model(
        lambda: Net(
            lambda m, x: m.conv(x) + m.shortcut(x)[:, :, 1:-1, 1:-1],
            conv=C2(4, 6, 3), shortcut=C2(4, 6, 1),
        ),
        lambda p, x: first(conv(p["conv"], x) + conv(p["shortcut"], x)[:, 1:-1, 1:-1]), IMAGE,
    ),
    "transposed, more channels": Model(
        up_net(4, 6), lambda p, x: first(conv_transpose(p["up"], x, 2)), IMAGE, right_from="model"
    ),
    "transposed, as many channels": Model(
        up_net(4, 4), lambda p, x: first(conv_transpose(p["up"], x, 2)), IMAGE, right_from=""
    ),
    "transposed, called conv_t": Model(
        up_net(4, 4, "conv_t"), lambda p, x: first(conv_transpose(p["conv_t"], x, 2)), IMAGE,
        right_from="",
    ),
    "transposed, in a list": Model(
        lambda: nn.Sequential(up(4, 4)()), lambda p, x: first(conv_transpose(p[0], x, 2)), IMAGE,
        like=lambda: [{"w": jnp.ones([3, 3, 4, 4]), "b": jnp.ones(4)}], right_from="",
    ),
    "transposed, in a list of two": Model(
        lambda: nn.Sequential(C2(4, 4, 1), up(4, 4)()),
        lambda p, x: first(conv_transpose(p[1], conv(p[0], x), 2)), IMAGE,
        like=lambda: [
            {"w": jnp.ones([k, k, 4, 4]), "b": jnp.ones(4)} for k in (1, 3)
        ],
        right_from="",
    ),
    "transposed, grouped": Model(
        up(4, 4, groups=2), lambda p, x: x, IMAGE,
        like=lambda: {"kernel": jnp.ones([3, 3, 2, 4]), "bias": jnp.ones(4)}, right_from="",
    ),
    "transposed, linen's default": Model(
        up_net(4, 6), inputs=IMAGE, names={"up": "ConvTranspose_0"}, right_from="model",
        **flax(UpDefault(channels=6), SAMPLE),
    ),
    "transposed, linen's transpose_kernel": Model(
        up_net(4, 6), inputs=IMAGE, names={"up": "ConvTranspose_0"},
        **flax(UpDefault(channels=6, transposed=True), SAMPLE),
    ),
    "transposed, linen's default, as many channels": Model(
        up_net(4, 4), inputs=IMAGE, names={"up": "ConvTranspose_0"}, right_from="",
        **flax(UpDefault(), SAMPLE),
    ),
    "transposed, 1d": Model(
        lambda: Net(lambda m, x: m.up(x), up=nn.ConvTranspose1d(4, 6, 3)),
        lambda p, x: first(conv_transpose(p["up"], x)), ((4, 6),), right_from="model",
    ),
    "autoencoder": Model(
        lambda: Net(
            lambda m, x: m.up(m.code(m.conv(x).flatten(1)).view(-1, 4, 4, 4)),
            conv=C2(4, 4, 3), code=L(64, 64), up=nn.ConvTranspose2d(4, 6, 3),
        ),
        lambda p, x: first(conv_transpose(p["up"], jnp.moveaxis(
            dense(p["code"], flat(conv(p["conv"], x))).reshape(-1, 4, 4, 4), 1, -1))),
        IMAGE, flattened={"code": 4}, right_from="model",
    ),
}  # fmt: skip

# Embeddings, norms, tied weights, bare parameters, packed weights.


class Conv1D(nn.Module):
    """As in Hugging Face's GPT-2: x·w + b, w [in, out]."""

    def __init__(self, n_out, n_in):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out))
        self.bias = nn.Parameter(torch.randn(n_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class Affine(nn.Module):
    """A layer of somebody's, whose parameters have names of their own: y = x·w + b."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x @ self.w + self.b


def our_gru(p, x):
    """Gates r, z, n, as PyTorch packs them."""
    h = jnp.zeros([len(x), 4])
    for t in range(x.shape[1]):
        a = x[:, t] @ p["weight_ih_l0"].T + p["bias_ih_l0"][None]
        b = h @ p["weight_hh_l0"].T + p["bias_hh_l0"][None]
        (ar, az, an), (br, bz, bn) = jnp.split(a, 3, 1), jnp.split(b, 3, 1)
        z = jax.nn.sigmoid(az + bz)
        h = (1 - z) * jnp.tanh(an + jax.nn.sigmoid(ar + br) * bn) + z * h
    return h


def our_lstm(p, x):
    h = c = jnp.zeros([len(x), 4])
    for t in range(x.shape[1]):
        a = x[:, t] @ p["weight_ih_l0"].T + p["bias_ih_l0"][None]
        i, f, g, o = jnp.split(a + h @ p["weight_hh_l0"].T + p["bias_hh_l0"][None], 4, 1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h


def our_attention(p, x):
    """Two heads; `p` has the keys in_proj_weight, in_proj_bias and out_proj."""
    q, k, v = jnp.split(x @ p["in_proj_weight"].T + p["in_proj_bias"][None, None], 3, 2)
    q, k, v = (a.reshape(*x.shape[:2], 2, 2) for a in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / jnp.sqrt(2.0))
    return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape)


def our_transformer(p, x):
    attended = dense(p["self_attn.out_proj"], our_attention(p["self_attn"], x))
    x = norm(p["norm1"], x + attended)
    return norm(p["norm2"], x + chain(p, x, "linear1", "linear2"))


def words_then(forward, ours, size=4, **options):
    layers = options.pop("layers")
    return Model(
        lambda: Net(forward, **{k: f() for k, f in layers.items()}), ours, (size,), **options
    )


def tied():
    net = Net(lambda m, x: m.head(m.table(x)), table=nn.Embedding(4, 4), head=L(4, 4, bias=False))
    net.head.weight = net.table.weight
    return net


def shared():
    layer = L(4, 4)
    return Net(lambda m, x: m.b(m.a(x).relu()), a=layer, b=layer)


def parameters(**shapes):
    return {name: (lambda s=shape: nn.Parameter(torch.randn(s))) for name, shape in shapes.items()}


SEQUENCE = ([3, 4],)

MODELS |= {
    "embedding": words_then(
        lambda m, x: m.table(x), lambda p, x: table(p["table"], x), 8,
        layers={"table": lambda: nn.Embedding(8, 4)},
    ),
    "embedding, square": words_then(
        lambda m, x: m.table(x), lambda p, x: table(p["table"], x),
        layers={"table": lambda: nn.Embedding(4, 4)},
    ),
    "embedding, square, called w": words_then(
        lambda m, x: m.table(x), lambda p, x: p["table"]["w"][x], right_from="",
        like=lambda: {"table": {"w": jnp.ones([4, 4])}},
        layers={"table": lambda: nn.Embedding(4, 4)},
    ),
    "embedding called w": words_then(
        lambda m, x: m.table(x), lambda p, x: p["table"]["w"][x], 8, right_from="",
        like=lambda: {"table": {"w": jnp.ones([8, 4])}},
        layers={"table": lambda: nn.Embedding(8, 4)},
    ),
    "embedding bag": words_then(
        lambda m, x: m.table(x), lambda p, x: table(p["table"], x).mean(1),
        layers={"table": lambda: nn.EmbeddingBag(4, 4)},
    ),
    "linen, embedding": words_then(
        lambda m, x: m.wte(x), names={"wte": "layers_0"},
        layers={"wte": lambda: nn.Embedding(4, 4)},
        **flax(linen.Sequential([linen.Embed(4, 4)]), jnp.ones([1, 3], int)),
    ),
    "tied, both here": words_then(
        lambda m, x: m.head(m.table(x)), lambda p, x: dense(p["head"], table(p["table"], x)),
        layers={"table": lambda: nn.Embedding(4, 4), "head": lambda: L(4, 4)},
    ),
    "tied, one here": Model(
        tied, lambda p, x: table(p["table"], x) @ p["table"]["embedding"].T, (4,),
        like=lambda: {"table": {"embedding": jnp.ones([4, 4])}}, names={"head": "table"},
    ),
    "tied, one here, called w": Model(
        tied, lambda p, x: p["table"]["w"][x] @ p["table"]["w"].T, (4,), right_from="",
        like=lambda: {"table": {"w": jnp.ones([4, 4])}}, names={"head": "table"},
    ),
    "one layer of two names": Model(
        shared, lambda p, x: dense(p["a"], relu(dense(p["a"], x))),
        like=lambda: {"a": {"w": jnp.ones([4, 4]), "b": jnp.ones(4)}}, names={"b": "a"},
    ),
    "one layer of two names, twice here": Model(shared, lambda p, x: chain(p, x, "a", "b")),
    "one layer of two places": Model(
        lambda: (lambda layer: nn.Sequential(layer, nn.ReLU(), layer))(L(4, 4)),
        **fgds(fgd.models.mlp([4, 4, 4])),
    ),
    "GPT-2's Conv1D, square": Model(
        lambda: Net(lambda m, x: m.c_proj(x), c_proj=Conv1D(4, 4)),
        lambda p, x: dense(p["c_proj"], x), right_from="",
    ),
    "GPT-2's Conv1D": Model(
        lambda: Net(lambda m, x: m.c_fc(x), c_fc=Conv1D(8, 4)), lambda p, x: dense(p["c_fc"], x),
        like=lambda: {"c_fc": {"w": jnp.ones([4, 8]), "b": jnp.ones(8)}}, right_from="",
    ),
    "a linear layer c_proj": Model(
        lambda: Net(lambda m, x: m.c_proj(x), c_proj=L(4, 4)),
        lambda p, x: dense(p["c_proj"], x), right_from="model",
    ),
    "parameters of other names": Model(
        lambda: Net(lambda m, x: m.affine(x), affine=Affine()),
        lambda p, x: dense(p["affine"], x),
        like=lambda: {"affine": {"w": jnp.ones([4, 4]), "b": jnp.ones(4)}}, right_from="",
    ),
    "bare parameters": Model(
        lambda: Net(
            lambda m, x: (x + m.position) * m.scale + m.bias, **{
                k: f() for k, f in parameters(position=(3, 4), scale=(4,), bias=(4,)).items()
            },
        ),
        lambda p, x: (x + p["position"][None]) * p["scale"][None, None] + p["bias"][None, None],
        SEQUENCE, like=lambda: {
            "position": jnp.ones([3, 4]), "scale": jnp.ones(4), "bias": jnp.ones(4)
        },
    ),
    "a bare image, a cube": Model(
        lambda: Net(lambda m, x: x + m.image, image=nn.Parameter(torch.randn(4, 4, 4))),
        lambda p, x: first(x + p["image"][None]), ((4, 4, 4),),
        like=lambda: {"image": jnp.ones([4, 4, 4])}, right_from="",
    ),
    "layer norm": Model(
        lambda: Net(lambda m, x: m.fc(m.norm(x)), norm=nn.LayerNorm(4), fc=L(4, 4)),
        lambda p, x: dense(p["fc"], norm(p["norm"], x)),
    ),
    "layer norm of two axes": Model(
        lambda: Net(lambda m, x: m.norm(x), norm=nn.LayerNorm([4, 4])),
        lambda p, x: norm(p["norm"], x, (1, 2)), ([4, 4],),
        like=lambda: {"norm": {"w": jnp.ones([4, 4]), "b": jnp.ones([4, 4])}}, right_from="",
    ),
    "layer norm of three axes, of a kernel's shape": Model(
        lambda: Net(lambda m, x: m.norm(x), norm=nn.LayerNorm([4, 5, 4])),
        lambda p, x: norm(p["norm"], x, (1, 2, 3)), ([4, 5, 4],), right_from="",
        like=lambda: {"norm": {"w": jnp.ones([4, 5, 4]), "b": jnp.ones([4, 5, 4])}},
    ),
    "layer norm of an image, a cube": Model(
        lambda: Net(lambda m, x: m.norm(x), norm=nn.LayerNorm([4, 4, 4])),
        lambda p, x: first(norm(p["norm"], x, (1, 2, 3))), ((4, 4, 4),),
        like=lambda: {"norm": {"scale": jnp.ones([4, 4, 4]), "bias": jnp.ones([4, 4, 4])}},
        right_from="",
    ),
    "group norm": Model(
        lambda: Net(
            lambda m, x: m.norm(m.conv(x)), conv=C2(4, 4, 3), norm=nn.GroupNorm(2, 4)
        ),
        lambda p, x: first(group_norm(p["norm"], conv(p["conv"], x), 2)), IMAGE,
    ),
    "linen, group and layer norm": Model(
        lambda: Net(
            lambda m, x: m.ln(m.gn(x.movedim(-1, 1)).movedim(1, -1)),
            gn=nn.GroupNorm(2, 4), ln=nn.LayerNorm(4),
        ),
        inputs=SEQUENCE, names={"gn": "layers_0", "ln": "layers_1"},
        **flax(
            linen.Sequential([
                linen.GroupNorm(2, epsilon=1e-5),
                linen.LayerNorm(epsilon=1e-5),
            ]),
            jnp.ones([1, 3, 4]),
        ),
    ),
    "PReLU": Model(
        lambda: nn.Sequential(L(4, 4), nn.PReLU(4), L(4, 4)),
        lambda p, x: dense(
            p[2], jnp.where((h := dense(p[0], x)) > 0, h, h * p[1]["w"][None])
        ),
        like=lambda: [
            {"w": jnp.ones([4, 4]), "b": jnp.ones(4)}, {"w": jnp.ones(4)},
            {"w": jnp.ones([4, 4]), "b": jnp.ones(4)},
        ],
    ),
    "bilinear, as a conv's shape": Model(
        lambda: Net(lambda m, x, y: m.pair(x, y), pair=nn.Bilinear(4, 4, 6)),
        lambda p, x, y: jnp.einsum("ni,nj,ijo->no", x, y, p["pair"]["w"]) + p["pair"]["b"][None],
        ([4], [4]), like=lambda: {"pair": {"w": jnp.ones([4, 4, 6]), "b": jnp.ones(6)}},
        right_from="",
    ),
    "GRU": Model(
        lambda: Net(lambda m, x: m.rnn(x)[0][:, -1], rnn=nn.GRU(4, 4, batch_first=True)),
        lambda p, x: our_gru(p["rnn"], x), SEQUENCE,
    ),
    "LSTM": Model(
        lambda: Net(lambda m, x: m.rnn(x)[0][:, -1], rnn=nn.LSTM(4, 4, batch_first=True)),
        lambda p, x: our_lstm(p["rnn"], x), SEQUENCE,
    ),
    "GRU after a convolution": image_then(
        lambda m, x: m.rnn(m.conv(x).permute(0, 3, 1, 2).flatten(2))[0][:, -1],
        lambda p, x: our_gru(p["rnn"], conv(p["conv"], x).transpose(0, 2, 3, 1).reshape(
            len(x), 4, -1)),
        {}, rnn=lambda: nn.GRU(16, 4, batch_first=True),
    ),
    "linen, GRU cell": Model(
        lambda: Net(lambda m, x: m.cell(x), cell=nn.GRUCell(4, 4)), inputs=([4],),
        names={"cell": "cell"}, right_from="",
        **flax(linen.GRUCell(4), jnp.ones([1, 4]), jnp.ones([1, 4])),
    ),
    "attention": Model(
        lambda: Net(
            lambda m, x: m.attn(x, x, x)[0], attn=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        lambda p, x: dense(p["attn.out_proj"], our_attention(p["attn"], x)), SEQUENCE,
    ),
    "linen, attention": Model(
        lambda: Net(
            lambda m, x: m.attn(x, x, x)[0], attn=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        inputs=SEQUENCE, right_from="", names={"attn.out_proj": "out"},
        **flax(linen.MultiHeadDotProductAttention(2), jnp.ones([1, 3, 4])),
    ),
    "transformer": Model(
        lambda: nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), our_transformer, SEQUENCE
    ),
}  # fmt: skip

# As they are in the zoos.


def vision_transformer(m, x):
    h = m.conv(x).flatten(2).mT + m.position
    return m.head(m.block(h).mean(1))


def our_vision_transformer(p, x):
    h = conv(p["conv"], x, strides=2).reshape(len(x), 9, 4) + p["position"][None]
    block = {k.removeprefix("block."): v for k, v in p.items() if k.startswith("block.")}
    return dense(p["head"], our_transformer(block, h).mean(1))


def convnext(m, x):
    h = m.down(m.up(m.norm(m.conv(x).movedim(1, -1))).relu())
    return x + (h * m.gamma).movedim(-1, 1)


def our_convnext(p, x):
    h = norm(p["norm"], conv(p["conv"], x, padding="SAME", groups=4))
    return first(x + chain(p, h, "up", "down") * p["gamma"][None, None, None])


def residual(m, x):
    h = m.bn2(m.conv2(m.bn1(m.conv1(x)).relu()))
    return m.fc((h + m.downsample(x)).relu().mean((2, 3)))


def our_residual(p, x):
    h = relu(batch_norm(p["bn1"], conv(p["conv1"], x, padding="SAME")))
    h = batch_norm(p["bn2"], conv(p["conv2"], h, padding="SAME"))
    h = h + batch_norm(p["downsample.1"], conv(p["downsample.0"], x))
    return dense(p["fc"], relu(h).mean((1, 2)))


def film(m, x, y):
    scale, shift = m.condition(y).chunk(2, 1)
    return m.conv(x) * scale[:, :, None, None] + shift[:, :, None, None]


def our_film(p, x, y):
    scale, shift = jnp.split(dense(p["condition"], y)[:, None, None], 2, -1)
    return first(conv(p["conv"], x) * scale + shift)


MODELS |= {
    "vision transformer": Model(
        lambda: Net(
            vision_transformer, conv=C2(4, 4, 2, stride=2), head=L(4, 4),
            block=nn.TransformerEncoderLayer(4, 2, 4, batch_first=True),
            position=nn.Parameter(torch.ones(9, 4)),
        ),
        our_vision_transformer, IMAGE, flattened={},
    ),
    "ConvNeXt's block": Model(
        lambda: Net(
            convnext, conv=C2(4, 4, 3, groups=4, padding=1), norm=nn.LayerNorm(4), up=L(4, 16),
            down=L(16, 4), gamma=nn.Parameter(torch.ones(4)),
        ),
        our_convnext, IMAGE, flattened={},
    ),
    "residual block": Model(
        lambda: Net(
            residual, conv1=C2(4, 6, 3, padding=1), bn1=nn.BatchNorm2d(6), fc=L(6, 6),
            conv2=C2(6, 6, 3, padding=1), bn2=nn.BatchNorm2d(6),
            downsample=nn.Sequential(C2(4, 6, 1), nn.BatchNorm2d(6)),
        ),
        our_residual, IMAGE, flattened={},
    ),
    "two branches": Model(
        lambda: Net(
            lambda m, x: m.fc(
                torch.cat([conv(x).relu().mean((2, 3)) for conv in (m.conv1, m.conv3)], 1)
            ),
            conv1=C2(4, 4, 1), conv3=C2(4, 4, 3), fc=L(8, 8),
        ),
        lambda p, x: dense(p["fc"], jnp.concatenate(
            [relu_conv(p[k], x).mean((1, 2)) for k in ("conv1", "conv3")], 1)),
        IMAGE, flattened={},
    ),
    "features modulated": image_then(film, our_film, {}, (*IMAGE, [4]), condition=lambda: L(4, 8)),
    "mixer": Model(
        lambda: Net(
            lambda m, x: m.channels((x + m.tokens(x.mT).mT).relu()), tokens=L(4, 4),
            channels=L(4, 4),
        ),
        lambda p, x: dense(
            p["channels"], relu(x + dense(p["tokens"], x.transpose(0, 2, 1)).transpose(0, 2, 1))
        ),
        ([4, 4],),
    ),
    "mixture of experts": Model(
        lambda: Net(
            lambda m, x: torch.einsum(
                "ne,neh->nh", m.gate(x).softmax(1), torch.einsum("nd,edh->neh", x, m.experts)
            ),
            gate=L(4, 2), experts=nn.Parameter(torch.ones(2, 4, 4)),
        ),
        lambda p, x: jnp.einsum(
            "ne,neh->nh", jax.nn.softmax(dense(p["gate"], x)),
            jnp.einsum("nd,edh->neh", x, p["experts"]),
        ),
    ),
    "variational autoencoder": Model(
        lambda: Net(
            lambda m, x: m.decoder(m.mean(x) + m.spread(x).exp()), mean=L(4, 4), spread=L(4, 4),
            decoder=alternating(L(4, 4), L(4, 4)),
        ),
        lambda p, x: chain(
            p, dense(p["mean"], x) + jnp.exp(dense(p["spread"], x)), "decoder.0", "decoder.2"
        ),
    ),
}  # fmt: skip
