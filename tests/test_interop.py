"""Weights in and out: safetensors files; PyTorch models whose logits are the oracle."""

import json
import os
import stat
import struct
from typing import NamedTuple

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from problems import same

import fgd
from fgd.interop import from_torch, load, save, to_torch

few = settings(max_examples=40, deadline=None, derandomize=True)
KEY = jax.random.key(0)


class Moments(NamedTuple):
    mean: object
    var: object


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


# safetensors


def test_save_is_the_published_format(tmp_path):
    """Read by hand: eight bytes of length, a JSON header, little-endian row-major data."""
    w = np.arange(6, dtype=">f4").reshape(2, 3).T  # neither contiguous nor little-endian
    save(tmp_path / "a", {"layers": [{"w": w}], "half": jnp.ones(2, jnp.bfloat16)})
    content = (tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    entry = header["layers.0.w"]
    assert (entry["dtype"], entry["shape"]) == ("F32", [3, 2])
    start, stop = entry["data_offsets"]
    data = content[8 + length :]
    assert struct.unpack("<6f", data[start:stop]) == (0, 3, 1, 4, 2, 5)
    assert header["half"]["dtype"] == "BF16"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_round_trip_of_a_train_state(tmp_path):
    def loss(params, model_state, x):
        return jnp.mean((params["a"] - x) ** 2), model_state

    step = fgd.train_step(loss, fgd.adam(0.1))
    running = Moments(jnp.ones((2, 0)), [np.int8(3), jnp.array([True]), jnp.ones(3, jnp.bfloat16)])
    state = step.init({"a": jnp.float32(2)}, jax.random.key(3, impl="rbg"), model_state=running)
    state, _ = step(state, jnp.arange(4.0))
    save(tmp_path / "state", state)
    for like in [state, shapes(state)]:
        loaded = load(tmp_path / "state", like)
        assert jax.tree.structure(loaded) == jax.tree.structure(state)
        assert same(loaded, state)
        assert jax.tree.map(jax.typeof, loaded) == jax.tree.map(jax.typeof, state)
    flat = load(tmp_path / "state")
    assert {"params.a", "key", "step", "model_state.mean", "model_state.var.2"} < set(flat)
    assert flat["key"].tolist() == jax.random.key_data(state.key).tolist()
    assert not load(tmp_path / "state")["model_state.mean"].size


dtypes = st.sampled_from(["bool", "uint8", "int32", "float16", "bfloat16", "float32", "complex64"])
arrays = st.builds(
    lambda dtype, shape: np.arange(np.prod(shape)).reshape(shape).astype(jnp.dtype(dtype)),
    dtypes,
    st.lists(st.integers(0, 3), max_size=3),
)
names = st.text("ab0", min_size=1, max_size=2)
trees = st.recursive(
    arrays, lambda x: st.lists(x, max_size=3) | st.dictionaries(names, x, max_size=3), max_leaves=6
)


@few
@given(tree=trees)
def test_round_trip_of_any_tree(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "file"
    save(path, tree)
    loaded = load(path, tree)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    assert same(loaded, tree)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype == b.dtype, loaded, tree)))


@few
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_harmless(tmp_path_factory, data):
    tree = {"w": np.arange(3.0, dtype=np.float32), "key": KEY}
    path = tmp_path_factory.mktemp("flip") / "file"
    save(path, tree)
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        loaded, message = load(path, tree), ""
    except ValueError as error:
        loaded, message = tree, str(error)
    assert same(loaded, tree)
    assert not message or str(path) in message


def test_a_flipped_number_is_refused(tmp_path):
    save(tmp_path / "a", {"w": np.ones(3, np.float32)})
    content = bytearray((tmp_path / "a").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="a is damaged: its content is not what was saved"):
        load(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no weights", None], ids=["empty", "zip", "cut"])
def test_a_broken_file_is_named(tmp_path, content):
    save(tmp_path / "a", {"w": np.ones(3)})
    path = tmp_path / "b.safetensors"
    path.write_bytes((tmp_path / "a").read_bytes()[:-1] if content is None else content)
    with pytest.raises(ValueError, match=r"load: .*b\.safetensors is no whole safetensors file: "):
        load(path)


def test_other_programs_files(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones((2, 2), np.float32), "key": np.uint32([0, 7])}, tmp_path / "a")
    like = {"w": jnp.zeros((2, 2)), "key": KEY}
    assert same(load(tmp_path / "a", like), {"w": jnp.ones((2, 2)), "key": jax.random.key(7)})
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    save(tmp_path / "b", like | {"half": jnp.float32([1, 2, 3]).astype(jnp.bfloat16)})
    assert load_file(tmp_path / "b")["half"].equal(torch.tensor([1, 2, 3], dtype=torch.bfloat16))


