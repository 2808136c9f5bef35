"""fgd.compilation_cache, in processes of their own: its settings are a process's."""

import subprocess
import sys

import pytest

import fgd

PROGRAM = """
import sys
import fgd, jax, jax.numpy as jnp

hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
fgd.losses.mse(jnp.ones(3), jnp.ones(3))  # JAX has compiled without a cache before
folder = fgd.compilation_cache(sys.argv[1])
model = fgd.models.mlp([3, 4, 1])
step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.adam(0.1))
state = step.init(model.init(jax.random.key(0)))
x = jnp.linspace(-1, 1, 30).reshape(10, 3)
_, history = fgd.fit(step, state, (x, x[:, :1] ** 2), batch_size=5, num_steps=20)
loss = history["loss"][-1].item().hex()
print(len(hits), len(list(folder.glob("*-cache"))), loss)
"""


def run(folder):
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hits, kept, loss = done.stdout.split()
    return int(hits), int(kept), loss


def test_the_next_process_compiles_nothing(tmp_path):
    """Each of its programs is a hit, none is new, and the loss is the same, bit for bit."""
    folder = tmp_path / "made" / "here"
    none, kept, loss = run(folder)
    assert none == 0
    assert kept > 3
    assert run(folder) == (kept, kept, loss)


def test_a_file_in_its_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"compilation_cache: expected a folder .* is a f"):
        fgd.compilation_cache(tmp_path / "file")
