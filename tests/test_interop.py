"""Weights in and out: safetensors files; PyTorch models whose logits are the oracle."""

import json
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
    step = fgd.train_step(lambda w, x: jnp.mean((w["a"] - x) ** 2), fgd.adam(0.1))
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
    like = model.init(KEY)
    params = from_torch(theirs.state_dict(), like)
    ours = model.apply(params, images(x))
    np.testing.assert_allclose(ours, logits(torch, theirs, x), atol=1e-5)
    assert_same_state(torch, to_torch(params, theirs.state_dict()), theirs.state_dict())
    names = {"0": 0, "2": 1, "5": 2, "7": 3}
    assert_same_state(torch, to_torch(params, names=names), theirs.state_dict())
    rows = from_torch(theirs.state_dict(), like, channels_first=False)[2]["w"]
    assert np.array_equal(rows, theirs[5].weight.detach().numpy().T)


class Flax(nn.Module):
    """Named so that the alphabet is not the order: the dense layer before the convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), padding="VALID", name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


NAMES = {"conv": "stem", "bn": "norm", "fc": "head"}


def test_flax_with_batch_norm(torch):
    x, labels = random_data(16, 2, 4, 4)
    layers = torch.nn.Sequential()
    layers.add_module("conv", torch.nn.Conv2d(2, 4, 3))
    layers.add_module("bn", torch.nn.BatchNorm2d(4))
    layers.extend([torch.nn.ReLU(), torch.nn.Flatten()])
    layers.add_module("fc", torch.nn.Linear(16, 3))
    theirs = trained(torch, layers, x, labels)
    model = Flax()
    like = jax.eval_shape(model.init, KEY, images(x))
    variables = from_torch(theirs.state_dict(), like, names=NAMES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours = model.apply(variables, images(x))
    np.testing.assert_allclose(ours, logits(torch, theirs, x), atol=1e-5)
    assert_same_state(
        torch, to_torch(variables, theirs.state_dict(), names=NAMES), theirs.state_dict()
    )
    with pytest.raises(ValueError, match="which dense layer follows a convolution can't be seen"):
        to_torch(variables, names=NAMES)


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
    first, second = from_torch(theirs.state_dict(), like)
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    h = jax.lax.conv_general_dilated(
        images(x), first["w"], (1,) * dimensions, "VALID", dimension_numbers=layout
    )
    h = (h + jnp.broadcast_to(first["b"], h.shape)).reshape(5, -1)
    ours = h @ second["w"] + second["b"][None]
    np.testing.assert_allclose(ours, logits(torch, theirs, x), atol=1e-5)
    assert_same_state(torch, to_torch([first, second], theirs.state_dict()), theirs.state_dict())


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


def test_names_that_differ():
    like = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "Dense_1": {"bias": KEY}}
    like["Dense_1"] = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    state = weights(fc1_weight=(4, 3), fc1_bias=(4,), fc2_weight=(4, 2), fc2_bias=(2,))
    with pytest.raises(ValueError, match="does not fit") as caught:
        from_torch(state, like)
    assert str(caught.value) == (
        "from_torch: the state_dict does not fit like: missing Dense_0.bias, Dense_0.kernel, "
        "Dense_1.bias, Dense_1.kernel; left over fc1.weight, fc1.bias, fc2.weight, fc2.bias; "
        "name the layers that differ, as in names={'fc1': 'Dense_0'}"
    )
    state["fc2.gain"] = np.zeros(2)
    del state["fc1.bias"]
    with pytest.raises(ValueError, match="does not fit") as caught:
        from_torch(state, like, names={"fc1": "Dense_0", "fc2": "Dense_1"})
    assert str(caught.value) == (
        "from_torch: the state_dict does not fit like: missing Dense_0.bias; left over fc2.gain; "
        "fc2.weight is float32[4, 2], expected float32[2, 4]; "
        "name the layers that differ, as in names={'fc2': 'Dense_0'}"
    )


def test_what_torch_cannot_give(torch, as_users):
    model = fgd.models.mlp([3, 4, 2])
    like = jax.eval_shape(model.init, KEY)
    one = weights(**{"0_weight": (4, 3), "0_bias": (4,)})
    with pytest.raises(ValueError, match=r"like: missing 1\.b, 1\.w$"):
        from_torch(one, like)
    two = one | weights(**{"2_weight": (2, 4), "2_bias": (2,)})
    three = two | weights(**{"4_weight": (2, 2)})
    with pytest.raises(ValueError, match=r"like: left over 4\.weight$"):
        from_torch(three, like)
    with pytest.raises(ValueError, match=r"0\.bias is float64\[4\], expected float32\[4\]$"):
        from_torch(two | {"0.bias": np.zeros(4)}, like)
    with pytest.raises(ValueError, match=r"params do not fit like: left over 4\.weight$"):
        to_torch(from_torch(two, like), {k: torch.tensor(v) for k, v in three.items()})
    with pytest.raises(ValueError, match="gives two layers one name"):
        to_torch(from_torch(two, like), names={"1": 0})
    with pytest.raises(TypeError, match=r"expected model\.state_dict\(\), got Linear"):
        from_torch(torch.nn.Linear(2, 2), like)
    with pytest.raises(TypeError, match=r"expected like=model\.state_dict\(\), got Linear"):
        to_torch({}, torch.nn.Linear(2, 2))
    odd = [{"w": jnp.ones((2, 2, 1, 4))}, {"w": jnp.ones((6, 2))}]
    with pytest.raises(ValueError, match=r"1\.w has 6 rows, .*the 4 channels before it; channels_"):
        from_torch(weights(**{"0_weight": (4, 1, 2, 2), "1_weight": (2, 6)}), odd)
