"""Law 9: a run that ends anywhere and is started again ends bit for bit as one that never did."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from problems import Problem, examples, problems, same

import fgd

PROBLEM = Problem("mlp", "adam", True, 23, 7, True, 0)
STEP = PROBLEM.step()
START = PROBLEM.start(STEP)


class StopError(Exception):
    pass


def train(checkpoints=None, *, step=STEP, state=START, problem=PROBLEM, until=None, **options):
    """A run that is ended by an error once it has come so far."""

    def evaluate(state):
        if until is not None and int(state.step) >= until:
            raise StopError
        return {"bias": jax.tree.leaves(state.params)[0], "twice": [{"step": 2 * state.step}, None]}

    defaults = {"num_steps": 40, "evaluate": evaluate, "evaluate_every": 6}
    data = options.pop("data", problem.data)
    options = defaults | problem.run | {"checkpoints": checkpoints} | options
    return fgd.train(step, state, data, **options)


@examples(few=3, many=40)
@given(
    problem=problems(),
    every=st.integers(1, 9),
    until=st.integers(0, 20),
    record_every=st.sampled_from([1, 2]),
    keep=st.integers(1, 3),
)
def test_a_run_that_was_ended_ends_as_one_that_was_not(
    problem, every, until, record_every, keep, tmp_path_factory
):
    step = problem.step()
    every *= record_every
    run = {
        "step": step,
        "state": problem.start(step),
        "problem": problem,
        "num_steps": 20,
        "record_every": record_every,
        "evaluate_every": 4,
    }
    folder = tmp_path_factory.mktemp("run")
    checkpoints = fgd.Checkpoints(folder / "checkpoints", every=every, keep=keep)
    with pytest.raises(StopError) as caught:
        train(checkpoints, until=until, log=folder / "a.jsonl", **run)
    redone = int(caught.value.state.step) - checkpoints.latest()
    assert 0 <= redone <= every
    resumed = train(checkpoints, log=folder / "a.jsonl", **run)
    whole = train(log=folder / "b.jsonl", **run)
    assert same(resumed, whole)
    assert (folder / "a.jsonl").read_text() == (folder / "b.jsonl").read_text()
    assert len(list((folder / "checkpoints").glob("0*"))) <= keep
    again = train(checkpoints, log=folder / "a.jsonl", **run)  # a run that has ended is read
    assert same(again, whole)
    assert (folder / "a.jsonl").read_text() == (folder / "b.jsonl").read_text()
    assert same(checkpoints.restore(jax.eval_shape(lambda: run["state"])), whole[0])


@pytest.mark.parametrize("log", ["log.csv", "log.jsonl"])
def test_what_others_wrote_to_a_log_stays(log, tmp_path):
    checkpoints = fgd.Checkpoints(tmp_path / "c", every=4)
    log = tmp_path / log
    log.write_text("step,name,value\n99,old,1\n" if log.suffix == ".csv" else '{"step": 99}\n')
    with pytest.raises(StopError):
        train(checkpoints, until=6, log=log)
    killed = log.read_text()
    with log.open("a") as file:
        file.write("a note\n")
    with pytest.warns(RuntimeWarning, match="lines that this run did not write since step 4"):
        train(checkpoints, log=log)
    assert log.read_text().startswith(killed + "a note\n")


def test_tensorboard_hides_what_is_logged_again(tmp_path):
    checkpoints = fgd.Checkpoints(tmp_path / "c", every=4)
    with pytest.raises(StopError):
        train(checkpoints, until=6, log=tmp_path / "board")
    train(checkpoints, log=tmp_path / "board")
    from tensorboardX.proto.event_pb2 import SessionLog

    last = max((tmp_path / "board").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert SessionLog.START == 1  # the record that tells TensorBoard from which step to forget
    assert b"\x10\x05" in last.read_bytes()[:200]


class Rows:
    """A loader that can say where it stands, as Grain's do."""

    def __init__(self, as_bytes=False):
        self.t, self.as_bytes, self.asked = 0, as_bytes, []

    def __iter__(self):
        return self

    def __next__(self):
        self.asked.append(self.t)
        rows = np.arange(7 * self.t, 7 * self.t + 7) % 23
        self.t += 1
        return tuple(np.asarray(x)[rows] for x in PROBLEM.data)

    def get_state(self):
        return str(self.t).encode() if self.as_bytes else {"next": self.t}

    def set_state(self, state):
        self.t = int(state.decode()) if self.as_bytes else state["next"]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_stream_goes_on_where_it_stood(as_bytes, tmp_path):
    run = {"batch_size": None, "shuffle": True, "num_steps": 20, "evaluate_every": 4}
    whole = train(data=Rows(), **run)
    checkpoints = fgd.Checkpoints(tmp_path, every=5)
    with pytest.raises(StopError):
        train(checkpoints, data=Rows(), until=12, **run)
    rows = Rows(as_bytes)
    if as_bytes:
        checkpoints = fgd.Checkpoints(tmp_path / "bytes", every=5)
        with pytest.raises(StopError):
            train(checkpoints, data=Rows(as_bytes), until=12, **run)
    assert same(train(checkpoints, data=rows, **run), whole)
    assert rows.asked == list(range(10, 20))


