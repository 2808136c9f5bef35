"""One of several processes that run the same program; its results go to a file of its own."""

import os
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd


def problem():
    from problems import Problem  # computes when it is imported, and init comes first

    return Problem("mlp", "adam", True, 64, 16, True, 0)


def everything(mesh, folder, task="everything"):
    """What a program can ask of a mesh, or a little of it, as arrays by name."""
    given = problem()
    step, data = given.step(), given.data
    start = given.start(step)
    results = {}

    def keep(name, state, history):
        leaves = [*jax.tree.leaves(state.params), history["loss"]]
        results.update({f"{name}{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)})

    state, history = fgd.fit(step, start, data, num_steps=7, mesh=mesh, **given.run)
    keep("fit", *fgd.fit(step, state, data, num_steps=4, mesh=mesh, **given.run))

    def share():
        """This process's rows of every batch of an unshuffled run."""
        first, size = jax.process_index(), 16 // jax.process_count()
        for t in range(10**9):
            rows = (16 * t + size * first + np.arange(size)) % 64
            yield tuple(np.asarray(x)[rows] for x in data)

    keep("stream", *fgd.train(step, start, share(), num_steps=6, mesh=mesh))

    if task == "little":
        return results

    seen = []

    def evaluate(state):
        params = state.params
        seen.append(all(x.is_fully_addressable for x in jax.tree.leaves(params)))
        return {"bias": params[0]["b"], "error": given.loss(params, data, jax.random.key(1))}

    def stop_when(state, metrics):
        return jax.process_index() == 0 and int(state.step) >= 12  # for one process only

    state, history = fgd.train(
        step,
        start,
        data,
        num_epochs=9,
        mesh=mesh,
        evaluate=evaluate,
        stop_when=stop_when,
        log=f"{folder}/log-{jax.process_count()}.jsonl",
        progress=True,
        **given.run,
    )
    keep("train", state, history)
    results["bias"] = np.asarray(history["evaluate"]["bias"])
    assert seen == [True] * 3
    # Chunks as long as the clock says, which no two processes read alike.
    keep("paced", *fgd.train(step, start, data, num_steps=80, mesh=mesh, **given.run))

    def run(rate, seed):
        step = given.step(rate)
        state = step.init(start.params, key=seed)
        return fgd.fit(step, state, data, num_steps=3, **given.run)[1]["loss"]

    results["sweep"] = np.asarray(
        fgd.sweep(run, rate=jnp.array([0.1, 0.01, 0.001]), seed=jnp.arange(2), mesh=mesh)
    )
    if jax.process_count() > 1:
        with pytest.raises(ValueError, match=r"the same on every process, but differ on .* \[1"):
            fgd.fit(step, start, data[0] + jax.process_index(), num_steps=1, mesh=mesh)
        alone = jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1])
        if jax.process_index() == 0:  # a run of its own, that no other process joins
            fgd.train(step, start, data, num_steps=5, mesh=alone, **given.run)
    return results


def endless(mesh):
    """Trains until it is killed."""
    given = problem()
    step = given.step()

    def evaluate(state):
        print("training", flush=True)
        return {}

    options = {"evaluate": evaluate, "evaluate_every": 500}
    fgd.train(step, given.start(step), given.data, num_steps=10**9, mesh=mesh, **options)


def fails(mesh):
    """Its process 1 reads a broken file."""
    given = problem()
    step = given.step()

    def share():
        for t in range(100):
            if t == 5 and jax.process_index() == 1:
                raise OSError("the disk is gone")
            yield tuple(np.asarray(x)[:8] for x in given.data)

    fgd.train(step, given.start(step), share(), num_steps=100, mesh=mesh)


if __name__ == "__main__":
    warnings.simplefilter("error")
    task, folder, devices = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_enable_x64", True)
    mesh = fgd.parallel.init(initialization_timeout=30, heartbeat_timeout=4)
    if task in ("everything", "little"):
        name = os.environ.get("JAX_PROCESS_ID", "alone")
        np.savez(f"{folder}/{jax.process_count()}-{name}.npz", **everything(mesh, folder, task))
    else:
        {"endless": endless, "fails": fails}[task](mesh)
