"""Programs as files: they compute what fgd computes, in processes that have no fgd."""

import functools
import re
import subprocess
import sys
from typing import NamedTuple

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from problems import relaxed, same

import fgd
from fgd.export import load, save

KEY = jax.random.key(0)
MLP = fgd.models.mlp([4, 5, 3])

# What docs/interop.md says, where nothing but JAX is to be had.
READ = """
import sys
sys.modules.update(dict.fromkeys(["fgd", "flax", "optax", "safetensors"]))  # importing them fails
import io, jax, numpy as np
from jax import export
blob = open("file.fgd", "rb").read()
n = int.from_bytes(blob[8:16], "little")
program = jax.jit(export.deserialize(bytearray(blob[24 : 24 + n])).call)
arrays = dict(np.load(io.BytesIO(blob[24 + n : -32])))
"""


def without_fgd(folder, code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ + code],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "out.npz")


def images(rows):
    return jnp.asarray(np.random.default_rng(rows).normal(size=(rows, 2, 2)), jnp.float32)


def test_model(tmp_path):
    params = MLP.init(KEY)
    save(tmp_path / "file.fgd", MLP, params, images(3))
    predict = load(tmp_path / "file.fgd")
    for rows in [1, 3, 8]:
        np.testing.assert_allclose(predict(images(rows)), MLP.apply(params, images(rows)), 1e-6)
    assert same(predict.arrays, {f"{i}.{k}": v for i, x in enumerate(params) for k, v in x.items()})
    np.savez(tmp_path / "in.npz", x=images(7))
    out = without_fgd(tmp_path, 'np.savez("out.npz", y=program(arrays, np.load("in.npz")["x"]))')
    np.testing.assert_allclose(out["y"], MLP.apply(params, images(7)), 1e-6)


def loss(params, batch, key):
    x, y = batch
    noisy = x + 0.1 * jax.random.normal(key, x.shape)
    return fgd.losses.cross_entropy(MLP.apply(params, noisy), y)


def batches():
    return [(images(rows), jnp.arange(rows, dtype=jnp.int32) % 3) for rows in [4, 6, 4]]


@pytest.mark.slow
def test_step(tmp_path):
    """Training goes on without fgd, on batches of any size, to the same parameters."""
    step = fgd.train_step(loss, fgd.adam(0.01))
    state, _ = step(step.init(MLP.init(KEY), key=7), batches()[0])
    save(tmp_path / "file.fgd", step, state, batches()[0])
    for name, arrays in zip("xy", zip(*batches(), strict=True), strict=True):
        np.savez(tmp_path / f"{name}.npz", *arrays)
    code = """
state, xs, ys = arrays, np.load("x.npz"), np.load("y.npz")
for name in xs:
    state, metrics = program(state, (xs[name], ys[name]))
np.savez("out.npz", loss=metrics["loss"], **state)
"""
    out = without_fgd(tmp_path, code)
    shipped = load(tmp_path / "file.fgd")
    theirs = shipped.arrays
    assert same(shipped(state, batches()[0])[0], shipped(theirs, batches()[0])[0])
    for batch in batches():
        state, metrics = step(state, batch)
        theirs, _ = shipped(theirs, batch)
    assert int(out["step"]) == 4
    np.testing.assert_allclose(out["loss"], metrics["loss"], 1e-6)
    for i, layer in enumerate(state.params):
        for name, value in layer.items():
            np.testing.assert_allclose(out[f"params.{i}.{name}"], value, 1e-5, 1e-7)
    assert same(theirs, {name: out[name] for name in theirs})
    fgd.interop.save(tmp_path / "state", theirs)  # and back
    assert jax.tree.structure(fgd.interop.load(tmp_path / "state", state)) == jax.tree.structure(
        state
    )


class Batch(NamedTuple):
    x: object
    y: object


class Dropout(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))


def test_flax_with_dropout_in_evaluation_mode(tmp_path):
    model = fgd.models.from_flax(Dropout(), jnp.ones([1, 4]))
    params = model.init(KEY)
    save(tmp_path / "file.fgd", jax.jit(model.apply), params, jnp.ones([2, 4]))
    x = images(5).reshape(5, 4)
    np.testing.assert_allclose(load(tmp_path / "file.fgd")(x), model.apply(params, x), 1e-6)


