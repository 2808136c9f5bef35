"""The four official MNIST files, found, parsed and verified."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from fgd import _files

Arrays = tuple[np.ndarray, np.ndarray]
Loaded = tuple[Arrays, Arrays, str]

FULL = {"train": 60_000, "test": 10_000}

# The official files: name, length and SHA-256 of their uncompressed content.
_FILES = {
    "train": (
        (
            "train-images-idx3-ubyte",
            47_040_016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            "train-labels-idx1-ubyte",
            60_008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
    ),
    "test": (
        (
            "t10k-images-idx3-ubyte",
            7_840_016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        (
            "t10k-labels-idx1-ubyte",
            10_008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
}


def read_idx(directory: Path | None) -> Loaded:
    if directory is None:
        if "FGD_DATA_DIR" not in os.environ:
            raise FileNotFoundError("mnist: no data_dir given and FGD_DATA_DIR is not set")
        directory = Path(os.environ["FGD_DATA_DIR"])
    names = [name for split in _FILES.values() for name, *_ in split]
    paths = {}
    for name in names:
        places = [d / n for d in (directory, directory / "mnist") for n in (name, f"{name}.gz")]
        there = [path for path in places if path.exists()]
        paths[name] = min(there, key=lambda path: not path.is_file(), default=None)
    if missing := [name for name, path in paths.items() if path is None]:
        error = FileNotFoundError(
            f"mnist: {directory} (and mnist/ in it) lacks {', '.join(missing)}, gzipped or not"
        )
        error.partial = len(missing) < len(names)  # type: ignore[attr-defined]
        raise error
    return *parse_idx({name: path for name, path in paths.items() if path}), f"files in {directory}"


def parse_idx(paths: dict[str, Path]) -> tuple[Arrays, Arrays]:
    def split(which: str) -> Arrays:
        images, labels = (
            verified(paths[name], f"the official {name}", size, checksum)
            for name, size, checksum in _FILES[which]
        )
        return (
            np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
            np.frombuffer(labels, np.uint8, offset=8),
        )

    return checked(split("train"), split("test"), FULL, "the official files")


def verified(path: Path, name: str, size: int, checksum: str) -> bytes:
    """What a file holds, gzipped or not, if that is what it should be; of others `size` at most."""

    def wrong(what: str) -> ValueError:
        return ValueError(f"mnist: {path} is not {name}: {what}; fetch it again")

    there = _files.regular("mnist", path).stat().st_size
    if there > size + 2**20:  # gzip adds a thousandth, and a header with the file's name
        raise wrong(f"it has {there:,} bytes")
    with open(path, "rb") as file:
        is_zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if is_zipped else file
        try:
            content = stream.read(size + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"mnist: {path} is truncated or not gzip ({error})") from error
    if len(content) != size:
        raise wrong(f"it holds {'more' if len(content) > size else 'fewer'} than {size:,} bytes")
    found = hashlib.sha256(content).hexdigest()
    if found != checksum:
        raise wrong(f"what it holds has SHA-256 {found}, expected {checksum}")
    return content


def checked(
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
