"""PyTorch's models, of many kinds: what `from_torch` makes of each is right, or refused.

Given as the model, its state dict, or a file, whose names are sorted; with all that has to be said,
with a part of it, and with nothing. What the messages say to write is tried, too.
"""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import same

import fgd
from fgd.interop import from_torch, load, to_torch

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch_models import MODELS, Net, by_name, conv_transpose, first  # noqa: E402

nn = torch.nn
SHARP = {
    "head, hidden, inp", "cnn", "a second head", "squeeze-excite",
    "concatenated pools", "batch norm of a flattened image, last", "transposed, in a list",
    "transposed, linen's transpose_kernel", "tied, one here", "layer norm of two axes",
    "GRU after a convolution",
}  # fmt: skip
ADVICE = ("names=", "flattened=", "state_dict", "model itself", " call ", "convert ", "transpose")


class Case(NamedTuple):
    entry: object
    theirs: object
    x: list  # for ours
    y: np.ndarray  # of theirs
    like: object


def case(name):
    """A model of which no number is an initial one, and what it gives."""
    entry = MODELS[name]
    torch.manual_seed(0)
    theirs = entry.theirs().eval()
    for value in theirs.state_dict().values():
        value.add_(torch.rand(value.shape).to(value.dtype) if value.ndim else 1)
    draw = np.random.default_rng(0)
    x, ours = [], []
    for row in entry.inputs:
        if isinstance(row, int):
            a = draw.integers(0, row, (5, 9), np.int32)
        else:
            a = draw.normal(size=(5, *row)).astype(np.float32)
        x.append(torch.tensor(a))
        ours.append(jnp.asarray(np.moveaxis(a, 1, -1) if isinstance(row, tuple) else a))
    with torch.no_grad():
        y = copy.deepcopy(theirs).float()(*x).numpy()
    return Case(entry, theirs, ours, y, entry.like() if entry.like else by_name(theirs))


def assert_equal_outputs(case, params, ours=None):
    params = jax.tree.map(lambda a: a.astype("float32"), params)
    y = jax.jit(ours or case.entry.ours)(params, *case.x)
    np.testing.assert_allclose(y, case.y, rtol=1e-5, atol=1e-5)


def assert_same_bits(case, state):
    fresh = case.entry.theirs()
    fresh.load_state_dict(state)
    for key, value in case.theirs.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def in_file(model, folder):
    from safetensors.torch import save_file

    save_file({key: x.clone() for key, x in model.state_dict().items()}, folder / "weights")
    return load(folder / "weights")


def assert_helpful(call, theirs, error):
    """It names a layer, or a parameter, and says what to write."""
    message, layers = str(error), {key.rpartition(".")[0] for key in theirs.state_dict()}
    assert message.startswith(f"{call.__name__}: ")
    assert any(advice in message for advice in ADVICE), message
    assert any(f"'{x}'" in message or f"{x}." in message or not x for x in layers), message