def test_grain_goes_on_where_it_stood(tmp_path):
    grain = pytest.importorskip("grain")
    x, y = (np.asarray(a) for a in PROBLEM.data)

    def loader():
        rows = grain.MapDataset.range(23).shuffle(seed=1).repeat()
        return iter(rows.map(lambda i: (x[i], y[i])).to_iter_dataset().batch(7))

    run = {"batch_size": None, "shuffle": True, "num_steps": 20, "evaluate_every": 4}
    checkpoints = fgd.Checkpoints(tmp_path, every=5)
    with pytest.raises(StopError):
        train(checkpoints, data=loader(), until=12, **run)
    assert same(train(checkpoints, data=loader(), **run), train(data=loader(), **run))


def test_a_stream_that_can_not_be_moved(tmp_path):
    """It is refused, unless the caller brings the state and the stream that follows it."""

    def batches(first):
        rows = Rows()
        rows.t = first
        return (next(rows) for _ in range(99))

    run = {"batch_size": None, "shuffle": True, "num_steps": 20, "evaluate_every": 4}
    checkpoints = fgd.Checkpoints(tmp_path, every=5)
    with pytest.raises(StopError):
        train(checkpoints, data=batches(0), until=12, **run)
    with pytest.raises(ValueError, match=r"goes on from step 10, but the stream has no get_state"):
        train(checkpoints, data=batches(0), **run)
    state = checkpoints.restore(START)
    state, _ = train(checkpoints, state=state, data=batches(10), **run | {"num_steps": 10})
    assert same(state, train(data=batches(0), **run)[0])


def test_a_stream_of_another_program(tmp_path):
    run = {"batch_size": None, "shuffle": True, "num_steps": 20, "evaluate_every": 4}
    checkpoints = fgd.Checkpoints(tmp_path, every=5)
    with pytest.raises(StopError):
        train(checkpoints, data=Rows(), until=12, **run)
    with pytest.raises(ValueError, match="the loss, the optimizer or its constants are others"):
        train(checkpoints, data=Rows(), step=PROBLEM.step(0.01), **run)


def test_an_interrupted_run_goes_on_from_what_it_returned(tmp_path):
    """The state of Ctrl-C is on disk, too; the two parts have each their own history."""
    checkpoints = fgd.Checkpoints(tmp_path, every=10, keep=9)
    middle, first = train(checkpoints, num_steps=13)
    end, second = train(checkpoints, state=middle, num_steps=27)
    whole, history = train()
    assert same(end, whole)
    assert same(np.concatenate([first["loss"], second["loss"]]), history["loss"])
    assert second["evaluate"]["step"].tolist() == [18, 24, 30, 36, 40]
    for _ in range(2):  # read again: after the end, and from the middle of the whole run
        assert same(train(checkpoints, state=middle, num_steps=27), (end, second))
    assert same(train(checkpoints)[0], whole)


def test_a_run_that_was_stopped_stays_stopped(tmp_path):
    asked = []

    def stop_when(state, metrics):
        asked.append((int(state.step), metrics["loss"]))
        return int(state.step) >= 18

    checkpoints = fgd.Checkpoints(tmp_path, every=4)
    with pytest.raises(StopError):
        train(checkpoints, until=12, stop_when=stop_when)
    stopped = train(checkpoints, stop_when=stop_when)
    resumed, asked = asked, []
    assert same(stopped, train(stop_when=stop_when))
    assert dict(resumed) == dict(
        asked
    )  # means since the last look, though a checkpoint came between
    resumed = len(asked)
    assert same(train(checkpoints, stop_when=stop_when), stopped)
    assert len(asked) == resumed
    further, _ = train(checkpoints, state=stopped[0], num_steps=22)
    assert same(further, train()[0])


