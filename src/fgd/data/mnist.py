"""Real handwritten digits, from wherever they can be had, without TensorFlow."""

import gzip
import hashlib
import json
import os
import sys
import urllib.request
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Split = tuple[jax.Array, jax.Array]
Arrays = tuple[np.ndarray, np.ndarray]
Loaded = tuple[Arrays, Arrays, str]

_FULL = {"train": 60_000, "test": 10_000}
_SAMPLE = {"train": 4_000, "test": 1_000}

# The official files: name, SHA-256 of their uncompressed content.
_FILES = {
    "train": (
        ("train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
}  # fmt: skip


class MNIST(NamedTuple):
    """MNIST, on the device.

    Attributes:
      train, test: (images uint8 [rows, 28, 28], labels int32 [rows]).
      source: where they came from, one line.
    """

    train: Split
    test: Split
    source: str


def mnist(source: str = "auto", data_dir: str | os.PathLike[str] | None = None) -> MNIST:
    """The MNIST digits (LeCun, Cortes and Burges 1998), 60,000 for training and 10,000 for tests.

    Args:
      source: where to take them from. "auto" is the first of these that is there:
        "tfds", a copy that tensorflow-datasets prepared (as array_record), in `data_dir` or TFDS's
        own directory;
        "files", the four IDX files, gzipped or not, in `data_dir` or `$FGD_DATA_DIR`, or `mnist/`
        in it;
        "download", those files as tensorflow-datasets downloads and keeps them;
        "sample", 5,000 real digits that come with fgd, 4,000 and 1,000: enough to learn with, too
        few to report a number on.
      data_dir: a directory to look in; given one, "auto" looks nowhere else.

    Returns:
      The digits; what was used is also said on standard error.

    Raises:
      ValueError: an unknown source, or files that are not MNIST (checksum, shape, labels).
      OSError: what was demanded is not there (FileNotFoundError) or can't be downloaded
        (ConnectionError, after seconds).

    Example:
      >>> import fgd
      >>> digits = fgd.data.mnist("sample")
      >>> digits.train[0].shape, digits.test[1].shape
      ((4000, 28, 28), (1000,))
    """
    if source not in ("auto", *_SOURCES):
        known = ", ".join(map(repr, ("auto", *_SOURCES)))
        raise ValueError(f"mnist: source must be one of {known}; got {source!r}")
    directory = None if data_dir is None else Path(data_dir)
    if source != "auto":
        train, test, where = _SOURCES[source](directory)
    else:
        train, test, where = _first(directory)
    print(f"MNIST: {len(train[0]):,} + {len(test[0]):,} images from {where}", file=sys.stderr)
    return MNIST(_on_device(train), _on_device(test), where)


def _first(directory: Path | None) -> Loaded:
    sources = ["tfds", "files"] if directory else list(_SOURCES)
    tried = []
    for name in sources:
        try:
            return _SOURCES[name](directory)
        except (FileNotFoundError, ConnectionError) as error:
            if getattr(error, "partial", False):
                raise
            tried.append(str(error))
    raise FileNotFoundError("; ".join(tried))


def _from_tfds(directory: Path | None) -> Loaded:
    home = directory or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    prepared = [
        info.parent
        for info in sorted(home.glob("mnist/*/dataset_info.json"))
        if json.loads(info.read_text()).get("fileFormat") == "array_record"
    ]
    if not prepared:
        raise FileNotFoundError(f"mnist: no TFDS copy prepared as array_record in {home}")
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepared[-1])

    def split(name: str) -> Arrays:
        rows = list(builder.as_data_source(name))
        images = np.array([row["image"] for row in rows], np.uint8).reshape(-1, 28, 28)
        return images, np.array([row["label"] for row in rows], np.int32)

    return *_checked(split("train"), split("test"), _FULL, prepared[-1]), f"TFDS, {prepared[-1]}"


def _from_files(directory: Path | None) -> Loaded:
    if directory is None:
        if "FGD_DATA_DIR" not in os.environ:
            raise FileNotFoundError("mnist: no data_dir given and FGD_DATA_DIR is not set")
        directory = Path(os.environ["FGD_DATA_DIR"])
    names = [name for split in _FILES.values() for name, _ in split]
    paths = {}
    for name in names:
        places = [d / n for d in (directory, directory / "mnist") for n in (name, f"{name}.gz")]
        paths[name] = next((path for path in places if path.is_file()), None)
    if missing := [name for name, path in paths.items() if path is None]:
        error = FileNotFoundError(
            f"mnist: {directory} (and mnist/ in it) lacks {', '.join(missing)}, gzipped or not"
        )
        error.partial = len(missing) < len(names)  # type: ignore[attr-defined]
        raise error
    return *_parse({name: path for name, path in paths.items() if path}), f"files in {directory}"


def _download(directory: Path | None, base_url: str | None = None) -> Loaded:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification.mnist import MNIST as builder

    home = directory or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    downloads, base_url = home / "downloads", base_url or builder.URL
    infos = {info.filename: info for info in builder.url_infos.values()}
    urls = {name.removesuffix(".gz"): base_url + name for name in infos}
    if not all(any(downloads.glob(f"mnist/*{name}*.gz")) for name in urls):
        _require_network(next(iter(urls.values())))
    manager = tfds.download.DownloadManager(
        download_dir=downloads,
        url_infos={base_url + name: info for name, info in infos.items()},
        dataset_name="mnist",
        force_checksums_validation=True,
    )
    paths = {name: Path(path) for name, path in manager.download(urls).items()}
    return *_parse(paths), f"{base_url}, kept in {downloads}"


def _require_network(url: str) -> None:
    """Asks for one file's header: without a network TFDS would retry for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
    except OSError as error:
        raise ConnectionError(f"mnist: {url} can't be reached ({error})") from error


def _from_sample(directory: Path | None) -> Loaded:
    del directory
    with resources.files("fgd.data").joinpath("mnist_sample.npz").open("rb") as file:
        sample = dict(np.load(file))
    train = sample["train_images"], sample["train_labels"]
    test = sample["test_images"], sample["test_labels"]
    where = "the sample that comes with fgd, NOT the full set"
    return *_checked(train, test, _SAMPLE, where), where


_SOURCES: dict[str, Callable[[Path | None], Loaded]] = {
    "tfds": _from_tfds,
    "files": _from_files,
    "download": _download,
    "sample": _from_sample,
}


def _parse(paths: dict[str, Path]) -> tuple[Arrays, Arrays]:
    def content(name: str, checksum: str) -> bytes:
        path = paths[name]
        data = path.read_bytes()
        try:
            data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"mnist: {path} is truncated or not gzip ({error})") from error
        found = hashlib.sha256(data).hexdigest()
        if found != checksum:
            raise ValueError(
                f"mnist: {path} is not the official {name}: its content has SHA-256 {found}, "
                f"expected {checksum}; fetch it again"
            )
        return data

    def split(which: str) -> Arrays:
        images, labels = (content(name, checksum) for name, checksum in _FILES[which])
        return (
            np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
            np.frombuffer(labels, np.uint8, offset=8),
        )

    return _checked(split("train"), split("test"), _FULL, "the official files")


def _checked(
    train: Arrays, test: Arrays, expected: dict[str, int], where: object
) -> tuple[Arrays, Arrays]:
    for name, (images, labels) in (("train", train), ("test", test)):
        rows = expected[name]
        if images.shape != (rows, 28, 28) or labels.shape != (rows,) or labels.max() > 9:
            raise ValueError(
                f"mnist: {where} holds images {images.shape} and labels {labels.shape} for {name}, "
                f"expected ({rows}, 28, 28) and ({rows},) from 0 to 9"
            )
    return train, test


def _on_device(split: Arrays) -> Split:
    images, labels = split
    return jnp.asarray(images), jnp.asarray(labels, jnp.int32)