@pytest.mark.parametrize(
    "name",
    [name if name in SHARP else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_right_or_refused(name, tmp_path):
    it = case(name)
    said = {"names": it.entry.names, "flattened": it.entry.flattened}
    said = {option: value for option, value in said.items() if value is not None}
    ways = [said, *({x: y for x, y in said.items() if x != option} for option in said), {}]
    right = None
    for source, enough in [("model", "model"), ("state_dict", "file"), ("file", "file")]:
        given = it.theirs if source == "model" else it.theirs.state_dict()
        given = in_file(it.theirs, tmp_path) if source == "file" else given
        for way in ways:
            try:
                params = from_torch(given, it.like, **way)
            except (ValueError, TypeError) as error:
                if way == said and enough in it.entry.right_from:
                    raise
                assert_helpful(from_torch, it.theirs, error)
                if right is not None:
                    with pytest.raises((ValueError, TypeError)) as caught:
                        to_torch(right, given, **way)
                    assert_helpful(to_torch, it.theirs, caught.value)
                continue
            if right is None:
                assert_equal_outputs(it, params)
                right = params
            assert same(params, right)
            assert_same_bits(it, to_torch(params, given, **way))


# What the messages say to write


def refused(error, *args, call=from_torch, **said):
    with pytest.raises(error) as caught:
        call(*args, **said)
    return str(caught.value)


def test_a_weight_that_is_laid_out_in_out(as_users):
    """As a Conv1D's is, square or not, or a parameter's of another name."""
    for name, key, new, names in [
        ("GPT-2's Conv1D, square", "c_proj.weight", "linear.weight", {"linear": "c_proj"}),
        ("GPT-2's Conv1D", "c_fc.weight", "c_fc.weight", {}),
        ("parameters of other names", "affine.w", "affine.weight", {}),
    ]:
        it, state = case(name), case(name).theirs.state_dict()
        message = refused(ValueError, state, it.like)
        assert f"state_dict['{new}'] = state_dict" in message
        assert ".T" in message
        assert not names or f"names={names}" in message
        state[new] = state.pop(key).T
        assert_equal_outputs(it, from_torch(state, it.like, names=names))


def test_a_table_that_is_called_w():
    for name in ["embedding called w", "embedding, square, called w"]:
        it = case(name)
        for given in [it.theirs, it.theirs.state_dict()]:
            assert "embedding" in refused(ValueError, given, it.like)
            params = from_torch(given, {"table": {"embedding": it.like["table"]["w"]}})
            assert_equal_outputs(it, params, lambda p, x: p["table"]["embedding"][x])


@pytest.mark.parametrize("of", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_a_transposed_convolution_turned_by_hand(of):
    """Its weight is left out of both, and turned by the formula of the message."""
    theirs = of(3, 3, 2)
    axes = len(theirs.weight.shape) - 2
    like = {"w": jnp.ones([2] * axes + [3, 3]), "b": jnp.ones(3)}
    message = refused(ValueError, theirs, like)
    kept, mirrored = message.partition("turn it: ")[2].split(" if so, ")
    x = np.random.default_rng(0).normal(size=(2, *[4] * axes, 3)).astype(np.float32)
    with torch.no_grad():
        y = theirs(torch.tensor(x).movedim(-1, 1)).numpy()
    state = theirs.state_dict()
    scope = {"w": state.pop("weight").numpy(), "np": np}
    bias = from_torch(state, {"b": like["b"]})["b"]
    turned = {"w": jnp.asarray(eval(mirrored.removesuffix(" if not"), scope)), "b": bias}
    np.testing.assert_allclose(first(conv_transpose(turned, jnp.asarray(x))), y, atol=1e-5)
    layout = [a.replace("_", "DHW"[3 - axes :]) for a in ("N_C", "_IO", "N_C")]
    again = jax.lax.conv_transpose(
        jnp.asarray(x), jnp.asarray(eval(kept, scope)), (1,) * axes, "VALID",
        dimension_numbers=tuple(layout), transpose_kernel=True,
    )  # fmt: skip
    np.testing.assert_allclose(first(again + jnp.broadcast_to(bias, again.shape)), y, atol=1e-5)


def test_a_convolution_whose_name_does_not_say_so():
    it = case("a convolution called stem")
    state = it.theirs.state_dict()
    assert "if 'stem' is a Conv, let its name" in refused(ValueError, state, it.like)
    renamed = {key.replace("stem", "stem_conv"): x for key, x in state.items()}
    assert_equal_outputs(it, from_torch(renamed, it.like, names={"stem_conv": "stem"}))
    params = from_torch(state, {"stem_conv": it.like["stem"]}, names={"stem": "stem_conv"})
    assert_equal_outputs(it, {"stem": params["stem_conv"]})


def test_a_gru_split_by_hand():
    import flax.linen as linen

    it = case("linen, GRU cell")
    message = refused(ValueError, it.theirs, it.like)
    assert (
        "split them by hand, into a state dict of ours, {'hn.bias': an array float32[4]" in message
    )
    theirs = it.theirs.cell.state_dict()
    gates = {kind: x.chunk(3) for kind, x in theirs.items()}
    state = {}
    for i, gate in enumerate("rzn"):
        state[f"i{gate}.weight"] = gates["weight_ih"][i]
        state[f"h{gate}.weight"] = gates["weight_hh"][i]
        state[f"i{gate}.bias"] = gates["bias_ih"][i] + (gate != "n") * gates["bias_hh"][i]
    state["hn.bias"] = gates["bias_hh"][2]

    def ours(params, x):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return linen.GRUCell(4).apply(params, jnp.zeros_like(x), x)[1]

    assert_equal_outputs(it, from_torch(state, it.like), ours)


def test_what_is_computed_converted_or_left_over():
    net, like = (
        Net(lambda m, x: m.fc(x), fc=nn.Linear(4, 4)),
        {"w": jnp.ones([4, 4]), "b": jnp.ones(4)},
    )
    like = {"fc": like, "out": like}
    net.out = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert "'out' computes its weight" in refused(ValueError, net, like)
    nn.utils.parametrize.remove_parametrizations(net.out, "weight")
    params = from_torch(net, like)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net.out)
    assert "'out' computes its weight" in refused(ValueError, net, like)
    nn.utils.remove_weight_norm(net.out)
    assert "convert the one or the other, as by model.to(torch.float32)" in refused(
        ValueError, net.double(), like
    )
    assert same(from_torch(net.to(torch.float32), like)["fc"], params["fc"])
    state = net.state_dict() | {"mask": torch.ones(4)}
    assert "del state_dict['mask']" in refused(ValueError, state, like)
    del state["mask"]
    assert same(from_torch(state, like)["fc"], params["fc"])


def test_no_advice_to_rename_one_of_two():
    state = {"p": torch.ones(3), "q": torch.ones(3)}
    assert refused(ValueError, state, {"r": jnp.ones(3)}).endswith("missing r; left over p, q")
    assert "= state_dict.pop('q')" in refused(
        ValueError, state, {"p": jnp.ones(3), "r": jnp.ones(3)}
    )


def test_layers_that_keep_the_order_of_an_image():
    """Packed weights, and a convolution of an image of which two axes were made one."""
    it = case("GRU after a convolution")
    message = refused(ValueError, it.theirs, it.like)
    assert "'rnn' keeps PyTorch's order: before it, flatten jnp.moveaxis(x, -1, 1), and" in message
    net = Net(None, conv=nn.Conv2d(2, 4, 3), conv1d=nn.Conv1d(16, 4, 3))
    assert "'conv1d' keeps PyTorch's order" in refused(ValueError, net, by_name(net))
    assert "'conv1d', which is no Linear and no norm" in refused(
        ValueError, net, by_name(net), flattened={"conv1d": 4}
    )
    from_torch(net, by_name(net), flattened={})
    it = case("norms between convolutions")  # by its type, the norm is of channels
    assert same(from_torch(it.theirs, it.like), from_torch(it.theirs, it.like, flattened={}))
    assert "It may be 'bn' (8 inputs)" in refused(ValueError, it.theirs.state_dict(), it.like)


def test_an_mlp_of_colour_images():
    """Its first layer reads a flattened image as well; only its user can know."""
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 3, 48))
    model = fgd.models.linear(48, 48)
    params = from_torch(theirs, model.init(0), flattened={"1": 3})
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
    with torch.no_grad():
        y = theirs(torch.tensor(x).movedim(-1, 1)).numpy()
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)), y, atol=1e-5)


