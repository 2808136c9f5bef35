"""MNIST from each of its sources, and what is not MNIST."""

import contextlib
import functools
import gzip
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fgd
from fgd.data import _mnist

NAMES = [
    f"{part}-ubyte"
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
]
FULL = Path(os.environ.get("FGD_DATA_DIR", "/nowhere")) / "mnist"
needs_files = pytest.mark.skipif(
    not all((FULL / f"{name}.gz").exists() for name in NAMES),
    reason="the official files are not in FGD_DATA_DIR/mnist",
)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine with no MNIST anywhere, and no network."""
    monkeypatch.delenv("FGD_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    return tmp_path


def assert_full(mnist):
    for (images, labels), rows in ((mnist.train, 60_000), (mnist.test, 10_000)):
        assert (images.shape, images.dtype) == ((rows, 28, 28), np.uint8)
        assert (labels.shape, labels.dtype) == ((rows,), np.int32)
    # Facts about the set that anybody can look up: class sizes and mean gray value.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train[1]).tolist() == counts
    np.testing.assert_allclose(np.asarray(mnist.train[0]).mean() / 255, 0.1307, atol=5e-5)


def test_sample(nowhere, capsys):
    mnist = fgd.data.mnist()
    assert "4,000 + 1,000 images" in capsys.readouterr().err
    assert "NOT the full set" in mnist.source
    for (images, labels), of_each in ((mnist.train, 400), (mnist.test, 100)):
        assert (images.shape, images.dtype) == ((10 * of_each, 28, 28), np.uint8)
        assert np.bincount(labels).tolist() == [of_each] * 10
        assert np.bincount(labels[:50]).tolist() == [5] * 10  # any leading part is balanced too
    together = np.concatenate([mnist.train[0], mnist.test[0]]).reshape(5000, -1)
    assert len(np.unique(together, axis=0)) == 5000  # no digit is in both
    size = Path(_mnist.__file__).with_name("mnist_sample.npz").stat().st_size
    assert size <= 1_500_000


@needs_files
def test_sample_digits_are_mnist_with_its_labels():
    full = fgd.data.mnist("files", FULL)
    sample = fgd.data.mnist("sample")
    label_of = {
        image.tobytes(): label
        for image, label in zip(np.asarray(full.train[0]), np.asarray(full.train[1]), strict=True)
    }
    for images, labels in (sample.train, sample.test):
        assert [label_of[image.tobytes()] for image in np.asarray(images)] == labels.tolist()


@needs_files
@pytest.mark.parametrize("place", ["", "mnist"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files(nowhere, monkeypatch, capsys, place, zipped):
    home = nowhere / place
    home.mkdir(exist_ok=True)
    for name in NAMES:
        content = (FULL / f"{name}.gz").read_bytes()
        if zipped:
            (home / f"{name}.gz").write_bytes(content)
        else:
            (home / name).write_bytes(gzip.decompress(content))
    monkeypatch.setenv("FGD_DATA_DIR", str(nowhere))
    mnist = fgd.data.mnist()
    assert_full(mnist)
    assert f"60,000 + 10,000 images from files in {nowhere}" in capsys.readouterr().err
    assert fgd.data.mnist("files", nowhere).source == mnist.source


@needs_files
def test_wrong_files(nowhere):
    for name in NAMES:
        shutil.copy(FULL / f"{name}.gz", nowhere)
    images, labels = (nowhere / f"{name}.gz" for name in NAMES[:2])
    whole = images.read_bytes()
    for content, error, message in (
        (whole[:-1000], ValueError, "truncated or not gzip"),
        (labels.read_bytes(), ValueError, "is not the official train-images-idx3-ubyte"),
        (gzip.compress(gzip.decompress(whole)[:-1] + b"\x01", 1), ValueError, "has SHA-256"),
        (b"", ValueError, "is not the official"),
        (None, FileNotFoundError, f"lacks {NAMES[0]}, gzipped or not"),
    ):
        images.unlink(missing_ok=True)
        if content is not None:
            images.write_bytes(content)
        for source in ("files", "auto"):  # "auto" does not pass over broken files
            with pytest.raises(error, match=message):
                fgd.data.mnist(source, nowhere)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(directory):
    handler = functools.partial(Quiet, directory=directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@needs_files
@pytest.mark.filterwarnings("ignore")  # tensorflow-datasets'
def test_download_is_kept_and_works_without_network(tmp_path):
    with served(FULL) as url:
        train, test, source = _mnist._download(tmp_path, url)
    assert (train[0].shape, test[0].shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert url in source
    again, _, _ = _mnist._download(tmp_path, url)  # the server is gone
    np.testing.assert_array_equal(train[1], again[1])
    assert "tensorflow" not in sys.modules


@pytest.mark.filterwarnings("ignore")
def test_download_checks_the_checksum(tmp_path):
    (tmp_path / "served").mkdir()
    for name in NAMES:
        (tmp_path / "served" / f"{name}.gz").write_bytes(gzip.compress(b"not MNIST"))
    with served(tmp_path / "served") as url, pytest.raises(ValueError, match="hecksum"):
        _mnist._download(tmp_path / "kept", url)


def test_without_network_a_download_fails_at_once(nowhere):
    """In a process of its own, which is killed if TFDS should start to retry."""
    code = "import fgd; fgd.data.mnist('download')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ConnectionError: mnist: https://" in done.stderr
    assert "can't be reached" in done.stderr


@pytest.mark.slow
@needs_files
@pytest.mark.filterwarnings("ignore")
def test_prepared_tfds_copy(nowhere, monkeypatch):
    """A copy as TFDS prepares it, made here without TensorFlow; and one that is not whole."""
    full = fgd.data.mnist("files", FULL)
    assert_full(full)
    home = nowhere / "tfds"
    prepare(home, full.train, full.test)
    mnist = fgd.data.mnist()
    assert mnist.source == f"TFDS, {home / 'mnist' / '3.0.1'}"
    assert_full(mnist)
    for ours, theirs in ((full.train, mnist.train), (full.test, mnist.test)):
        assert pairs(ours) == pairs(theirs)

    shutil.rmtree(home)
    prepare(home, full.test, full.test)
    with pytest.raises(ValueError, match="it holds 10,000 rows for train, expected 60,000"):
        fgd.data.mnist("tfds")


def pairs(split):
    images, labels = map(np.asarray, split)
    return sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))


def prepare(home, train, test):
    import io

    import tensorflow_datasets as tfds
    from PIL import Image

    # TFDS has a builder of this name.
    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")
        name = "mnist"

        def _info(self):
            image = tfds.features.Image(shape=(28, 28, 1))
            label = tfds.features.ClassLabel(num_classes=10)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {
                "train": self._generate_examples(train),
                "test": self._generate_examples(test),
            }

        def _generate_examples(self, split):
            for i, (image, label) in enumerate(zip(*map(np.asarray, split), strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG", compress_level=1)
                png.seek(0)
                yield i, {"image": png, "label": int(label)}

    Mnist(data_dir=home, file_format="array_record").download_and_prepare()


@pytest.mark.usefixtures("as_users")
def test_bad_demands(nowhere):
    with pytest.raises(ValueError, match="source must be one of 'auto', 'tfds', 'files'"):
        fgd.data.mnist("web")
    with pytest.raises(FileNotFoundError, match="no TFDS copy prepared as array_record"):
        fgd.data.mnist("tfds")
    with pytest.raises(FileNotFoundError, match="FGD_DATA_DIR is not set"):
        fgd.data.mnist("files")
    with pytest.raises(
        FileNotFoundError, match=r"nothing.*lacks train-images-idx3-ubyte, train-la"
    ):
        fgd.data.mnist(data_dir=nowhere / "nothing")  # a place that was named is the only one