def test_load_says_all_that_does_not_fit(tmp_path):
    save(tmp_path / "a", {"w": np.ones((4, 3), np.float32), "c": np.ones(1), "k": np.ones(2)})
    like = {"w": jnp.ones((3, 4)), "b": jnp.ones(2), "d": jnp.ones(2), "k": jnp.ones(2)}
    with pytest.raises(ValueError, match="does not fit") as caught:
        load(tmp_path / "a", like)
    assert str(caught.value) == (
        f"interop.load: {tmp_path}/a does not fit like: missing b, d; left over c; "
        "k is float64[2], expected float32[2]; w is float32[4, 3], expected float32[3, 4]"
    )


def test_files_are_not_lost(tmp_path):
    path = tmp_path / "a"
    save(path, {"w": np.ones(1, np.float32)})
    with pytest.raises(FileExistsError, match=r"save: .*a exists already; overwrite=True"):
        save(path, {"w": np.zeros(1)})
    with pytest.raises(TypeError, match="w is 'no', expected an array"):
        save(path, {"w": "no"}, overwrite=True)
    assert load(path)["w"] == 1
    save(path, {"w": np.zeros(1, np.float32)}, overwrite=True)
    assert load(path)["w"] == 0
    with pytest.raises(FileNotFoundError, match=r"no directory .*nowhere; make it first"):
        save(tmp_path / "nowhere" / "a", {})
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    from fgd import _files

    save(tmp_path / "a", {"w": np.ones(1, np.float32)})

    def interrupted():
        with _files.atomic("save", tmp_path / "a", overwrite=True) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert load(tmp_path / "a")["w"] == 1


def test_what_cannot_be_saved(tmp_path, as_users):
    with pytest.raises(ValueError, match=r"two leaves are named 'a\.b'"):
        save(tmp_path / "a", {"a.b": np.ones(1), "a": {"b": np.ones(1)}})
    with pytest.raises(TypeError, match="c is complex128, which safetensors lacks"):
        save(tmp_path / "a", {"c": np.ones(1, complex)})
    with pytest.raises(ValueError, match="reserves the name __metadata__"):
        save(tmp_path / "a", {"__metadata__": np.ones(1)})
    with pytest.raises(TypeError, match="path must be a str or a Path, got dict"):
        save({"w": np.ones(1)}, tmp_path / "a")
    save(tmp_path / "a", {"w": np.ones(1)})
    with pytest.raises(ValueError, match=r"w is float64, which JAX would round; .*enable_x64"):
        load(tmp_path / "a", {"w": np.ones(1)})
    save(tmp_path / "k", {"key": KEY})
    with pytest.raises(ValueError, match=r"key is key<fry>, not key<rbg>|uint32\[2\], expected"):
        load(tmp_path / "k", {"key": jax.random.key(0, impl="rbg")})


# PyTorch


@pytest.fixture
def torch():
    module = pytest.importorskip("torch")
    module.manual_seed(0)
    return module