def test_one_layer_under_two_names(as_users):
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    tied, apart = nn.ModuleDict({"a": layer, "b": layer}), nn.ModuleDict({"a": layer, "b": other})
    like, names = {"c": by_name(layer)}, {"a": "c", "b": "c"}
    params = from_torch(tied, like, names=names)
    for state in [to_torch(params, names=names), to_torch(params, tied, names=names)]:
        assert all(torch.equal(x, state[key]) for key, x in tied.state_dict().items())
    message = "from_torch: names makes one of two layers that are not equal: a.weight and b.weight"
    assert message in refused(ValueError, apart, like, names=names)
    params = from_torch(apart, {"a": like["c"], "b": like["c"]})
    for of in [tied, tied.state_dict()]:
        message = refused(ValueError, params, of, call=to_torch)
        assert message.startswith("to_torch: what is one tensor in like has two values here: a.")
    like = {"a": like["c"], "b": like["c"]}
    assert "names makes 'b' of 'a' and 'b'" in refused(ValueError, apart, like, names={"a": "b"})
    assert "names must be a dict" in refused(TypeError, apart, like, names=["a"])


WRAPPED = [
    (nn.DataParallel, "module."),
    pytest.param(
        lambda model: torch.compile(model, backend="eager"), "_orig_mod.", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("wrap", "prefix"), WRAPPED, ids=["DataParallel", "compiled"])
def test_wrapped_models(wrap, prefix):
    """Prefixes of their own; the types of layers are seen through them."""
    it = case("head, hidden, inp, by name")
    right = from_torch(it.theirs, it.like)
    wrapped = wrap(it.theirs)
    for of in [wrapped, wrapped.state_dict()]:
        assert f"names={{'{prefix}hidden': …" in refused(ValueError, of, it.like)
        names = {f"{prefix}{layer}": layer for layer in it.like}
        assert same(from_torch(of, it.like, names=names), right)
    it = case("no bias")  # square: only its type says what it is
    right = from_torch(it.theirs, it.like)
    net = wrap(Net(lambda m, x: m.fc(x), fc=it.theirs))
    assert same(from_torch(net, it.like), right)


# Tensors of all kinds

LINEAR = {"w": jnp.zeros([4, 4]), "b": jnp.zeros(4)}


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.T,
        lambda w: nn.Parameter(w),
        lambda w: w[:1].expand(4, 4),
        lambda w: torch.cat([w, w], 1)[:, ::2],
        lambda w: torch.complex(w, w).conj().imag,  # negated when it is read
    ],
    ids=["transposed", "parameter", "expanded", "strided", "negated"],
)
def test_views(view):
    state = {"weight": view(torch.randn(4, 4)), "bias": torch.randn(4)}
    params = from_torch(state, LINEAR)
    assert np.array_equal(params["w"].T, state["weight"].detach().resolve_neg())
    assert torch.equal(to_torch(params, state)["weight"], state["weight"])


