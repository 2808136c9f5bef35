"""What is compiled follows every setting of JAX's that a trace depends on, also a changed one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd

SETTINGS = {
    "jax_default_prng_impl": lambda: jax.default_prng_impl("rbg"),
    "jax_threefry_partitionable": lambda: jax.threefry_partitionable(False),
    "jax_enable_x64": lambda: jax.enable_x64(True),
    "jax_default_matmul_precision": lambda: jax.default_matmul_precision("highest"),
    "jax_numpy_dtype_promotion": lambda: jax.numpy_dtype_promotion("standard"),
    "jax_default_device": lambda: jax.default_device(jax.devices()[3]),
}


def settings():
    return {name: getattr(jax.config, name) for name in SETTINGS}


def drawn():
    """A number that depends on the kind of keys, on how they are drawn from, and on x64."""
    return jnp.sum(jax.random.uniform(jax.random.key(1), (3,)))


@pytest.mark.parametrize("what", ["fit", "train", "evaluate", "sweep"])
def test_a_program_is_of_its_settings(what):
    """The same objects, called before, under another setting and after it."""
    traced = []  # under which settings

    def draw():
        traced.append(settings())
        return drawn()

    step = fgd.train_step(lambda w, x: (jnp.mean(w * x), {"m": draw()}), fgd.sgd(0.1))
    state, x = step.init(np.float32(1)), np.ones(4, np.float32)

    def metric(params, rows):
        return {"m": jnp.broadcast_to(draw(), rows.shape)}

    def run(a):
        return draw()

    calls = {
        "fit": lambda: fgd.fit(step, state, x, num_steps=1)[1]["m"][0],
        "train": lambda: fgd.train(step, state, x, num_steps=1)[1]["m"][0],
        "evaluate": lambda: fgd.evaluate(metric, 1.0, x)["m"],
        "sweep": lambda: fgd.sweep(run, a=x)[1],
    }
    call = calls[what]
    before = call()
    for name, change in SETTINGS.items():
        with change():
            inside, expected = call(), drawn()
            assert traced[-1] == settings(), name
        assert inside.dtype == expected.dtype, name
        np.testing.assert_allclose(inside, expected, rtol=1e-6, err_msg=name)
        if name == "jax_default_device" and what != "train":  # whose history is NumPy's
            assert inside.devices() == {jax.devices()[3]}
    times = len(traced)
    assert call() == before
    assert len(traced) == times  # what was compiled first is still there
