"""Memory-mapped data: train reads the rows that fit would see, and no more of the file."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import same

import fgd

ROWS = 53
MODEL = fgd.models.mlp([6, 5, 3], activation=jnp.tanh)
LOSS = fgd.supervised(
    MODEL, fgd.losses.cross_entropy, preprocess=lambda x: fgd.data.normalize(x, 0.5, 0.5)
)
STEP = fgd.train_step(LOSS, fgd.adam(0.01))
START = STEP.init(MODEL.init(0), key=3)


@pytest.fixture
def mapped(tmp_path):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", draw.integers(0, 256, (ROWS, 6), np.uint8))
    np.save(tmp_path / "y.npy", draw.integers(0, 3, ROWS))  # int64: too wide, but for its values
    return tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")


def arrays(data):
    return jax.tree.map(lambda x: jnp.asarray(np.array(x)), data)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("devices", [None, 4])
def test_it_is_fit(mapped, shuffle, devices):
    """Bit for bit, from wherever it starts."""
    mesh = None if devices is None else jax.make_mesh((devices,), ("data",))
    options = {"batch_size": 8, "shuffle": shuffle, "mesh": mesh}
    whole, history = fgd.fit(STEP, START, arrays(mapped), num_steps=20, **options)
    middle, begun = fgd.train(STEP, START, mapped, num_steps=9, **options)
    end, ended = fgd.train(STEP, middle, mapped, num_steps=11, **options)
    assert same(end, whole)
    losses = np.concatenate([begun["loss"], ended["loss"]])
    np.testing.assert_array_equal(losses, history["loss"])


def test_epochs_evaluations_and_weights(mapped):
    """One array in a file makes all of them be read row by row."""
    weights = np.arange(ROWS, dtype=np.float32)
    rows = *mapped, weights
    patience = fgd.Patience("loss", 99)
    options = {"batch_size": 8, "num_epochs": 2, "evaluate": arrays(rows)}
    state, history = fgd.train(STEP, START, rows, stop_when=patience, **options)
    expected = fgd.train(STEP, START, arrays(rows), **options)
    assert same(state, expected[0])
    np.testing.assert_array_equal(history["evaluate"]["step"], [6, 12])
    np.testing.assert_array_equal(history["evaluate"]["loss"], expected[1]["evaluate"]["loss"])


def test_it_resumes(mapped, tmp_path):
    options = {"batch_size": 8, "num_steps": 20}
    whole, history = fgd.train(STEP, START, mapped, **options)

    def end(state, metrics):
        if state.step == 10:
            raise RuntimeError("ended")

    checkpoints = fgd.Checkpoints(tmp_path / "run", every=4)
    with pytest.raises(RuntimeError, match="ended"):
        fgd.train(
            STEP,
            START,
            mapped,
            **options,
            checkpoints=checkpoints,
            stop_when=end,
            evaluate_every=5,
        )
    state, found = fgd.train(STEP, START, mapped, **options, checkpoints=checkpoints)
    assert same(state, whole)
    np.testing.assert_array_equal(found["loss"], history["loss"])
    other = np.array(mapped[0])
    other[17] += 1
    np.save(tmp_path / "other.npy", other)
    changed = np.load(tmp_path / "other.npy", mmap_mode="r"), mapped[1]
    with pytest.raises(ValueError, match="the data is other data"):
        fgd.train(STEP, START, changed, **options, checkpoints=checkpoints)


MEMORY = """
import json, re, sys
import numpy as np, jax, jax.numpy as jnp
import fgd

x = np.memmap(sys.argv[1], np.float32, "r", shape=(2**21, 512))  # 4 GiB, a hole but for one row
step = fgd.train_step(lambda w, x: jnp.mean((x - w) ** 2), fgd.sgd(0.1))
start = step.init(jnp.zeros(512))
fgd.train(step, start, x, batch_size=64, num_steps=2)

def held():  # kB, but for pages of files, which the system takes back when it needs them
    with open("/proc/self/status") as file:
        return int(re.search(r"RssAnon:\\s*(\\d+)", file.read())[1])

before = held()
state, history = fgd.train(step, start, x, batch_size=64, num_steps=300)
print(json.dumps([before, held(), len(history["loss"])]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sparse files, and /proc")
def test_a_file_larger_than_what_is_held(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**21 * 512 * 4)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    before, after, steps = json.loads(done.stdout)
    assert steps == 300
    assert after - before < 50_000  # of 4 million


def test_what_it_is_not_for(mapped):
    with pytest.raises(ValueError, match="batch_size=99 is larger than the data's 53 rows"):
        fgd.train(STEP, START, mapped, batch_size=99, num_steps=1)
    wide = np.array(mapped[1]) + 2**40
    with pytest.raises(ValueError, match=r"train: batch\[1\]"):
        fgd.train(STEP, START, (mapped[0], wide), batch_size=8, num_steps=1)