def test_containers_and_dtypes(tmp_path):
    """NamedTuples come and go as dicts by name; bfloat16 and keys are exact."""
    params = {"half": jnp.arange(3.0).astype(jnp.bfloat16), "key": jax.random.key(5), "file": 2.0}

    def apply(params, batch):
        noise = jax.random.normal(params["key"], (3,)) * params["file"]
        half = params["half"].astype(jnp.float32)
        return Batch({"sum": batch.x @ half, "noisy": batch.x + noise[None]}, (batch.y,))

    batch = Batch(jnp.ones([4, 3]), jnp.arange(4))
    save(tmp_path / "file.fgd", apply, params, batch)
    program = load(tmp_path / "file.fgd")
    assert program.arrays["half"].dtype == "uint16"
    y = program(batch)
    expected = apply(params, batch)
    assert same(y, program({"x": batch.x, "y": batch.y}))
    np.testing.assert_allclose(y["x.noisy"], expected.x["noisy"], 1e-6)
    np.testing.assert_allclose(y["x.sum"], 3)
    assert y["y.0"].tolist() == [0, 1, 2, 3]


def test_weights_are_stored_once(tmp_path):
    w = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    save(tmp_path / "file.fgd", lambda w, x: x @ w + x @ w.T, w, jnp.ones([1, 300]))
    content = (tmp_path / "file.fgd").read_bytes()
    assert content.count(w[7].tobytes()) == 1
    assert len(content) < w.nbytes + 20_000