def trained(torch, model, x, labels):
    """After a few steps, so that no number is an initial one; in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(labels)).backward()
        optimizer.step()
    return model.eval()


def random_data(*shape):
    draw = np.random.default_rng(0)
    return draw.normal(size=shape).astype(np.float32), draw.integers(0, 3, shape[0])


def logits(torch, model, x):
    with torch.no_grad():
        return model(torch.tensor(x)).numpy()


def assert_same_state(torch, ours, theirs):
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name


def test_mlp(torch):
    """Square layers throughout, so that only the logits can tell a kernel from its transpose."""
    x, labels = random_data(16, 4)
    layers = [torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.ReLU()]
    theirs = trained(torch, torch.nn.Sequential(*layers, torch.nn.Linear(4, 4)), x, labels)
    model = fgd.models.mlp([4, 4, 4, 4])
    params = from_torch(theirs.state_dict(), jax.eval_shape(model.init, KEY))
    np.testing.assert_allclose(
        model.apply(params, jnp.asarray(x)), logits(torch, theirs, x), atol=1e-5
    )
    assert_same_state(torch, to_torch(params, theirs.state_dict()), theirs.state_dict())
    names = {"0": 0, "2": 1, "4": 2}
    assert_same_state(torch, to_torch(params, names=names), theirs.state_dict())
    by_alphabet = {name: value.numpy() for name, value in sorted(theirs.state_dict().items())}
    assert same(from_torch(by_alphabet, params), params)
    before = np.array(params[0]["b"])
    theirs[0].bias.data.zero_()  # no memory is shared
    assert np.array_equal(params[0]["b"], before)


def test_more_than_ten_layers_go_by_number(torch):
    theirs = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(11)])
    model = fgd.models.mlp([2] * 12, activation=lambda x: x)
    shuffled = dict(sorted(theirs.state_dict().items()))  # 0, 1, 10, 2, …
    params = from_torch(shuffled, jax.eval_shape(model.init, KEY))
    x, _ = random_data(5, 2)
    np.testing.assert_allclose(
        model.apply(params, jnp.asarray(x)), logits(torch, theirs, x), atol=1e-5
    )


def images(x):
    """NCHW as NHWC."""
    return jnp.asarray(np.moveaxis(x, 1, -1))


def cnn(torch):
    """With as many channels as rows and columns, so that shapes say nothing."""
    n = torch.nn
    convs = [n.Conv2d(3, 3, 3), n.ReLU(), n.Conv2d(3, 3, 3), n.ReLU()]
    return n.Sequential(*convs, n.Flatten(), n.Linear(27, 27), n.ReLU(), n.Linear(27, 3))


def test_cnn(torch):
    x, labels = random_data(16, 3, 7, 7)
    theirs = trained(torch, cnn(torch), x, labels)
    model = fgd.models.cnn([7, 7, 3], [3, 3], [27, 3], kernel_size=3, pool=1, padding="VALID")
    like, flattened = model.init(KEY), {"5": 3}
    params = from_torch(theirs.state_dict(), like, flattened=flattened)
    ours = model.apply(params, images(x))
    np.testing.assert_allclose(ours, logits(torch, theirs, x), atol=1e-5)
    for of in [theirs, theirs.state_dict()]:
        assert same(from_torch(of, like, flattened=flattened), params)
        assert_same_state(torch, to_torch(params, of, flattened=flattened), theirs.state_dict())
    names = {"0": 0, "2": 1, "5": 2, "7": 3}
    state = to_torch(params, names=names, flattened=flattened)
    assert_same_state(torch, state, theirs.state_dict())
    rows = from_torch(theirs.state_dict(), like, flattened={})[2]["w"]
    assert np.array_equal(rows, theirs[5].weight.detach().numpy().T)


class Flax(nn.Module):
    """Named so that the alphabet is not the order: the dense layer before the convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), padding="VALID", name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


NAMES = {"conv": "stem", "bn": "norm", "fc": "head"}


def test_flax_with_batch_norm(torch, tmp_path):
    x, labels = random_data(16, 2, 4, 4)
    layers = torch.nn.Sequential()
    layers.add_module("conv", torch.nn.Conv2d(2, 4, 3))
    layers.add_module("bn", torch.nn.BatchNorm2d(4))
    layers.extend([torch.nn.ReLU(), torch.nn.Flatten()])
    layers.add_module("fc", torch.nn.Linear(16, 3))
    theirs = trained(torch, layers, x, labels)
    model = Flax()
    like = jax.eval_shape(model.init, KEY, images(x))
    variables = from_torch(theirs.state_dict(), like, names=NAMES, flattened={"fc": 4})
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours = model.apply(variables, images(x))
    np.testing.assert_allclose(ours, logits(torch, theirs, x), atol=1e-5)
    for of in [theirs, theirs.state_dict(), loaded_again(theirs, tmp_path)]:
        state = to_torch(variables, of, names=NAMES, flattened={"fc": 4})
        assert_same_state(torch, state, theirs.state_dict())


