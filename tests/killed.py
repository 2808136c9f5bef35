"""A run that others kill: started again and again, each time in a process of its own.

Its processes are forked from one that has imported everything and computed nothing, so that a
start takes a part of a second.
"""

import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fgd

EVERY, STEPS = 60, 3000


def problem():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 8)).astype(np.float32)
    model = fgd.models.mlp([8, 16, 1])

    def loss_fn(params, batch, key):  # with randomness of its own
        x, y = batch
        return fgd.losses.mse(model.apply(params, x + 0.1 * jax.random.normal(key, x.shape)), y)

    step = fgd.train_step(loss_fn, fgd.adam(1e-3))
    return step, step.init(model.init(0), key=3), (x, np.sin(x[:, :1]))


def run(folder, checkpointed=True):
    """The whole run, in this process; what it reached stands in a file."""
    step, start, data = problem()

    def evaluate(state):
        return {"norm": jnp.linalg.norm(state.params[0]["w"])}

    folder = Path(folder)
    checkpoints = fgd.Checkpoints(folder / "checkpoints", every=EVERY) if checkpointed else None
    resumed = checkpoints.latest() if checkpointed else None
    (folder / "resumed").write_text(str(resumed or 0))
    state, history = fgd.train(
        step,
        start,
        data,
        batch_size=16,
        num_steps=STEPS,
        evaluate=evaluate,
        evaluate_every=250,
        checkpoints=checkpoints,
        log=folder / "log.jsonl",
        progress=False,
    )
    leaves = [jax.random.key_data(state.key), *jax.tree.leaves((state.params, state.opt_state))]
    numbers = [*leaves, state.step, *jax.tree.leaves(history)]
    with open(folder / "new", "wb") as file:
        np.savez(file, *map(np.asarray, numbers))
    os.rename(folder / "new", folder / "end.npz")


def child(folder, checkpointed=True):
    with open(Path(folder) / "errors", "ab", buffering=0) as errors:
        os.dup2(errors.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        warnings.simplefilter("error")
        # What was killed as it wrote a program left a part of it, which JAX compiles anew.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        jax.config.update("jax_compilation_cache_dir", f"{folder}/../cache")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        run(folder, checkpointed)


def forkserver():
    """Where processes begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed", "orbax.checkpoint", "optax"])
    return context
