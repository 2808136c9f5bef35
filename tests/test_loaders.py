"""Others' loaders as streams: nothing is lost and nothing repeated, over epochs and a resume."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import fgd

ROWS = 24
X = np.arange(ROWS, dtype=np.float32)[:, None]
STEP = fgd.train_step(
    lambda w, batch: (jnp.mean((w - batch["x"]) ** 2), {"sum": jnp.sum(batch["x"])}), fgd.sgd(0.1)
)
START = STEP.init(0.0)


class Rows:
    """What torch calls a map-style dataset."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return {"x": X[i]}


def torch_loader(workers, shuffle):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(Rows(), 4, shuffle=shuffle, num_workers=workers)


def stateful_loader(workers, shuffle):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stateful = pytest.importorskip("torchdata.stateful_dataloader")
        torch = pytest.importorskip("torch")
        return stateful.StatefulDataLoader(
            Rows(),
            4,
            shuffle=shuffle,
            num_workers=workers,
            generator=torch.Generator().manual_seed(0),
        )


def hugging_face(workers, shuffle):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": X.tolist()}).to_iterable_dataset(num_shards=2)
    if shuffle:
        rows = rows.shuffle(seed=0, buffer_size=5)
    return (
        rows.batch(4)
        .map(lambda batch: {"x": np.asarray(batch["x"], np.float32)})
        .with_format("numpy")
    )


def grain_loader(workers, shuffle):
    grain = pytest.importorskip("grain")
    rows = grain.MapDataset.range(ROWS)
    rows = (rows.shuffle(seed=1) if shuffle else rows).repeat()
    return rows.map(lambda i: {"x": X[i]}).to_iter_dataset().batch(4)


def grain_epoch(workers, shuffle):
    """One that ends after an epoch."""
    grain = pytest.importorskip("grain")
    rows = grain.MapDataset.range(ROWS)
    rows = rows.shuffle(seed=1) if shuffle else rows
    return rows.map(lambda i: {"x": X[i]}).to_iter_dataset().batch(4)


def sums(history):
    return np.sort(np.asarray(history["sum"]).reshape(-1, 6), axis=None)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "loader",
    [torch_loader, stateful_loader, hugging_face, grain_loader, grain_epoch],
    ids=lambda x: x.__name__,
)
def test_epochs(loader, shuffle):
    """Every epoch sees every row once."""
    _, history = fgd.train(STEP, START, loader(0, shuffle), num_steps=18)
    totals = np.asarray(history["sum"]).reshape(3, 6).sum(axis=1)
    np.testing.assert_array_equal(totals, [X.sum()] * 3)


@pytest.mark.parametrize(
    ("loader", "workers", "shuffle"),
    [
        (stateful_loader, 0, False),
        (stateful_loader, 0, True),
        pytest.param(stateful_loader, 2, True, marks=pytest.mark.slow),
        (hugging_face, 0, False),
        (hugging_face, 0, True),
        (grain_loader, 0, True),
        (grain_epoch, 0, True),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
@pytest.mark.filterwarnings("ignore:.*set_vital|.*fork")
def test_resumed(loader, workers, shuffle, tmp_path):
    """Ended in the second epoch, a run goes on with the batch that comes next.

    torchdata keeps how an epoch is shuffled, not how the next one will be.
    """
    steps = 12 if loader is stateful_loader else 18
    _, whole = fgd.train(STEP, START, loader(workers, shuffle), num_steps=steps)
    checkpoints = fgd.Checkpoints(tmp_path, every=2)

    def end(state, metrics):
        if state.step >= 9:
            raise RuntimeError("ended")

    with pytest.raises(RuntimeError, match="ended"):
        fgd.train(
            STEP,
            START,
            loader(workers, shuffle),
            num_steps=steps,
            checkpoints=checkpoints,
            stop_when=end,
            evaluate_every=3,
        )
    assert checkpoints.latest() == 8
    _, resumed = fgd.train(
        STEP, START, loader(workers, shuffle), num_steps=steps, checkpoints=checkpoints
    )
    np.testing.assert_array_equal(resumed["sum"], whole["sum"])
    np.testing.assert_array_equal(resumed["loss"], whole["loss"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork")
def test_torch_workers():
    _, history = fgd.train(STEP, START, torch_loader(2, False), num_steps=12)
    expected = X.reshape(6, 4).sum(axis=1)
    np.testing.assert_array_equal(history["sum"], np.tile(expected, 2))


def test_a_place_that_json_does_not_know(tmp_path):
    """Bytes, tuples, arrays, words that are not words: given back as they were."""

    class Loader:
        place = None

        def __iter__(self):
            while True:
                yield {"x": X[:4]}

        def state_dict(self):
            return {
                "bytes": b"\0\1",
                7: (1, [None, 2.5, float("inf")]),
                "array": np.arange(3)[::-1],
                "of": {"is": "a trap"},
            }

        def load_state_dict(self, place):
            self.place = place

    options = {"num_steps": 4, "checkpoints": fgd.Checkpoints(tmp_path, every=2)}
    fgd.train(STEP, START, Loader(), **options)
    again = Loader()
    fgd.train(STEP, START, again, **{**options, "num_steps": 6})
    expected = again.state_dict()
    np.testing.assert_array_equal(again.place.pop("array"), expected.pop("array"))
    assert again.place == expected

    class Strange(Loader):
        def state_dict(self):
            return {"lock": object()}

    with pytest.raises(TypeError, match="where the stream stands can't be kept in a checkpoint"):
        fgd.train(
            STEP,
            START,
            Strange(),
            num_steps=2,
            checkpoints=fgd.Checkpoints(tmp_path / "b", every=2),
        )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "loader", [stateful_loader, hugging_face, grain_epoch], ids=lambda x: x.__name__
)
@pytest.mark.filterwarnings("ignore:.*set_vital")
def test_resumed_at_the_end_of_an_epoch(loader, shuffle, tmp_path):
    """Where the epoch that is under way has no batch left."""
    checkpoints = fgd.Checkpoints(tmp_path, every=6)
    fgd.train(STEP, START, loader(0, shuffle), num_steps=6, checkpoints=checkpoints)
    _, history = fgd.train(STEP, START, loader(0, shuffle), num_steps=12, checkpoints=checkpoints)
    totals = np.asarray(history["sum"]).reshape(2, 6).sum(axis=1)
    np.testing.assert_array_equal(totals, [X.sum()] * 2)


def test_a_loader_is_begun_once_an_epoch():
    """To begin is not free: torch's starts its workers."""

    class Loader:
        begun = 0

        def __iter__(self):
            self.begun += 1
            return ({"x": row} for row in X.reshape(6, 4, 1))

    loader = Loader()
    fgd.train(STEP, START, loader, num_steps=12)
    assert loader.begun == 2


def test_an_empty_loader_is_no_endless_one():
    class Empty:
        def __iter__(self):
            return iter([])

    with pytest.raises(ValueError, match="the stream ended after 0 of 2 steps"):
        fgd.train(STEP, START, Empty(), num_steps=2)
