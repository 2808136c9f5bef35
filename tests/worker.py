"""One of several processes that run the same program; its results go to a file of its own."""

import contextlib
import os
import signal
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd

TIMEOUT = 4  # seconds without a heartbeat after which a process counts as dead


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
        refusals(mesh, given)
        fgd.train(  # to each of them another evaluation is the best, and all save it together
            step,
            start,
            data,
            num_steps=6,
            mesh=mesh,
            evaluate=lambda state: {"a": float(state.step) * (1 - 2 * jax.process_index())},
            evaluate_every=2,
            checkpoints=fgd.Checkpoints(f"{folder}/best", every=100, best="a"),
            **given.run,
        )
        alone = jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1])
        if jax.process_index() == 0:  # a run of its own, that no other process joins
            fgd.train(step, start, data, num_steps=5, mesh=alone, **given.run)
    return results


def refusals(mesh, given):
    """What processes bring that is not the same: every one of them hears of it, and goes on."""
    me, step, data = jax.process_index(), given.step(), given.data
    start = given.start(step)
    params = jax.tree.map(lambda x: x + me, start.params)
    batch = tuple(np.asarray(x)[: 8 // (me + 1)] for x in data)

    def fit(message, step=step, state=start, data=data, num_steps=2, call=fgd.fit, **change):
        with pytest.raises(ValueError, match=f"{call.__name__}: processes that .*: the {message}"):
            call(step, state, data, num_steps=num_steps, mesh=mesh, **given.run | change)

    def sweep(message, rates, data):
        def run(rate):
            return fgd.fit(given.step(rate), start, data, num_steps=1, **given.run)[1]["loss"]

        with pytest.raises(ValueError, match=f"sweep: processes that .*: the {message}"):
            fgd.sweep(run, rate=jnp.asarray(rates), mesh=mesh)

    differ = "program: its loss, optimizer or code differ"
    fit(differ, given.step(0.1 + me))
    fit(differ, fgd.train_step(lambda p, b, key: given.loss(p, b, key) * (1 + me), fgd.adam(0.1)))
    noise = jnp.arange(4.0) + me
    fit(differ, fgd.train_step(lambda p, b: jnp.sum(p[0]["b"][0] * noise), fgd.adam(0.1)))
    fit("plan: process 1 has num_steps=50, process 0 num_steps=10", num_steps=50 if me else 10)
    fit("plan: process 1 has batch_size=8, process 0 batch_size=16", batch_size=8 if me else 16)
    fit("plan: process 1 has shuffle=False, process 0 shuffle=True", shuffle=not me)
    fit("plan: process 1 has record_every=2, process 0 record_every=1", record_every=1 + me)
    fit("plan: process 1 has evaluate_every=2, ", call=fgd.train, evaluate_every=1 + me,
        stop_when=lambda state, metrics: False)  # fmt: skip
    for name, unlike in (
        ("every=6, process 0 checkpoints.every=5", {"every": 5 + me}),
        ("keep=2, process 0 checkpoints.keep=1", {"keep": 1 + me}),
        ("best=b, process 0 checkpoints.best=a", {"best": "ab"[me]}),
        ("maximize=True, process 0 checkpoints.max", {"best": "a", "maximize": bool(me)}),
    ):
        fit(f"plan: process 1 has checkpoints.{name}", call=fgd.train, evaluate=lambda state: {},
            checkpoints=fgd.Checkpoints("unlike", **unlike))  # fmt: skip
    fit("plan: process 1 has stop_when.evaluations=2, ", call=fgd.train, evaluate=lambda state: {},
        stop_when=fgd.Patience("a", 1 + me))  # fmt: skip
    loss_fn = fgd.supervised(lambda w, x: x * w, fgd.losses.mse)
    rows = np.ones(64), np.ones(64)
    supervised = fgd.train_step(loss_fn, fgd.sgd(0.1))
    fit("evaluation: its rows differ", supervised, supervised.init(1.0), rows, call=fgd.train,
        evaluate=(rows[0] + me, rows[1]))  # fmt: skip
    fit("plan: process 1 has evaluate=rows, process 0 evaluate=a function", supervised,
        supervised.init(1.0), rows, call=fgd.train,
        evaluate=rows if me else lambda state: {})  # fmt: skip
    fit("data: its values differ", data=(data[0] + me, data[1]))
    fit("state: its values differ", state=step.init(params))
    with jax.threefry_partitionable(me == 0):
        fit("versions and settings: process 1 has jax_threefry_partitionable=False, process 0 ")
    with pytest.raises(ValueError, match="plan: process 1 has call=train, process 0 call=fit"):
        (fgd.train if me else fgd.fit)(step, start, data, num_steps=2, mesh=mesh, **given.run)
    streamed = {"num_steps": 2, "mesh": mesh}
    with pytest.raises(ValueError, match="process 1 has given=a stream, process 0 given=arrays"):
        fgd.train(step, start, iter([batch] * 2) if me else data, **streamed)
    with pytest.raises(ValueError, match=r"process 1 has batch=float64\[4, 3\].*=float64\[8, 3\]"):
        fgd.train(step, start, iter([batch] * 2), **streamed)
    same = tuple(x[:4] for x in batch)
    with pytest.raises(ValueError, match=differ):
        fgd.train(given.step(0.1 + me), start, iter([same] * 2), **streamed)
    sweep("axes: their values differ", [0.1, 0.2 + me], data)
    sweep("plan: process 1 has lengths=3, process 0 lengths=2", [0.1, 0.2, 0.3][: 2 + me], data)
    sweep(differ, [0.1, 0.2], tuple(x + me for x in data))


def ends(mesh, how, victim):
    """One process ends, in one of many ways, while the others train on."""
    given, mine = problem(), jax.process_index() == victim
    step = given.step()
    start = given.start(step)
    run = {"num_steps": 10**9, "mesh": mesh}

    def evaluate(state):
        print("training", flush=True)
        if mine and how == "exits":
            sys.exit(0)
        if mine and how in ("raises", "catches", "retries"):
            raise OSError("the disk is gone")
        return {}

    def share():
        for _ in range(5 if mine else 10**9):
            yield tuple(np.asarray(x)[:8] for x in given.data)

    try:
        if how == "runs dry":
            fgd.train(step, start, share(), **run)
        if how == "ends before":
            fgd.fit(step, start, given.data, num_steps=2, mesh=mesh)
            if mine:
                return
        fgd.train(step, start, given.data, evaluate=evaluate, evaluate_every=500, **run)
    except (OSError, ValueError):
        if how == "raises" or not mine:
            raise
    if how == "retries":  # its messages must not be taken for those that the others wait for
        fgd.train(step, start, given.data, **run)
    signal.pause()


def lingers(mesh):
    """All meet the same errors and go on; then process 0 has work of its own, for long."""
    given = problem()
    step = given.step()

    def evaluate(state):
        raise OSError("the disk is gone")

    for k in range(6):
        with pytest.raises(OSError, match="gone") if k % 3 else contextlib.nullcontext():
            fgd.train(
                step,
                given.start(step),
                given.data,
                num_steps=4,
                mesh=mesh,
                evaluate=evaluate if k % 3 else None,
            )
    if jax.process_index() == 0:
        time.sleep(2.5 * TIMEOUT)
    print("done", flush=True)


class Share:
    """This process's rows of every batch, a loader that can say where it stands."""

    def __init__(self, data):
        self.data, self.t = data, 0

    def __iter__(self):
        return self

    def __next__(self):
        rows = (16 * self.t + 8 * jax.process_index() + np.arange(8)) % 64
        self.t += 1
        return tuple(np.asarray(x)[rows] for x in self.data)

    def get_state(self):
        return [jax.process_index(), self.t]

    def set_state(self, state):
        process, self.t = state
        assert process == jax.process_index()


def saves(mesh, folder, kind):
    """A state that is spread over the processes, with checkpoints; SIGTERM comes to one of them."""
    given = problem()
    step = given.step()

    def spread(x):
        wide = jax.sharding.PartitionSpec(None, "data") if np.shape(x)[1:] == (4,) else None
        if wide is None:
            return x
        where = jax.sharding.NamedSharding(mesh, wide)
        return jax.make_array_from_callback(x.shape, where, lambda i: np.asarray(x)[i])

    start = jax.tree.map(spread, given.start(step))

    def evaluate(state):
        if kind == "ended" and jax.process_index() == 1 and int(state.step) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"step of it": state.step}

    state, history = fgd.train(
        step,
        start,
        Share(given.data),
        num_steps=40,
        mesh=mesh,
        evaluate=evaluate,
        evaluate_every=10,
        checkpoints=fgd.Checkpoints(f"{folder}/checkpoints", every=15),
        log=f"{folder}/log.jsonl",
    )
    assert not state.params[0]["w"].is_fully_addressable
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    leaves = jax.tree.leaves((state.params, state.opt_state))
    leaves = jax.jit(lambda x: x, out_shardings=whole)(leaves)
    leaves = [np.asarray(x) for x in leaves] + jax.tree.leaves(history)
    np.savez(f"{folder}/{jax.process_index()}.npz", *leaves)


if __name__ == "__main__":
    warnings.simplefilter("error")
    task, folder, devices = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_enable_x64", True)
    mesh = fgd.parallel.init(initialization_timeout=30, heartbeat_timeout=TIMEOUT)
    how, _, victim = task.partition("-")
    if how == "saves":
        saves(mesh, folder, victim)
    elif victim:
        ends(mesh, how, int(victim))
    elif task == "lingers":
        lingers(mesh)
    else:
        name = os.environ.get("JAX_PROCESS_ID", "alone")
        np.savez(f"{folder}/{jax.process_count()}-{name}.npz", **everything(mesh, folder, task))
