"""Small problems that the laws are tested on: models × optimizers × losses × awkward sizes."""

import os
from typing import NamedTuple

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings

import fgd


def relaxed(optimizer):
    """One of optax's: it counts on implicit promotion, which the tests forbid fgd."""

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


OPTIMIZERS = {
    "sgd": fgd.sgd,
    "momentum": fgd.momentum,
    "nesterov": lambda rate: fgd.momentum(rate, nesterov=True),
    "averaging": lambda rate: fgd.momentum(rate, averaging=True),
    "adagrad": fgd.adagrad,
    "rmsprop": fgd.rmsprop,
    "adam": fgd.adam,
    "optax adamw": lambda rate: relaxed(optax.adamw(rate)),
    "clipped": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), fgd.adam(rate)),
}


def examples(few, many):
    """A property: tried on a few examples, in CI on half of many, with FGD_LONG=all on many."""

    def decorate(test):
        number = {"": few, "all": many}.get(os.environ.get("FGD_LONG", ""), max(few, many // 2))
        test = settings(max_examples=number, deadline=None, derandomize=True)(test)
        return pytest.mark.property(test)

    return decorate


class Flax(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, param_dtype=float)(nn.tanh(nn.Dense(3, param_dtype=float)(x)))


MODELS = {
    "linear": fgd.models.linear(3, 2),
    "mlp": fgd.models.mlp([3, 4, 2], activation=jnp.tanh),
    "relu mlp": fgd.models.mlp([3, 5, 4, 2]),
    "flax": fgd.models.from_flax(Flax(), np.ones([1, 3])),
}


class Problem(NamedTuple):
    model: str
    optimizer: str
    stochastic: bool
    rows: int
    batch_size: int | None
    shuffle: bool
    seed: int

    @property
    def data(self):
        """Inputs whose second feature is dead (always 0), and targets of a noisy linear map."""
        draw = np.random.default_rng(self.seed)
        x = draw.normal(size=(self.rows, 3)) * [1, 0, 2]
        y = x @ draw.normal(size=(3, 2)) + 0.1 * draw.normal(size=(self.rows, 2))
        return jnp.asarray(x, float), jnp.asarray(y, float)

    @property
    def run(self):
        """The arguments that fit and train share."""
        return {"batch_size": self.batch_size, "shuffle": self.shuffle}

    def loss(self, params, batch, key=None):
        x, y = batch
        if self.stochastic:
            x = x + 0.1 * jax.random.normal(key, x.shape)
        return fgd.losses.mse(MODELS[self.model].apply(params, x), y)

    def step(self, learning_rate=0.02):
        optimizer = OPTIMIZERS[self.optimizer](learning_rate)
        loss = self.loss if self.stochastic else lambda params, batch: self.loss(params, batch)
        return fgd.train_step(loss, optimizer)

    def start(self, step):
        return step.init(MODELS[self.model].init(jax.random.key(self.seed)), key=self.seed)


@st.composite
def problems(draw, **fixed):
    rows = draw(st.sampled_from([1, 2, 5, 7, 16, 23, 64, 65, 100]))
    sizes = st.none() | st.sampled_from([1, rows]) | st.integers(1, rows)
    drawn = Problem(
        model=draw(st.sampled_from(sorted(MODELS))),
        optimizer=draw(st.sampled_from(sorted(OPTIMIZERS))),
        stochastic=draw(st.booleans()),
        rows=rows,
        batch_size=draw(sizes),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )
    return drawn._replace(**fixed)


def same(a, b):
    """Whether two trees are equal bit for bit, keys included."""
    return all(jax.tree.leaves(jax.tree.map(_equal, a, b)))


def _equal(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return bool(np.array_equal(a, b))


def close(a, b, rtol, atol=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
