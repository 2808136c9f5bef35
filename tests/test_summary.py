"""The table of a model's arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import fgd


def test_counts_and_names():
    model = fgd.models.cnn((28, 28, 1), channels=[4, 8], features=[10])
    params = model.init(0)
    found = fgd.summary(model)
    assert found.size == sum(x.size for x in jax.tree.leaves(params))
    assert found.nbytes == 4 * found.size
    assert repr(found) == repr(fgd.summary(params)) == repr(fgd.summary(jax.device_get(params)))
    rows = repr(found).splitlines()
    assert rows[0].split() == ["name", "shape", "dtype", "size"]
    assert len({len(row) for row in rows[:-1]}) == 1
    assert sum(int(row.split()[-1].replace(",", "")) for row in rows[1:-1]) == found.size


def test_a_model_with_arrays_of_its_own():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = fgd.models.from_flax(linen.BatchNorm(), jnp.ones([1, 3]))
        step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.adam(0.1))
        state = step.init(model.init(0))
    for what in (model, model.init(0), state):
        found = fgd.summary(what)
        assert list(found.arrays) == [
            "bias",
            "scale",
            "model_state.batch_stats.mean",
            "model_state.batch_stats.var",
        ]
        assert repr(found).endswith("\n6 parameters, 6 of the model's own, 48 bytes")


@pytest.mark.parametrize("nbytes", ["float32", "bfloat16"])
def test_bytes(nbytes):
    table = fgd.summary({"w": jax.ShapeDtypeStruct((1000, 1000), nbytes), "b": np.float32(0)})
    assert repr(table).endswith("4.0 MB" if nbytes == "float32" else "2.0 MB")
    assert repr(fgd.summary(jnp.ones(3))).splitlines()[1].split()[0] == "params"