def test_nnx_and_embeddings(torch):
    theirs = torch.nn.Sequential(torch.nn.Embedding(5, 5), torch.nn.Linear(5, 5, bias=False))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(5, 5, rngs=rngs)
            self.head = nnx.Linear(5, 5, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return self.head(self.table(x))

    ours = Net(nnx.Rngs(0))
    state = nnx.state(ours, nnx.Param)
    names = {"0": "table", "1": "head"}
    for like in [state, nnx.to_pure_dict(state)]:
        values = from_torch(theirs.state_dict(), like, names=names)
        nnx.update(ours, values)
        x = np.arange(5)
        np.testing.assert_allclose(ours(x), logits(torch, theirs, x), atol=1e-5)
        assert_same_state(torch, to_torch(values, names=names), theirs.state_dict())


@pytest.mark.parametrize("dimensions", [1, 3])
def test_convolutions_of_other_dimensions(torch, dimensions):
    """The dense layer after one, too."""
    conv = getattr(torch.nn, f"Conv{dimensions}d")(2, 3, 2)
    theirs = torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(3 * 2**dimensions, 4))
    x, _ = random_data(5, 2, *[3] * dimensions)
    window, spatial = (2,) * dimensions, "DHW"[-dimensions:]
    like = [
        {"w": np.zeros((*window, 2, 3), np.float32), "b": np.zeros(3, np.float32)},
        {"w": np.zeros((3 * 2**dimensions, 4), np.float32), "b": np.zeros(4, np.float32)},
    ]
    first, second = from_torch(theirs.state_dict(), like, flattened={"2": 3})
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    h = jax.lax.conv_general_dilated(
        images(x), first["w"], (1,) * dimensions, "VALID", dimension_numbers=layout
    )
    h = (h + jnp.broadcast_to(first["b"], h.shape)).reshape(5, -1)
    ours = h @ second["w"] + second["b"][None]
    np.testing.assert_allclose(ours, logits(torch, theirs, x), atol=1e-5)
    state = to_torch([first, second], theirs.state_dict(), flattened={"2": 3})
    assert_same_state(torch, state, theirs.state_dict())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_any_float_goes_round(torch, dtype, x64):
    theirs = torch.nn.Linear(3, 2).to(getattr(torch, dtype))
    like = {"w": jax.ShapeDtypeStruct((3, 2), dtype), "b": jax.ShapeDtypeStruct((2,), dtype)}
    params = from_torch(theirs.state_dict(keep_vars=True), like)  # requires_grad
    assert params["w"].dtype == dtype
    assert np.array_equal(params["w"].astype(float), theirs.weight.detach().double().numpy().T)
    assert_same_state(torch, to_torch(params), theirs.state_dict())