def test_the_best_stays(tmp_path):
    """Wherever it lies, besides the newest few; found again by a run that goes on."""
    values = dict(zip(range(6, 43, 6), [5.0, 3.0, 4.0, 1.0, np.nan, 2.0, 6.0], strict=True))

    def evaluate(state):
        if int(state.step) == until:
            raise StopError
        return {"score": jnp.float32(values.get(int(state.step), 9.0))}

    until = 30
    checkpoints = fgd.Checkpoints(tmp_path, every=10, keep=1, best="score")
    run = {"evaluate": evaluate, "num_steps": 42}
    with pytest.raises(StopError):
        train(checkpoints, **run)
    until = None
    train(checkpoints, **run)
    assert sorted(path.name for path in tmp_path.glob("0*")) == ["0000000024", "0000000042"]
    assert same(checkpoints.restore(START, step=24), train(num_steps=24)[0])
    greatest = fgd.Checkpoints(tmp_path / "g", every=10, keep=1, best="score", maximize=True)
    train(greatest, **run | {"num_steps": 41})
    kept = sorted(path.name for path in (tmp_path / "g").glob("0*"))
    assert kept == ["0000000006", "0000000041"] or kept == ["0000000041"]


def test_a_best_that_is_not_evaluated(tmp_path):
    checkpoints = fgd.Checkpoints(tmp_path / "a", best="accuracy")
    with pytest.raises(ValueError, match="the best 'accuracy', but nothing is evaluated"):
        train(checkpoints, evaluate=None, evaluate_every=None)
    with pytest.raises(ValueError, match=r"'accuracy', which is not among .*: there are none"):
        train(checkpoints)
    model = fgd.models.linear(3, 2)
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.1))
    with pytest.raises(ValueError, match="'accuracy', but the loss of this step has 'loss'"):
        train(checkpoints, step=step, state=step.init(model.init(0)), evaluate=PROBLEM.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": PROBLEM.step(0.01)}, "the loss, the optimizer or its constants are others"),
        ({"state": STEP.init(START.params, key=5)}, "another run's: .* step 0 in key; give each"),
        ({"batch_size": 5}, "batch_size is 5, was 7"),
        ({"shuffle": False}, "shuffle is False, was True"),
        ({"record_every": 2}, "record_every is 2, was 1"),
        ({"data": jax.tree.map(lambda x: x + 1, PROBLEM.data)}, "the data is other data"),
        ({"num_steps": 30}, "checkpoints up to step 40, beyond the end of this run at 30"),
        ({"checkpoints": "folder"}, None),
    ],
)
def test_another_run(change, message, tmp_path_factory, as_users):
    if message is None:
        with pytest.raises(TypeError, match=r"checkpoints must be fgd.Checkpoints\(directory\)"):
            train(**{"checkpoints": fgd.Checkpoints("/dev/null/never"), **change})
        return
    folder = tmp_path_factory.getbasetemp() / "one run"
    checkpoints = fgd.Checkpoints(folder, every=10)
    train(checkpoints)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        train(checkpoints, **change)
    assert sorted(folder.rglob("*")) == before
    if "strict=False" in message or "was" in message:
        with pytest.warns(RuntimeWarning, match=message):
            train(fgd.Checkpoints(folder, every=10, strict=False), **change)


def test_another_model_or_optimizer(tmp_path):
    checkpoints = fgd.Checkpoints(tmp_path, every=10)
    train(checkpoints)
    for other, message in (
        (
            PROBLEM._replace(optimizer="sgd"),
            r"of another model or optimizer: left over opt_state.mu",
        ),
        (PROBLEM._replace(model="linear"), r"of another model or optimizer: missing .*params.w"),
    ):
        step = other.step()
        with pytest.raises(ValueError, match=message):
            train(checkpoints, step=step, state=other.start(step))
        with pytest.raises(ValueError, match=r"checkpoints.restore: .* does not fit like: "):
            checkpoints.restore(other.start(step))
    bigger = PROBLEM.start(STEP)
    bigger = jax.tree.map(lambda x: x, bigger)
    wide = STEP.init(jax.tree.map(lambda x: jnp.concatenate([x, x]), START.params))
    with pytest.raises(ValueError, match=r"params.0.b is float32\[4\], expected float32\[8\]"):
        checkpoints.restore(wide)


def test_one_directory_one_run(tmp_path):
    checkpoints = fgd.Checkpoints(tmp_path, every=10)
    refused = []

    def evaluate(state):
        with pytest.raises(
            BlockingIOError, match=r"another run is using .* a directory of its own"
        ):
            train(fgd.Checkpoints(tmp_path / "." / "../" / tmp_path.name))
        with pytest.raises(BlockingIOError, match=r"checkpoints.save: another run is using"):
            checkpoints.save(state)
        refused.append(1)
        return {}

    train(checkpoints, evaluate=evaluate)
    assert refused
    train(checkpoints)


