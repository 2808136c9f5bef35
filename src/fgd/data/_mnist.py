"""Real handwritten digits, from wherever they can be had, without TensorFlow."""

import io
import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fgd import _files
from fgd._files import as_path
from fgd.data._idx import FULL, Arrays, Loaded, checked, parse_idx, read_idx, verified

Split = tuple[jax.Array, jax.Array]
SAMPLE = {"train": 4_000, "test": 1_000}
_SAMPLE_SIZE = 830_666
_SAMPLE_SHA256 = "e63a7b3d1be0ba02d90073624ab9c035e58d090139fefc2a69d83a9a7337907f"


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
      ValueError: an unknown source, or files that are not MNIST: directories or pipes, of another
        length or checksum, damaged. Little more is read of them than MNIST has.
      OSError: what was demanded is not there (FileNotFoundError) or can't be downloaded
        (ConnectionError; without a network within seconds).

    Example:
      >>> import fgd
      >>> digits = fgd.data.mnist("sample")
      >>> digits.train[0].shape, digits.test[1].shape
      ((4000, 28, 28), (1000,))
    """
    if source not in ("auto", *_SOURCES):
        known = ", ".join(map(repr, ("auto", *_SOURCES)))
        raise ValueError(f"mnist: source must be one of {known}; got {source!r}")
    directory = None if data_dir is None else as_path("mnist", data_dir, "data_dir")
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
    home = directory or _tfds_home()
    prepared = [
        info.parent
        for info in sorted(home.glob("mnist/*/dataset_info.json"))
        if _description(info).get("fileFormat") == "array_record"
    ]
    if not prepared:
        raise FileNotFoundError(f"mnist: no TFDS copy prepared as array_record in {home}")
    return *read_tfds(prepared[-1], FULL), f"TFDS, {prepared[-1]}"


def read_tfds(folder: Path, expected: dict[str, int]) -> tuple[Arrays, Arrays]:
    """What TFDS wrote as array_record."""
    import tensorflow_datasets as tfds

    for path in (*folder.glob("features.json"), *folder.glob("mnist-*")):
        if _files.regular("mnist", path).stat().st_size > 2**26:  # all of them have 21 MB
            raise ValueError(f"mnist: {path} is no part of MNIST: it is far too large")

    def split(name: str) -> Arrays:
        rows, n = builder.as_data_source(name), expected[name]
        if len(rows) != n:
            raise ValueError(f"it holds {len(rows):,} rows for {name}, expected {n:,}")
        images, labels = np.empty((n, 28, 28), np.uint8), np.empty(n, np.int32)
        for i, row in enumerate(rows):
            images[i], labels[i] = row["image"].reshape(28, 28), row["label"]
        return images, labels

    try:
        builder: Any = tfds.builder_from_directory(folder)
        shape = builder.info.features["image"].shape  # TFDS makes arrays of it, however large
        if shape != (28, 28, 1):
            raise ValueError(f"its images have the shape {shape}, expected (28, 28, 1)")
        train, test = split("train"), split("test")
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, by TFDS, protobuf, array_record and Pillow
        what = str(error)[:200]  # it may quote a file
        raise ValueError(
            f"mnist: {folder} is no whole TFDS copy of MNIST ({what}); remove it"
        ) from error
    return checked(train, test, expected, folder)


def _download(directory: Path | None, base_url: str | None = None) -> Loaded:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    official: Any = tfds.builder_cls("mnist")
    home = directory or _tfds_home()
    downloads, base_url = home / "downloads", base_url or official.URL
    infos = {info.filename: info for info in official.url_infos.values()}
    urls = {name.removesuffix(".gz"): base_url + name for name in infos}
    if not all(any(downloads.glob(f"mnist/*{name}*.gz")) for name in urls):
        _require_network(next(iter(urls.values())))
    try:
        manager = tfds.download.DownloadManager(
            download_dir=downloads,
            url_infos={base_url + name: info for name, info in infos.items()},
            dataset_name="mnist",
            force_checksums_validation=True,
        )
        paths = {name: Path(path) for name, path in manager.download(urls).items()}
    except NonMatchingChecksumError as error:
        raise ValueError(f"mnist: {error}") from error
    except OSError as error:
        raise ConnectionError(f"mnist: no download to {downloads} ({error})") from error
    return *parse_idx(paths), f"{base_url}, kept in {downloads}"


def _description(path: Path) -> dict[str, Any]:
    """What TFDS says of a copy, if it is a description and names no file elsewhere."""
    if _files.regular("mnist", path).stat().st_size > 2**20:
        raise ValueError(f"mnist: {path} is no description of MNIST: it is far too large")
    try:
        described = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"mnist: {path} is not JSON ({error}); remove that copy") from error
    if not isinstance(described, dict):
        raise ValueError(f"mnist: {path} is no description of a TFDS copy; remove that copy")
    names = json.dumps([described.get("name"), described.get("splits")])
    if re.search(r"[/\\]", names):  # TFDS makes paths of them
        raise ValueError(f"mnist: {path} names files elsewhere; remove that copy")
    return described


def _tfds_home() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def _require_network(url: str) -> None:
    """Asks for one file's header: without a network TFDS would retry for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
    except OSError as error:
        raise ConnectionError(f"mnist: {url} can't be reached ({error})") from error


def _from_sample(directory: Path | None) -> Loaded:
    del directory
    with resources.as_file(resources.files("fgd.data").joinpath("mnist_sample.npz")) as path:
        content = verified(path, "the sample that fgd has", _SAMPLE_SIZE, _SAMPLE_SHA256)
    sample = dict(np.load(io.BytesIO(content), allow_pickle=False))
    train = sample["train_images"], sample["train_labels"]
    test = sample["test_images"], sample["test_labels"]
    where = "the sample that comes with fgd, NOT the full set"
    return *checked(train, test, SAMPLE, where), where


_SOURCES: dict[str, Callable[[Path | None], Loaded]] = {
    "tfds": _from_tfds,
    "files": read_idx,
    "download": _download,
    "sample": _from_sample,
}


def _on_device(split: Arrays) -> Split:
    images, labels = split
    return jax.device_put(images), jax.device_put(labels.astype(np.int32))
