"""Whatever ends a run, what it reached is in its caller's hands: signals, numbers, disks, pipes."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import Problem, same
from tqdm import tqdm

import fgd

PROBLEM = Problem("linear", "adam", True, 23, 7, True, 0)
STEP = PROBLEM.step()
START = PROBLEM.start(STEP)
QUARTIC = fgd.train_step(lambda p, b: jnp.mean(b * p**4), fgd.sgd(1.0))  # diverges from 1.5


def train(**options):
    given = {"data": PROBLEM.data, "num_steps": 40, **PROBLEM.run} | options
    return fgd.train(STEP, START, given.pop("data"), **given)


def fit(steps):
    return fgd.fit(STEP, START, PROBLEM.data, num_steps=steps, **PROBLEM.run)


# Numbers that are not finite


@pytest.mark.parametrize("record_every", [1, 4])
def test_divergence_ends_with_the_last_finite_state(record_every, tmp_path):
    """Wherever it falls within a call; found by NumPy's own descent."""
    p, losses = np.float32(1.5), []
    with np.errstate(over="ignore"):
        while np.isfinite(p**4) and np.isfinite(p):
            losses.append(p**4)
            p = np.float32(p - 4 * p**3)
    checkpoints = fgd.Checkpoints(tmp_path, every=record_every)
    with pytest.raises(fgd.DivergedError, match=r"train: the loss is inf at step \d+; ") as caught:
        fgd.train(QUARTIC, QUARTIC.init(1.5), jnp.ones(1), num_steps=64, record_every=record_every)
    error = caught.value
    whole = len(losses) // record_every * record_every
    assert error.step == whole + record_every
    steps = int(error.state.step)
    assert steps in (whole, whole - record_every)
    again, history = fgd.fit(
        QUARTIC, QUARTIC.init(1.5), jnp.ones(1), num_steps=steps, record_every=record_every
    )
    assert same(error.state, again)
    np.testing.assert_array_equal(error.history["loss"], history["loss"])
    assert np.isfinite(error.state.params)
    with pytest.raises(fgd.DivergedError):
        fgd.train(
            QUARTIC, QUARTIC.init(1.5), jnp.ones(1), num_steps=64, record_every=record_every,
            checkpoints=checkpoints,
        )  # fmt: skip
    assert np.isfinite(checkpoints.restore(QUARTIC.init(1.5)).params)
    batches = iter([jnp.ones(1)] * 64)
    with pytest.raises(fgd.DivergedError) as caught:
        fgd.train(QUARTIC, QUARTIC.init(1.5), batches, num_steps=64)
    assert caught.value.step == len(losses) + 1
    assert np.isfinite(caught.value.state.params)


def test_divergence_of_parameters_alone():
    """A loss that is finite while a parameter it does not see is not, as optax.masked may leave."""
    step = fgd.train_step(
        lambda p, b: p["seen"] * jnp.mean(b) + 0 * jnp.sum(jnp.where(True, 0.0, p["unseen"])),
        optax.stateless(lambda g, p: g | {"unseen": jnp.where(g["seen"] > 0, jnp.nan, 0.0)}),
    )
    start = step.init({"seen": 1.0, "unseen": 0.0})
    with pytest.raises(fgd.DivergedError, match="parameters are not finite at step 1") as caught:
        fgd.train(step, start, jnp.ones(3), num_steps=9)
    assert same(caught.value.state, start)
    state, history = fgd.train(step, start, jnp.ones(3), num_steps=9, on_divergence="continue")
    assert int(state.step) == 9
    assert np.isfinite(history["loss"]).all()
    with pytest.raises(fgd.DivergedError, match="parameters are not finite at step 9"):
        fgd.train(step, state, jnp.ones(3), num_steps=9)


# Signals

SIGNALLED = """
import os, signal, sys, warnings
import jax, jax.numpy as jnp, numpy as np, fgd

kind, at = getattr(signal, sys.argv[1]), int(sys.argv[2])
step = fgd.train_step(lambda p, b: jnp.mean((p - b) ** 2), fgd.sgd(0.1))
start, rows = step.init(0.0), np.arange(6.0)

def evaluate(state):
    if int(state.step) == at:
        os.kill(os.getpid(), kind)
    return {}

for call in range(3):
    try:
        state, history = fgd.train(
            step, start, rows, num_steps=40, evaluate=evaluate, evaluate_every=10,
            checkpoints=fgd.Checkpoints(sys.argv[3]) if len(sys.argv) > 3 else None,
        )
    except BaseException as error:
        reached, losses = int(error.state.step), error.history["loss"]
        whole, expected = fgd.fit(step, start, rows, num_steps=reached)
        assert whole.params == error.state.params and np.array_equal(losses, expected["loss"])
        print(call, type(error).__name__, reached, flush=True)
        raise
print("not stopped")
"""


def signalled(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, *map(str, arguments)], capture_output=True, text=True
    )
    return done.returncode, done.stdout.split(), done.stderr


def test_ctrl_c_in_the_last_call_stops_a_loop_of_runs():
    code, said, _ = signalled("SIGINT", 40)
    assert said == ["0", "KeyboardInterrupt", "40"]
    assert code == -signal.SIGINT