def test_save_and_restore_by_hand(tmp_path, monkeypatch):
    """Every kind of leaf; a relative path is where it was when it was given."""
    monkeypatch.chdir(tmp_path)
    checkpoints = fgd.Checkpoints("here", keep=2)
    monkeypatch.chdir("/")
    assert checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*here"):
        checkpoints.restore(START)
    odd = {
        "a/b": jnp.zeros([0, 3]), "..": jnp.ones(2, jnp.bfloat16), "é" * 200: jnp.int8(3),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 4), "none": None,
        "flags": np.array([True, False]), "one": jnp.ones([1, 1, 1]),
    }  # fmt: skip
    for step in (5, 7, 9):
        state = fgd.TrainState(odd, (), jnp.int32(step), jax.random.key(step))
        checkpoints.save(state)
        with pytest.raises(FileExistsError, match=f"has a checkpoint of step {step}"):
            checkpoints.save(state)
    assert (tmp_path / "here").is_dir()
    assert checkpoints.latest() == 9
    assert same(checkpoints.restore(jax.eval_shape(lambda: state)), state)
    assert int(checkpoints.restore(state, step=7).step) == 7
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 5"):
        checkpoints.restore(state, step=5)
    kind = state.__class__(state.params, (), state.step, jax.random.key(0, impl="rbg"))
    with pytest.raises(ValueError, match=r"key is uint32\[2\], expected uint32\[4\]"):
        checkpoints.restore(kind)
    with pytest.raises(ValueError, match="saved by hand"):
        train(checkpoints)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "Checkpoints: every must be at least 1, got 0"),
        ({"every": 2.5}, TypeError, "every must be an int, got 2.5"),
        ({"keep": 0}, ValueError, "keep must be at least 1, got 0"),
        ({"best": 3}, TypeError, "best must be the name of a metric"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
        ({"directory": 3}, TypeError, "directory must be a str or a Path, got 3"),
        ({"directory": __file__}, NotADirectoryError, "expected a directory .* is a file"),
    ],
)
def test_arguments(options, error, message, as_users):
    with pytest.raises(error, match=message):
        fgd.Checkpoints(**{"directory": "never", **options})


def test_between_two_entries_of_the_history(tmp_path):
    checkpoints = fgd.Checkpoints(tmp_path, every=10)
    with pytest.raises(ValueError, match="record_every=4 does not divide the 10 steps between two"):
        train(checkpoints, record_every=4, evaluate=None, evaluate_every=None)
    assert not list(tmp_path.iterdir())


def test_a_newer_version(tmp_path):
    checkpoints = fgd.Checkpoints(tmp_path, every=10)
    train(checkpoints)
    from fgd.checkpoint import _folder

    about = next(tmp_path.glob("*40/about.json"))
    content = json.loads(about.read_text())
    content |= {"format": 2, "fgd": "9.0"}
    del content["sha256"]
    about.write_text(json.dumps(content | {"sha256": _folder._digest(content)}))
    for call in (
        checkpoints.latest,
        lambda: checkpoints.restore(START),
        lambda: train(checkpoints),
    ):
        with pytest.raises(ValueError, match=r"was written by fgd 9.0, whose format is newer"):
            call()


def test_a_directory_that_can_not_be_written(tmp_path):
    """As another user's, for root may write anywhere."""
    if os.getuid() == 0:
        folder = Path("/proc/fgd")
    else:
        folder = tmp_path / "theirs"
        folder.mkdir(mode=0o500)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        train(fgd.Checkpoints(folder))
    assert same(caught.value.state, START)


def test_a_sharded_state(tmp_path):
    """What lies on a mesh comes back there, and elsewhere, bit for bit."""
    from jax.sharding import NamedSharding, PartitionSpec as P

    mesh = jax.make_mesh((4, 2), ("data", "model"))
    split = jax.tree.map(
        lambda x: jax.device_put(
            x, NamedSharding(mesh, P(None, "model") if np.shape(x)[1:] == (4,) else P())
        ),
        START,
    )
    run = {"batch_size": 8, "mesh": mesh, "evaluate": None, "evaluate_every": None}
    checkpoints = fgd.Checkpoints(tmp_path, every=10)
    whole = train(state=split, **run)
    train(checkpoints, state=split, **run | {"num_steps": 20})
    state, history = train(checkpoints, state=split, **run)
    assert same((state, history), whole)
    specs = jax.tree.map(lambda x: x.sharding.spec, (state.params, split.params))
    assert specs[0] == specs[1]
    assert same(checkpoints.restore(START), whole[0])