@functools.cache
def small():
    """The bytes of a file; made once."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "a", lambda w, x: w * x, np.float32(2), jnp.ones(1))
        return (Path(folder) / "a").read_bytes()


def assert_refused(folder, content, message):
    path = folder / "broken.fgd"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is {message}"):
        load(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_flipped_bit_is_refused(tmp_path_factory, data):
    content = bytearray(small())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    assert_refused(tmp_path_factory.mktemp("flip"), content, "")


def test_broken_files_are_named(tmp_path):
    size = len(small())
    assert_refused(tmp_path, small()[:-5], f"cut short: {size - 5} of {size} bytes")
    assert_refused(tmp_path, small()[:30], "cut short: 30 of")
    assert_refused(tmp_path, small() + b"\n", f"too long: {size + 1} of {size} bytes")
    for foreign in [b"", b"fgd1", b"PK\3\4 another format", b"fgd9" + small()[4:]]:
        assert_refused(tmp_path, foreign, r"no file of fgd\.export\.save, of this version")
    flipped = bytearray(small())
    flipped[100] ^= 4
    assert_refused(tmp_path, flipped, "damaged: its content is not what was saved")
    assert small.__wrapped__() == small()  # the same program, the same file
    assert b".py" not in small().replace(b".npy", b"")  # and no paths of sources


def test_files_are_not_lost(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="a exists already; overwrite=True replaces it"):
        save(path, MLP.apply, MLP.init(KEY), images(1))
    with pytest.raises(ValueError, match="not for any number"):
        save(path, fixed, {}, jnp.ones([4, 2]), overwrite=True)
    assert path.read_bytes() == b"mine"
    save(path, MLP.apply, MLP.init(KEY), images(1), overwrite=True)
    assert load(path)(images(2)).shape == (2, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def fixed(params, x):
    return x.reshape(4, -1)


def test_one_batch_size(tmp_path):
    with pytest.raises(
        ValueError, match=r"works for 4 rows, but not for any .*\(5, 2\).*x\.shape\[0\], or"
    ):
        save(tmp_path / "a", fixed, {}, jnp.ones([4, 2]))
    with pytest.raises(
        ValueError, match=r"output\['p'\] has shape \[4, 2\] for any number of rows"
    ):
        save(tmp_path / "a", lambda w, x: {"p": w}, jnp.ones([4, 2]), jnp.ones([4, 2]))
    with pytest.raises(ValueError, match=r"the output has shape \[\] for any number of rows"):
        save(tmp_path / "a", lambda w, x: jnp.mean(x), {}, jnp.ones([4, 2]))
    step = fgd.train_step(lambda w, x: jnp.mean(w * x.reshape(2, 2)), fgd.sgd(0.1))
    state = step.init(1.0)
    with pytest.raises(ValueError, match=r"works for 4 rows, but not for any .* any_batch=False"):
        save(tmp_path / "a", step, state, jnp.ones(4))
    save(tmp_path / "a", step, state, jnp.ones(4), any_batch=False)
    shipped = load(tmp_path / "a")
    assert same(shipped(state, jnp.ones(4))[0]["params"], step(state, jnp.ones(4))[0].params)
    with pytest.raises(ValueError, match=r"artifact: batch is float32\[5\], expected float32\[4\]"):
        shipped(shipped.arrays, jnp.ones(5))


def test_what_cannot_be_exported(tmp_path, as_users):
    params = MLP.init(KEY)
    with pytest.raises(TypeError, match=r"apply must be a function such as model\.apply.* got 3"):
        save(tmp_path / "a", 3, params, images(1))
    with pytest.raises(ValueError, match=r"sample has shape \(\), expected at least one row"):
        save(tmp_path / "a", MLP.apply, params, jnp.float32(1))
    with pytest.raises(TypeError, match=r"sample\[0\] is 1\.0, expected an array"):
        save(tmp_path / "a", MLP.apply, params, [1.0])
    with pytest.raises(TypeError, match=r"export\.save: 0\.w is 'no', expected an array"):
        save(tmp_path / "a", MLP.apply, [{"w": "no"}], images(1))
    with pytest.raises(ValueError, match=r"expected \[rows, …\] with 4 values a row"):
        save(tmp_path / "a", MLP.apply, params, jnp.ones([2, 3]))
    assert not list(tmp_path.iterdir())


def test_other_optimizers(tmp_path):
    """Their states are NamedTuples, which no program can take as they are."""
    import optax

    optimizer = relaxed(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)))
    step = fgd.train_step(lambda w, x: jnp.mean((w["a"] - x) ** 2), optimizer)
    state = step.init({"a": 1.0})
    save(tmp_path / "a", step, state, jnp.ones(2))
    ours, theirs = step(state, jnp.ones(3))[0], load(tmp_path / "a")(state, jnp.ones(3))[0]
    np.testing.assert_allclose(theirs["params.a"], ours.params["a"], 1e-6)


def test_a_model_with_arrays_of_its_own(tmp_path):
    """Its Variables are saved together, and it is exported in evaluation mode."""
    import flax.linen as nn

    norm = nn.BatchNorm(use_running_average=None, momentum=0.5)
    model = fgd.models.from_flax(norm, jnp.ones([1, 3]))
    params, model_state = model.init(0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        _, model_state = model.apply(params, model_state, x, key=KEY)
        variables = fgd.models.Variables(params, model_state)
        save(tmp_path / "a", model, variables, x)
        expected, _ = model.apply(*variables, x)
    predict = load(tmp_path / "a")
    assert set(predict.arrays) >= {"params.scale", "model_state.batch_stats.mean"}
    np.testing.assert_allclose(predict(x), expected, rtol=1e-6)


def test_inputs_that_do_not_fit(tmp_path):
    """What was given and what is expected, of every leaf; not JAX's own words."""
    params = MLP.init(KEY)
    save(tmp_path / "a", MLP, params, images(3))
    predict = load(tmp_path / "a")
    step = fgd.train_step(loss, fgd.sgd(0.1))
    state = step.init(params)
    save(tmp_path / "b", step, state, batches()[0])
    train, (x, y) = load(tmp_path / "b"), batches()[0]
    wrong = {
        "x is float32[3, 4], expected float32[rows, 2, 2]": (predict, jnp.ones([3, 4])),
        "x is float32[3, 2, 3], expected float32[3, 2, 2]": (predict, jnp.ones([3, 2, 3])),
        "x is int32[3, 2, 2], expected float32[3, 2, 2]": (predict, jnp.ones([3, 2, 2], int)),
        "x is float32[0, 2, 2], expected float32[rows, 2, 2], of one row at least": (
            predict,
            jnp.ones([0, 2, 2]),
        ),
        "missing x; left over x['a']": (predict, {"a": x}),
        "missing x": (predict, None),
        "batch[1] is int32[3], expected int32[4]": (train, state, (x, y[:3])),
        "missing batch[1]": (train, state, (x,)),
        "left over batch[2]": (train, state, (x, y, y)),
        "missing state['params.1.b'], state['params.1.w']": (
            train,
            {name: x for name, x in train.arrays.items() if "params.1" not in name},
            (x, y),
        ),
    }
    for message, (program, *inputs) in wrong.items():
        with pytest.raises(ValueError, match=f"^artifact: {re.escape(message)}"):
            program(*inputs)
    for message, (program, *inputs) in {
        "takes state and batch, got an array float32[4, 2, 2]": (train, x),
        "takes x, got nothing": (predict,),
        "x is 'no', expected an array": (predict, "no"),
    }.items():
        with pytest.raises(TypeError, match=f"^artifact: {re.escape(message)}"):
            program(*inputs)
    predict.arrays["0.w"] = jnp.ones(3)
    with pytest.raises(ValueError, match=r"artifact: arrays\['0.w'\] is float32\[3\], expected fl"):
        predict(x)
    assert same(train(state, [x, y]), train(state, (x, y)))  # a list does as well


def test_inputs_are_checked_once(tmp_path, compiled):
    """As they are traced: a program that has run takes its inputs as they come."""
    save(tmp_path / "a", MLP, MLP.init(KEY), images(3))
    predict = load(tmp_path / "a")
    predict(images(3))
    before = compiled()
    predict(images(3))
    assert compiled() == before


def test_float64_is_not_rounded(tmp_path, x64):
    save(tmp_path / "a", lambda w, x: w * x, np.float64(1) / 3, jnp.ones(2))
    assert load(tmp_path / "a")(jnp.ones(2)).dtype == "float64"
    with jax.enable_x64(False), pytest.raises(ValueError, match="float64, which JAX would round"):
        load(tmp_path / "a")
