"""train beyond fit: streams, logs, early stops and interrupts, none of which changes the run."""

import csv
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import Problem, same

import fgd

PROBLEM = Problem("mlp", "adam", True, 23, 7, False, 0)
STEP = PROBLEM.step()
START = PROBLEM.start(STEP)


def batches(number=10**9):
    """The batches of an unshuffled fit, in NumPy, through one buffer that is used again."""
    data = [np.asarray(x) for x in PROBLEM.data]
    buffer = [np.empty((7, *x.shape[1:]), x.dtype) for x in data]
    for t in range(number):
        for x, out in zip(data, buffer, strict=True):
            np.take(x, np.arange(7 * t, 7 * t + 7) % 23, axis=0, out=out)
        yield tuple(buffer)


def fit(num_steps, state=START, **options):
    return fgd.fit(STEP, state, PROBLEM.data, num_steps=num_steps, **PROBLEM.run, **options)


class Loader:
    """Neither an iterator nor a pytree: what loaders are."""

    def __iter__(self):
        return batches(12)


@pytest.mark.parametrize("stream", [batches, Loader, lambda: map(list, batches())])
@pytest.mark.parametrize("watched", [{}, {"evaluate": lambda state: {}, "evaluate_every": 3}])
def test_a_stream_of_fits_batches_is_fit(stream, watched):
    def loss(params, batch, key):
        return PROBLEM.loss(params, tuple(batch), key)

    step = fgd.train_step(loss, fgd.adam(0.02))
    state, history = fgd.train(step, START, stream(), num_steps=12, **watched)
    history.pop("evaluate", None)
    assert same((state, history), fit(12))


def test_a_stream_goes_on_where_it_was_left(compiled):
    """It is asked for the batches of the run and no more; the second half compiles nothing."""
    stream = batches()
    middle, begun = fgd.train(STEP, START, stream, num_steps=5)
    before = compiled()
    end, ended = fgd.train(STEP, middle, stream, num_steps=7)
    assert compiled() == before
    whole, history = fit(12)
    assert same(whole, end)
    np.testing.assert_array_equal(np.concatenate([begun["loss"], ended["loss"]]), history["loss"])
    state, coarse = fgd.train(STEP, START, batches(), num_steps=12, record_every=4)
    assert same(state, whole)
    np.testing.assert_allclose(
        coarse["loss"], np.asarray(history["loss"]).reshape(3, 4).mean(1), rtol=1e-6
    )


def test_a_grain_loader_resumes():
    grain = pytest.importorskip("grain")
    x, y = (np.asarray(a) for a in PROBLEM.data)

    def loader():
        rows = grain.MapDataset.range(23).shuffle(seed=1).repeat()
        return iter(rows.map(lambda i: (x[i], y[i])).to_iter_dataset().batch(7))

    stream = loader()
    middle, _ = fgd.train(STEP, START, stream, num_steps=4)
    saved = stream.get_state()
    end, _ = fgd.train(STEP, middle, stream, num_steps=6)
    again = loader()
    again.set_state(saved)
    assert same(end, fgd.train(STEP, middle, again, num_steps=6)[0])
    assert same(end, fgd.train(STEP, START, loader(), num_steps=10)[0])


def test_an_exhausted_stream_loses_nothing():
    with pytest.raises(ValueError, match="the stream ended after 5 of 9 steps") as caught:
        fgd.train(STEP, START, batches(5), num_steps=9)
    assert same((caught.value.state, caught.value.history), fit(5))
    with pytest.raises(ValueError, match="ended after 0 of 9 steps") as caught:
        fgd.train(STEP, START, iter([]), num_steps=9)
    assert same(caught.value.state, START)


def broken(at, error):
    for t, (x, y) in enumerate(batches()):
        if t == at:
            yield error() if callable(error) else error
        yield x, y


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            (np.ones([6, 3]), np.ones([6, 2])),
            r"after 4 steps .* batch\[0\] is f.*\[6,3\], expected",
        ),
        ((np.ones([7, 3]),), r"after 4 steps of the stream, .* batch\[1\] is missing"),
    ],
)
def test_a_stream_that_changes(bad, message):
    with pytest.raises(ValueError, match=message) as caught:
        fgd.train(STEP, START, broken(4, bad), num_steps=9)
    assert same((caught.value.state, caught.value.history), fit(4))