def test_sigterm_ends_the_process(tmp_path):
    code, said, errors = signalled("SIGTERM", 20)
    assert (code, said) == (143, ["0", "SystemExit", "30"])
    assert "train: ended by SIGTERM after 30 of 40 steps; the state is lost unless" in errors
    code, said, errors = signalled("SIGTERM", 20, tmp_path)
    assert (code, said) == (143, ["0", "SystemExit", "30"])
    assert f"the state is in {tmp_path}; start the same program again to go on" in errors
    assert fgd.Checkpoints(tmp_path).latest() == 30
    code, said, errors = signalled("SIGTERM", 40, tmp_path)  # in the last call
    assert (code, said) == (143, ["0", "SystemExit", "40"])


def test_a_handler_of_the_programs_own_stays():
    heard = []

    def evaluate(state):
        if int(state.step) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        state, _ = train(evaluate=evaluate)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard
    assert int(state.step) == 40


def test_a_second_ctrl_c_ends_the_wait():
    """While JAX computes in threads of its own; what it computes is not lost."""
    step = fgd.train_step(
        lambda p, b: jnp.mean(jax.lax.fori_loop(0, 400, lambda i, x: jnp.tanh(x @ p), b)),
        fgd.sgd(1e-3),
    )
    data, start = jnp.ones([400, 400]), step.init(jnp.eye(400))

    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, twice)

    def loop():
        with warnings.catch_warnings(action="ignore"):
            for _ in range(100):
                fgd.train(step, start, data, num_steps=1)

    timer.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        loop()
    timer.join()
    assert int(caught.value.state.step) in (0, 1)


# What it writes to

FULL = """
import json, resource, signal, sys
import jax, jax.numpy as jnp, numpy as np, fgd

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails, as on a full disk
limit, folder, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
step = fgd.train_step(lambda p, b: jnp.mean((p - b) ** 2), fgd.adam(0.1))
start, rows = step.init(jnp.zeros([1, 2000])), np.ones([6, 1], np.float32)

def evaluate(state):
    if int(state.step) == 20:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return {}

options = {"evaluate": evaluate, "evaluate_every": 10}
if what == "log":
    options["log"] = folder + "/log.jsonl"
else:
    options["checkpoints"] = fgd.Checkpoints(folder + "/c", every=10)
try:
    fgd.train(step, start, rows, num_steps=2000, **options)
except OSError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    reached = int(error.state.step)
    whole, _ = fgd.fit(step, start, rows, num_steps=reached)
    assert np.array_equal(whole.params, error.state.params)
    left = fgd.Checkpoints(folder + "/c").restore(start) if what != "log" else start
    whole, _ = fgd.fit(step, start, rows, num_steps=int(left.step))
    assert np.array_equal(whole.params, left.params)
    print(json.dumps([reached, int(left.step)]))
"""


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("log", 600),
        ("checkpoints", 3000),
        pytest.param("checkpoints", 0, marks=pytest.mark.slow),
        pytest.param("checkpoints", 500, marks=pytest.mark.slow),
        pytest.param("checkpoints", 9000, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk(what, limit, tmp_path):
    """By the system's limit on the size of a file: state in hand, older checkpoints whole."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(limit), str(tmp_path), what],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reached, left = json.loads(done.stdout)
    assert reached >= 20
    assert what == "log" or 10 <= left <= reached
    assert not list(tmp_path.glob("c/.*"))


def test_a_bar_in_a_closed_pipe(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        with pytest.raises(BrokenPipeError) as caught:
            train(progress=True)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    reached = int(caught.value.state.step)
    assert same(caught.value.state, fit(reached)[0])
    others: list[bool] = []  # other bars, in other threads, are not made to wait
    thread = threading.Thread(target=lambda: others.extend(map(is_free, tqdm.get_lock().locks)))
    thread.start()
    thread.join()
    assert others == [True, True]


def is_free(lock):
    free = lock.acquire(False)
    if free:
        lock.release()
    return free


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, OSError])
@pytest.mark.parametrize("where", ["log", "evaluate", "stop_when"])
def test_an_error_anywhere(where, error):
    def fails(*_):
        raise error("here")

    with pytest.raises(error, match="here") as caught:
        train(**{where: fails})
    reached = int(caught.value.state.step)
    assert reached > 0
    assert same(caught.value.state, fit(reached)[0])


def test_json_has_no_bare_nan(tmp_path):
    values = {3: np.nan, 6: np.inf, 9: -np.inf}

    def evaluate(state):
        return {"x": values.get(int(state.step), 1.5)}

    train(evaluate=evaluate, num_steps=12, log=tmp_path / "a.jsonl")

    def refuse(word):
        raise AssertionError(word)

    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    found = [x["evaluate/x"] for x in parsed if "evaluate/x" in x]
    assert found == [None, "Infinity", "-Infinity", 1.5]


def test_threads_begin_one_log(tmp_path):
    """One header, and no line within another."""
    log = tmp_path / "a.csv"
    threads = [threading.Thread(target=lambda: train(log=log, num_steps=30)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    header, *lines = log.read_text().splitlines()
    assert header == "step,name,value"
    assert sorted(int(line.split(",")[0]) for line in lines) == sorted([*range(1, 31)] * 4)