def weights(**shapes):
    return {name.replace("_", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}


LAYERS = {
    "Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "Dense_1": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
}


def test_names_that_differ():
    state = weights(fc1_weight=(4, 3), fc1_bias=(4,), fc2_weight=(4, 2), fc2_bias=(2,))
    with pytest.raises(ValueError, match="does not fit") as caught:
        from_torch(state, LAYERS)
    assert str(caught.value) == (
        "from_torch: the state_dict does not fit like: missing Dense_0.bias, Dense_0.kernel, "
        "Dense_1.bias, Dense_1.kernel; left over fc1.weight, fc1.bias, fc2.weight, fc2.bias; "
        "name the layers that differ, as in names={'fc1': 'Dense_0', 'fc2': …}"
    )
    state["fc2.gain"] = np.zeros(2)
    del state["fc1.bias"]
    with pytest.raises(ValueError, match="does not fit") as caught:
        from_torch(state, LAYERS, names={"fc1": "Dense_0", "fc2": "Dense_1"})
    assert str(caught.value) == (
        "from_torch: the state_dict does not fit like: missing Dense_0.bias; left over fc2.gain; "
        "fc2.weight is float32[4, 2], expected float32[2, 4]"
    )
    for names, message in [
        ({"fc_1": "Dense_0"}, "names has 'fc_1', no layer of PyTorch's: those are 'fc1', 'fc2'"),
        ({"fc1": "Dense"}, "names has 'Dense', no layer of fgd's: those are 'Dense_0', 'Dense_1'"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_torch(state, LAYERS, names=names)
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="to_torch: names has 'Dense', no layer of params"):
        to_torch(LAYERS, names={"fc1": "Dense"})
    with pytest.raises(ValueError, match="gives two layers one name"):
        to_torch(LAYERS, names={"Dense_1": "Dense_0"})


def test_parameters_outside_any_layer():
    """Advice about layers is no use for them."""
    state = weights(logit_scale=(), fc_weight=(2, 3))
    state["logit_scale"] = state.pop("logit.scale")
    like = {"temperature": jnp.float32(1), "fc": {"kernel": jnp.ones((3, 2))}}
    advice = r"rename .*, as in state_dict\['temperature'\] = state_dict.pop\('logit_scale'\)$"
    with pytest.raises(ValueError, match=advice):
        from_torch(state, like)
    state["temperature"] = state.pop("logit_scale")
    assert from_torch(state, like)["temperature"] == 0
    with pytest.raises(ValueError, match="'' is what stands outside any layer"):
        from_torch(state, {"head": {"temperature": like["temperature"]}, "fc": like["fc"]})
    with pytest.raises(
        ValueError, match=r"= state_dict.pop\('p'\) if .* \[out, in, …\], or that .T if"
    ):
        from_torch({"p": np.ones((2, 3), np.float32)}, {"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"like: missing w; left over p$"):
        from_torch({"p": np.ones(3, np.float32)}, {"w": jnp.ones((3, 2))})
    both = {"layer": {"kernel": jnp.ones((4, 4)), "scale": jnp.ones((4, 4))}}
    with pytest.raises(ValueError, match=r"like: missing layer\.kernel$"):  # or is it the scale?
        from_torch(weights(layer_weight=(4, 4)), both)


def test_what_torch_cannot_give(torch, as_users):
    model = fgd.models.mlp([3, 4, 2])
    like = jax.eval_shape(model.init, KEY)
    one = weights(**{"0_weight": (4, 3), "0_bias": (4,)})
    with pytest.raises(ValueError, match=r"like: missing 1\.b, 1\.w$"):
        from_torch(one, like)
    two = one | weights(**{"2_weight": (2, 4), "2_bias": (2,)})
    three = two | weights(**{"4_weight": (2, 2)})
    with pytest.raises(ValueError, match=r"like: left over 4\.weight; if .* del state_dict"):
        from_torch(three, like)
    with pytest.raises(
        ValueError, match=r"0\.bias is float64\[4\], expected float32\[4\]; convert"
    ):
        from_torch(two | {"0.bias": np.zeros(4)}, like)
    with pytest.raises(ValueError, match=r"params do not fit like: left over 4\.weight; "):
        to_torch(from_torch(two, like), {k: torch.tensor(v) for k, v in three.items()})
    for wrong in [5, [torch.ones(2)], {"model": two}, {"epoch": 3}, {0: torch.ones(2)}]:
        with pytest.raises(TypeError, match=r"from_torch: state_dict.* model.*state_dict\(\)"):
            from_torch(wrong, like)
        with pytest.raises(TypeError, match=r"to_torch: like.* model.*state_dict\(\)"):
            to_torch(like, wrong)
    with pytest.raises(TypeError, match=r"from_torch: expected parameters by name, .*got an array"):
        from_torch(one, jnp.ones((3, 4)))


# Nothing is guessed: which layer is which


def loaded_again(model, folder):
    """The state dict of a safetensors file, which sorts by name, as NumPy's arrays."""
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors")
    return load(folder / "model.safetensors")


def square_net(torch):
    """Registered in this order, applied in another, and sorted in a third."""
    net = torch.nn.Module()
    for name in ["hidden", "inp", "head"]:
        setattr(net, name, torch.nn.Linear(4, 4))
    return net


def test_a_list_is_not_filled_by_order(torch, tmp_path):
    theirs, model = square_net(torch), fgd.models.mlp([4, 4, 4, 4])
    x, _ = random_data(5, 4)
    given = loaded_again(theirs, tmp_path)
    for state in [theirs, theirs.state_dict(), given]:
        with pytest.raises(ValueError, match="go by number") as caught:
            from_torch(state, model.init(0))
        assert all(f"'{layer}': …" in str(caught.value) for layer in ["head", "hidden", "inp"])
        assert "'0' (bias float32[4], weight float32[4, 4])" in str(caught.value)
        with pytest.raises(ValueError, match=r"to_torch: .* go by number, .*say which is which"):
            to_torch(model.init(0), state)
    names = {"inp": 0, "hidden": 1, "head": 2}
    params = from_torch(given, model.init(0), names=names)
    h = torch.relu(theirs.hidden(torch.relu(theirs.inp(torch.tensor(x)))))
    y = theirs.head(h).detach()
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)), y, atol=1e-5)
    assert_same_state(torch, to_torch(params, given, names=names), theirs.state_dict())


@pytest.mark.parametrize("prefix", ["", "net", "body.net"])
def test_numbers_go_by_number(torch, tmp_path, prefix):
    """Fifteen entries: 10 and 14 come before 2 in a sorted file."""
    layers = [
        f(torch) for _ in range(7) for f in (lambda t: t.nn.Linear(4, 4), lambda t: t.nn.Tanh())
    ]
    theirs = inner = torch.nn.Sequential(*layers, torch.nn.Linear(4, 4))
    for name in filter(None, reversed(prefix.split("."))):
        outer = torch.nn.Module()
        setattr(outer, name, theirs)
        theirs = outer
    model = fgd.models.mlp([4] * 9, activation=jnp.tanh)
    given = loaded_again(theirs, tmp_path)
    x, _ = random_data(5, 4)
    for state in [given, dict(reversed(given.items())), theirs]:
        params = from_torch(state, model.init(0))
        y = model.apply(params, jnp.asarray(x))
        np.testing.assert_allclose(y, logits(torch, inner, x), atol=1e-5)
        assert_same_state(torch, to_torch(params, state), theirs.state_dict())
    numbered = {str(i): layer for i, layer in enumerate(params)}  # sorted as 0, 1, 10, 2, …
    assert same(from_torch(given, numbered), numbered)


def test_numbers_under_several_names_are_refused(torch, tmp_path):
    n = torch.nn
    theirs = n.Module()
    theirs.features = n.Sequential(n.Conv2d(3, 3, 3), n.ReLU(), n.Conv2d(3, 3, 3), n.ReLU())
    theirs.classifier = n.Sequential(n.Flatten(), n.Linear(27, 27), n.ReLU(), n.Linear(27, 3))
    model = fgd.models.cnn([7, 7, 3], [3, 3], [27, 3], kernel_size=3, pool=1, padding="VALID")
    given = loaded_again(theirs, tmp_path)
    with pytest.raises(ValueError, match="not numbers under one name") as caught:
        from_torch(given, model.init(0), flattened={"classifier.1": 3})
    filled = "names={'classifier.1': '2', 'classifier.3': '3', 'features.0': …, 'features.2': …}"
    assert filled in str(caught.value)
    names = {"features.0": 0, "features.2": 1, "classifier.1": 2, "classifier.3": 3}
    params = from_torch(given, model.init(0), names=names, flattened={"classifier.1": 3})
    x, _ = random_data(5, 3, 7, 7)
    whole = n.Sequential(theirs.features, theirs.classifier)
    np.testing.assert_allclose(model.apply(params, images(x)), logits(torch, whole, x), atol=1e-5)


# Nothing is guessed: which rows are a flattened image's


def test_what_is_said_about_flattened_images(torch, as_users):
    n = torch.nn
    theirs = n.Module()
    theirs.conv, theirs.norm, theirs.fc = n.Conv2d(3, 16, 3), n.BatchNorm1d(144), n.Linear(144, 9)
    theirs.gate, theirs.after = n.Linear(16, 16), n.BatchNorm1d(9)
    from torch_models import by_name

    like = by_name(theirs)
    with pytest.raises(ValueError, match="flattened") as caught:
        from_torch(theirs, like)
    assert str(caught.value) == (
        "from_torch: a layer after a convolution may read its image flattened, by channel, row, "
        "column; here that is row, column, channel. Say which do, and the channels of their image, "
        'as in flattened={"fc": 16}, or flattened={} if none does. It may be '
        "'fc' (144 inputs), 'norm' (144 inputs), 'gate' (16 inputs)"
    )
    for flattened, message in [
        ({"fc2": 16}, "has 'fc2', but PyTorch's layers are 'after', 'conv', 'fc', 'gate', 'norm'"),
        ({"conv": 16}, r"has 'conv', which is no Linear and no norm: .*conv.w is \[3, 3, 3, 16\]"),
        ({"fc": 10}, "'fc' reads an image of 10 channels, but fc.weight has 144 inputs, no mult"),
        ({"fc": 0}, r"flattened\['fc'\] must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_torch(theirs, like, flattened=flattened)
    for wrong in [16, "fc", {"fc": 16.0}, {"fc": True}]:
        with pytest.raises(TypeError, match=r"flattened.* must be"):
            from_torch(theirs, like, flattened=wrong)
    for call in [from_torch, to_torch]:
        with pytest.raises(TypeError, match=r'no channels_first=: .*flattened=\{"fc": 16\}'):
            call({}, {}, channels_first=False)
    equinox = {"conv": {"weight": jnp.ones((4, 1, 2, 2))}, "fc": {"weight": jnp.ones((2, 36))}}
    state = weights(conv_weight=(4, 1, 2, 2), fc_weight=(2, 36))
    from_torch(state, equinox)  # laid out as PyTorch's, images too
    mixed = {"conv": {"kernel": jnp.ones((2, 2, 1, 4))}, "fc": equinox["fc"]}
    with pytest.raises(ValueError, match=r'flattened=\{"fc": 4\}'):
        from_torch(state, mixed)
    with pytest.raises(ValueError, match="'fc', which is no Linear and no norm"):
        from_torch(state, mixed, flattened={"fc": 4})


# Nothing is guessed: how a weight is laid out


def gpt2_layer(torch):
    """As in Hugging Face's GPT-2: x·w + b, w [in, out]."""

    class Conv1D(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4))
            self.bias = torch.nn.Parameter(torch.randn(4))

    return Conv1D()


def test_square_weights(torch):
    n, w = torch.nn, {"w": jnp.zeros((4, 4))}
    linear, table = n.Linear(4, 4, bias=False), n.Embedding(4, 4)
    turned, kept = linear.weight.detach().numpy().T, table.weight.detach().numpy()
    for of in [linear.state_dict(), table.state_dict()]:
        with pytest.raises(
            ValueError, match=r"a Linear's, \[out, in\], or an Embedding's; give the"
        ):
            from_torch(of, w)
    with pytest.raises(ValueError, match=r"to_torch: weight is float32\[4, 4\], and nothing says"):
        to_torch(w)
    assert np.array_equal(from_torch(linear, w)["w"], turned)
    assert_same_state(torch, to_torch(from_torch(linear, w), linear), linear.state_dict())
    for of in [linear, linear.state_dict()]:
        assert np.array_equal(from_torch(of, {"kernel": w["w"]})["kernel"], turned)
    for of in [table, table.state_dict()]:
        assert np.array_equal(from_torch(of, {"embedding": w["w"]})["embedding"], kept)
    for own in ["w", "kernel"]:
        with pytest.raises(
            ValueError, match=rf"weight is an Embedding's, .*: call {own} embedding"
        ):
            from_torch(table, {own: w["w"]})
    with pytest.raises(ValueError, match="weight is of a layer Linear, which is not known to fit"):
        from_torch(linear, {"embedding": w["w"]})
    gpt2, params = n.Module(), w | {"b": jnp.zeros(4)}
    gpt2.c_proj = gpt2_layer(torch)
    with pytest.raises(ValueError, match=r"is of a layer Conv1D, .* give model.state_dict\(\)"):
        from_torch(gpt2.c_proj, params)
    with pytest.raises(
        ValueError, match=r"c_proj.weight .* or a GPT-2 Conv1D's, \[in, out\]; give"
    ):
        from_torch(gpt2.state_dict(), {"c_proj": params})
    gpt2.c_proj = n.Linear(4, 4)
    assert np.array_equal(
        from_torch(gpt2, {"c_proj": params})["c_proj"]["w"], gpt2.c_proj.weight.detach().numpy().T
    )
    cube = {"norm": {"scale": jnp.ones((2, 2, 2)), "bias": jnp.ones((2, 2, 2))}}
    with pytest.raises(ValueError, match="nothing says whether one of its axes is of channels"):
        from_torch(weights(norm_weight=(2, 2, 2), norm_bias=(2, 2, 2)), cube)


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize("window", [(3,), (3, 2), (2, 3, 2)], ids=["1d", "2d", "3d"])
def test_transposed_convolutions(torch, window, transpose_kernel):
    """Against Flax, whose default is a kernel [*window, in, out] that is not mirrored."""
    theirs = getattr(torch.nn, f"ConvTranspose{len(window)}d")(2, 3, window, stride=2)
    ours = nn.ConvTranspose(
        3, window, (2,) * len(window), "VALID", transpose_kernel=transpose_kernel
    )
    x, _ = random_data(2, 2, *(5,) * len(window))
    like = jax.eval_shape(ours.init, KEY, images(x))
    params = from_torch(theirs, like)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        y = np.moveaxis(ours.apply(params, images(x)), -1, 1)
    np.testing.assert_allclose(y, logits(torch, theirs, x), atol=1e-5)
    assert_same_state(torch, to_torch(params, theirs), theirs.state_dict())


def test_transposed_convolutions_that_nothing_tells_apart(torch):
    theirs = torch.nn.ConvTranspose2d(4, 4, 3)
    params = {"kernel": jnp.zeros((3, 3, 4, 4)), "bias": jnp.zeros(4)}
    with pytest.raises(ValueError, match="is a ConvTranspose2d's with as many channels out as in"):
        from_torch(theirs, params)
    with pytest.raises(ValueError, match=r"up.weight is .* a Conv's or a ConvTranspose's"):
        from_torch(
            weights(up_weight=(4, 4, 3, 3), up_bias=(4,)),
            {"ConvTranspose_0": params},
            names={"up": "ConvTranspose_0"},
        )
    grouped = torch.nn.ConvTranspose2d(4, 4, 3, groups=4)
    with pytest.raises(ValueError, match="is of a layer grouped ConvTranspose2d, which is not kno"):
        from_torch(grouped, {"kernel": jnp.zeros((3, 3, 1, 4)), "bias": jnp.zeros(4)})
    with pytest.raises(
        ValueError, match="is of a layer ConvTranspose2d, which is not known to fit"
    ):
        from_torch(theirs, {"weight": jnp.zeros((4, 4, 3, 3)), "bias": jnp.zeros(4)})


# Files that are not what they should be


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b'{"__metadata__":' + b"[" * 100_000, b""),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
        (b'{"__metadata__":{"sha256":"","keys":"' + b"[" * 100_000 + b'"}}', b""),
        (b'{"__metadata__":{"sha256":"","keys":"[]"}}', b""),
        (b'{"__metadata__":{"sha256":5}}', b""),
        (b'{"a":null}', b""),
        (b"[]", b""),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"1234"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"1234"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"12345"),
        (b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"1"),
        (b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', b""),
        (b'{"a":{"dtype":"F32","shape":[' + b"1," * 99 + b'1],"data_offsets":[0,4]}}', b"1234"),
    ],
)
def test_a_header_of_any_kind(tmp_path, header, data):
    path = tmp_path / "a"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    with pytest.raises(ValueError, match=f"interop.load: {path}"):
        load(path)