def test_an_error_of_the_stream_is_its_own():
    def fail():
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        fgd.train(STEP, START, broken(4, fail), num_steps=9)
    assert same(caught.value.state, fit(4)[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": list(batches(3))}, TypeError, r"a list of 3 tuples.*iter\(\) of a list"),
        ({"batch_size": 7}, ValueError, "batch_size=7 is for arrays, but data is a stream"),
        (
            {"num_steps": None, "num_epochs": 1},
            ValueError,
            "num_epochs=1 is for arrays, but data is a stream",
        ),
        ({"evaluate": lambda state: {}}, ValueError, "has no epochs; give evaluate_every"),
        ({"stop_when": lambda *_: True}, ValueError, "has no epochs; give evaluate_every"),
        ({"log": "history.txt"}, ValueError, r"'history.txt' must end in .jsonl or .csv"),
        ({"log": 3}, TypeError, "log must be a path, a function"),
    ],
)
def test_bad_streams_and_logs(change, error, message, as_users, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        fgd.train(STEP, START, **({"data": batches(), "num_steps": 3} | change))
    assert not list(tmp_path.iterdir())


def test_stop_when():
    """It sees the means since it was last asked and the evaluation, and ends the run there."""
    asked = []

    def stop_when(state, metrics):
        asked.append((int(state.step), metrics))
        return int(state.step) >= 6

    def evaluate(state):
        return {"bias": state.params[0]["b"][0]}

    state, history = fgd.train(
        STEP,
        START,
        PROBLEM.data,
        num_steps=30,
        evaluate=evaluate,
        stop_when=stop_when,
        **PROBLEM.run,
    )
    whole, expected = fit(6)
    assert same(state, whole)
    np.testing.assert_array_equal(history["loss"], expected["loss"])
    assert history["evaluate"]["step"].tolist() == [3, 6]
    assert [step for step, _ in asked] == [3, 6]
    means = np.asarray(expected["loss"]).reshape(2, 3).mean(axis=1)
    np.testing.assert_allclose([m["loss"] for _, m in asked], means, rtol=1e-6)
    assert asked[1][1]["evaluate"]["bias"] == whole.params[0]["b"][0]


def test_logs(tmp_path):
    """Every entry of the history and every evaluation, in each format; a second run adds to it."""

    def evaluate(state):
        return {"bias": state.params[0]["b"][0], "table": state.params[0]["w"]}

    seen = {}
    logs = tmp_path / "new" / "log.jsonl", tmp_path / "log.csv", tmp_path / "board"
    for log in (*logs, lambda step, values: seen.setdefault(step, {}).update(values)):
        state, history = START, []
        for _ in range(2):
            state, part = fgd.train(
                STEP,
                state,
                PROBLEM.data,
                num_steps=6,
                record_every=2,
                evaluate=evaluate,
                evaluate_every=4,
                log=log,
                **PROBLEM.run,
            )
            history.append(part)
    losses = np.concatenate([part["loss"] for part in history])
    biases = np.concatenate([part["evaluate"]["bias"] for part in history])
    expected = {(2 * i + 2, "loss"): x for i, x in enumerate(losses)}
    expected |= dict(zip([(s, "evaluate/bias") for s in (4, 6, 8, 12)], biases, strict=True))

    assert {(s, name): v for s, values in seen.items() for name, v in values.items()} == expected
    lines = [json.loads(line) for line in logs[0].read_text().splitlines()]
    by_line = {(x["step"], k): v for x in lines for k, v in x.items() if k != "step"}
    assert by_line == pytest.approx(expected)
    with logs[1].open(newline="") as file:
        rows = {(int(r["step"]), r["name"]): float(r["value"]) for r in csv.DictReader(file)}
    assert rows == pytest.approx(expected)
    board = b"".join(path.read_bytes() for path in logs[2].iterdir())
    assert board.count(b"evaluate/bias") == 4
    assert board.count(b"loss") == 6
    (tmp_path / "other.csv").write_text("name,age\n")
    with pytest.raises(ValueError, match=r"begins with 'name,age'.*is it another file"):
        fgd.train(STEP, START, PROBLEM.data, num_steps=1, log=tmp_path / "other.csv")


INTERRUPTED = """
import os, signal, sys, warnings
import jax, jax.numpy as jnp, numpy as np, fgd

def evaluate(state):
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    seen.append(state)
    return {"p": state.params}

def stream():
    for t in range(10**9):
        if t == 33:
            os.kill(os.getpid(), signal.SIGINT)
        yield rows

seen, rows = [], np.arange(6.0)
step = fgd.train_step(lambda p, b: jnp.mean((p - b) ** 2), fgd.sgd(0.1))
start = step.init(0.0)
handler = signal.getsignal(signal.SIGINT)
for data, options in ((rows, {"evaluate_every": 10, "evaluate": evaluate}), (stream(), {})):
    with warnings.catch_warnings(record=True) as caught:
        state, history = fgd.train(step, start, data, num_steps=10**6, **options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(caught) == 1 and caught[0].category is RuntimeWarning
    n = len(history["loss"])
    whole, losses = fgd.fit(step, start, rows, num_steps=n)
    assert int(state.step) == n and whole.params == state.params
    assert np.array_equal(losses["loss"], history["loss"])
    print(n, caught[0].message)
"""


def test_interrupts_lose_nothing():
    """A real signal in a real process: the run ends after the chunk, with what it reached."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert numbers[0] == 40
    assert numbers[1] >= 34
    assert done.stdout.splitlines() == [
        f"{n} train: interrupted after {n} of 1000000 steps; train again from the returned state "
        "to go on"
        for n in numbers
    ]


def test_a_second_interrupt_is_at_once():
    def evaluate(state):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        fgd.train(STEP, START, PROBLEM.data, num_steps=9, evaluate=evaluate, **PROBLEM.run)
    assert same(caught.value.state, fit(3)[0])
    assert signal.getsignal(signal.SIGINT) is before


def test_train_holds_one_state_beside_the_callers():
    """The state before a call is freed when the next is there, and what others hold stays."""
    step = fgd.train_step(lambda p, b: jnp.mean((p - b) ** 2), fgd.sgd(0.1))
    start = step.init(jnp.zeros([1, 100_000]))
    data, peaks = np.ones([1, 1], np.float32), []

    def evaluate(state):
        held = [x for x in jax.live_arrays() if x.shape == (1, 100_000)]
        peaks.append(len(held))
        return {}

    fgd.train(step, start, data, num_steps=6, evaluate=evaluate, evaluate_every=1)
    assert peaks == [2] * 6
    assert not start.params.is_deleted()


@pytest.mark.parametrize("log", [None, lambda step, values: None])
def test_evaluations_off_the_records(log):
    """A run that begins between two records: it ends, or it is refused before it begins."""
    state, _ = fit(1)
    trained, history = fgd.train(
        STEP, state, PROBLEM.data, num_steps=8, record_every=2, log=log, **PROBLEM.run
    )
    assert same(trained, fit(9)[0])
    assert history["loss"].shape == (4,)
    options = {"record_every": 4, "evaluate_every": 12, "evaluate": lambda state: {}}
    with pytest.raises(ValueError, match=r"record_every=4 does not divide .* the 1 steps before"):
        fgd.train(STEP, state, PROBLEM.data, num_steps=12, **options, **PROBLEM.run)


def no_disk():
    raise OSError("no disk")


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda: {"x": jnp.ones(3)}, ValueError, r"every time; value\['x'\] is float32\[3\]"),
        (
            lambda: {"y": jnp.ones(2)},
            ValueError,
            r"same shapes every time; value\['x'\] is missing",
        ),
        (lambda: {"x": "good"}, TypeError, "evaluate returned 'good', expected arrays of numbers"),
        (no_disk, OSError, "no disk"),
    ],
)
def test_a_bad_evaluation_loses_nothing(bad, error, message):
    calls = []

    def evaluate(state):
        calls.append(1)
        return {"x": jnp.ones(2)} if len(calls) == 1 else bad()

    with pytest.raises(error, match=message) as caught:
        fgd.train(STEP, START, PROBLEM.data, num_steps=9, evaluate=evaluate, **PROBLEM.run)
    assert same(caught.value.state, fit(6)[0])
    np.testing.assert_array_equal(caught.value.history["loss"], fit(6)[1]["loss"])


def test_no_steps_are_watched_too():
    seen = []

    def stop_when(state, metrics):
        seen.append(metrics)

    state, history = fgd.train(
        STEP, START, PROBLEM.data, num_steps=0, stop_when=stop_when, **PROBLEM.run
    )
    assert same(state, START)
    assert history["loss"].shape == (0,)
    assert np.isnan(seen[0]["loss"])


def test_train_is_not_for_traced_data(as_users):
    def run(data):
        return fgd.train(STEP, START, data, num_steps=1, **PROBLEM.run)[1]["loss"]

    with pytest.raises(TypeError, match="inside jit, vmap or grad, use fit"):
        jax.vmap(run)(jax.tree.map(lambda x: x[None], PROBLEM.data))


def test_batches_of_torch_tensors():
    torch = pytest.importorskip("torch")
    stream = (tuple(map(torch.tensor, batch)) for batch in batches())
    assert same(fgd.train(STEP, START, stream, num_steps=4), fit(4))


def test_evaluation_is_compiled_beside_the_first_call(compiled):
    """Once; and rows that don't fit are told before anything is compiled."""
    model = fgd.models.linear(3, 1)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.1))
    start = step.init(model.init(0))
    rows = jnp.ones((6, 3)), jnp.ones((6, 1))
    unfit = jnp.ones((6, 2)), rows[1]
    before = compiled()
    with pytest.raises(ValueError, match="apply: x has shape"):
        fgd.train(step, start, rows, num_steps=4, evaluate=unfit)
    assert compiled() == before
    state, history = fgd.train(step, start, rows, num_steps=4, evaluate=rows)
    programs = compiled()
    exact = fgd.evaluate(step.loss_fn, state, rows)
    assert compiled() == programs  # what train compiled is what evaluate calls
    np.testing.assert_array_equal(history["evaluate"]["loss"][-1], exact["loss"])