@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage|quantize_per_tensor)")
@pytest.mark.parametrize(
    "kind",
    [
        lambda w: w.to_sparse(),
        lambda w: w.to_sparse_csr(),
        lambda w: w.to("meta"),
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
        lambda w: torch.nested.nested_tensor([w, w]),
        lambda w: nn.LazyLinear(4).weight,
    ],
    ids=["sparse", "csr", "meta", "quantized", "nested", "lazy"],
)
def test_tensors_without_numbers(kind):
    state = {"weight": kind(torch.randn(4, 4)), "bias": torch.randn(4)}
    message = refused(ValueError, state, LINEAR)
    assert "numbers can't be read" in message or "has no shape: " in message


def test_a_model_without_numbers_can_be_filled():
    with torch.device("meta"):
        theirs = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    like = by_name(theirs)
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), like)
    theirs.load_state_dict(to_torch(params, theirs), assign=True)
    assert same(from_torch(theirs, like), params)
    assert theirs[1].num_batches_tracked == 0


def test_a_state_dict_that_changes_while_it_is_read():
    class Changing(dict):
        def items(self):
            for key in list(self):
                self[f"{key}_seen"] = None
                yield key, self[key]

    state = nn.Linear(4, 4).state_dict()
    assert same(from_torch(Changing(state), LINEAR), from_torch(state, LINEAR))


def test_what_is_no_like(as_users):
    model = fgd.models.mlp([4, 4])
    for wrong in [None, {}, model, model.init, jnp.ones(4)]:
        assert "expected parameters by name" in refused(TypeError, nn.Linear(4, 4), wrong)
    state = {"head.value": torch.ones(3)}
    assert from_torch(state, {"head": {"value": jnp.zeros(3)}})["head"]["value"].sum() == 3