def test_no_metadata(tmp_path):
    header = b'{"__metadata__":null,"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + b"\1\2")
    assert load(tmp_path / "a")["a"].tolist() == [1, 2]


@pytest.mark.parametrize("length", [0, 50, 200_000_000, 2**63, 2**64 - 1])
def test_the_header_is_checked_before_the_rest_is_read(tmp_path, length):
    """A sparse file that no machine here could read whole."""
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(2**38)
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        load(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in [tmp_path / "pipe", tmp_path, "/dev/zero"]:
        with pytest.raises(ValueError, match=f"load: {path} is no file: a directory, a pipe or a"):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def test_keys_that_are_none(tmp_path):
    save(tmp_path / "a", {"key": jax.random.key(0, impl="rbg")})
    from safetensors.numpy import save_file

    from fgd.interop import _safetensors

    arrays, keys = {"key": np.zeros(4, np.uint32)}, {"key": "threefry2x32"}
    metadata = {"keys": json.dumps(keys), "sha256": _safetensors._digest(arrays, keys)}
    save_file(arrays, tmp_path / "b", metadata)
    with pytest.raises(ValueError, match=r"b: key is no key: .*expected key_data.shape"):
        load(tmp_path / "b", load(tmp_path / "a", {"key": jax.random.key(0, impl="rbg")}))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_of_others(tmp_path, umask):
    """As `open` gives, to a file that is there already too."""
    before = os.umask(umask)
    try:
        for name, write in {
            "interop": lambda path: save(path, {"w": np.ones(1)}, overwrite=True),
            "export": lambda path: fgd.export.save(
                path, lambda w, x: w * x, jnp.float32(1), jnp.ones(1), overwrite=True
            ),
        }.items():
            path = tmp_path / name
            write(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
            path.chmod(0o640)
            write(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)
