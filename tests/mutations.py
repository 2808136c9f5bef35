"""Files that are not what they should be, read in a process of its own with little memory.

    python tests/mutations.py SEED FIRST LAST FOLDER     mutated files: those cases; an empty folder
    python tests/mutations.py table                      named ones: [[function, path], …] in stdin

Before its memory is limited, the process reads every file intact: what JAX, XLA's threads and TFDS
map depends on the machine and on their versions (2.2 GB of addresses here), so it is looked up and
not written down. It may map 256 MB more. To read all of the files again takes less than 60 MB, and
MNIST from the start less than 200 MB; a reader that believes a header, or reads 6 GiB, ends in a
MemoryError, which no reader may raise. A case that takes a minute is ended by SIGALRM.
"""

import collections
import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import random
import re
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fgd
from fgd.data import _idx, _mnist

MARGIN = 256 * 2**20
MINUTE = 60
NUMBERS = [2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def bomb(start=b"", members=12):
    """64 MB of zeros for each member, in 65 KB each."""
    return gzip.compress(start) + members * gzip.compress(bytes(2**26))


def limit_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MARGIN
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


# What is done to a file


def flipped(rng, content, _):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def overwritten(rng, content, _):
    i = rng.randrange(len(content))
    return content[:i] + rng.randbytes(rng.randint(1, 16)) + content[i + rng.randint(0, 16) :]


def cut(rng, content, _):
    i, j = sorted(rng.choices(range(len(content) + 1), k=2))
    return rng.choice([content[:i], content[i:], content[:i] + content[j:]])


def extended(rng, content, _):
    more = rng.choice([bytes, rng.randbytes])(rng.choice([1, 8, 1000]))
    i = rng.choice([0, len(content), rng.randrange(len(content))])
    return content[:i] + more + content[i:]


def spliced(rng, content, other):
    i, j = rng.randrange(len(content)), rng.randrange(len(other))
    return content[:i] + other[rng.choice([i, j]) :]


def huge(rng, content, _):
    """A number of its beginning becomes another: in digits, or in bytes of either order."""
    digits = list(re.finditer(rb"\d+", content[:4096]))
    if digits and rng.random() < 0.6:
        i, j = rng.choice(digits).span()
        text = [*map(str, NUMBERS), "-1", "0", "1.0", "1e99", "NaN", "true", "[" * 5000, "9" * 5000]
        return content[:i] + rng.choice(text).encode() + content[j:]
    size = rng.choice([4, 8])
    number = rng.choice(NUMBERS) % 2 ** (8 * size)
    i = rng.choice([0, 8, 16, rng.randrange(len(content))])
    return content[:i] + number.to_bytes(size, rng.choice(["little", "big"])) + content[i + size :]


def mutated(rng, files):
    content, other = rng.choice(files), rng.choice(files)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice([flipped, overwritten, cut, extended, spliced, huge])
        content = kind(rng, content, other) if content else content
    return content


# Who reads it, and what is right


class Reader(NamedTuple):
    share: int  # of 1000 cases
    files: list  # intact ones, to be mutated
    write: object  # (folder, content, rng), makes what is read
    read: object  # (folder, rng) -> {name: NumPy array}
    right: object  # (content) -> the same by other means; an error if there is none


def write(folder, content, rng):
    (folder / "file").write_bytes(content)


def numpy(tree):
    data = {
        k: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for k, x in tree.items()
    }
    return {name: np.asarray(x) for name, x in data.items()}


def safetensors(folder):
    import safetensors.numpy

    like = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.int32(3), "key": jax.random.key(5)}
    fgd.interop.save(folder / "a", like)
    other = {"w": np.ones((2, 3), np.float32), "n": np.array(7, np.int32), "key": np.uint32([0, 1])}
    safetensors.numpy.save_file(other, folder / "b", {"format": "pt"})
    files = [(folder / name).read_bytes() for name in "ab"]
    same = numpy(like)

    def read(folder, rng):
        loaded = fgd.interop.load(folder / "file", like if rng.random() < 0.5 else None)
        return numpy(loaded)

    def right(content):
        if b'"sha256":"' in content:  # nothing but what was saved
            return same
        return safetensors.numpy.load(content)

    return Reader(400, files, write, read, right)


def artifacts(folder):
    """Their digest refuses every change: those of other bytes are none."""
    model = fgd.models.mlp([3, 2])
    fgd.export.save(folder / "c", model, model.init(0), jnp.ones([1, 3]))
    fgd.export.save(folder / "d", lambda w, x: w * x, jnp.float32(2), jnp.ones(1))
    files = [(folder / name).read_bytes() for name in "cd"]
    loaded = [numpy(fgd.export.load(folder / name).arrays) for name in "cd"]
    arrays = dict(zip(files, loaded, strict=True))

    def read(folder, rng):
        return numpy(fgd.export.load(folder / "file").arrays)

    sealed = Reader(350, files, write, read, arrays.__getitem__)

    first = files[0]
    n = 24 + int.from_bytes(first[8:16], "little")

    def write_arrays(folder, content, rng):
        write(folder, seal(first[:8], first[24:n], content), rng)

    return sealed, Reader(20, [first[n:-32]], write_arrays, read, lambda _: arrays[first])


def seal(kind, program, arrays):
    """An artifact of these parts, with a digest that is right."""
    body = kind + b"".join(len(x).to_bytes(8, "little") for x in (program, arrays))
    body += program + arrays
    return body + hashlib.sha256(body).digest()


def labels(folder):
    """A file of the size of MNIST's smallest, known by its digest as that is."""
    content = b"\0\0\x08\1" + (10_000).to_bytes(4, "big") + random.Random(0).randbytes(10_000)
    checksum = hashlib.sha256(content).hexdigest()

    def read(folder, rng):
        return {"": _idx.verified(folder / "file", "the file", len(content), checksum)}

    files = [content, gzip.compress(content), gzip.compress(content, 0)]
    files += [bomb(), bomb(content), bomb(content[:-1], 1)]
    return Reader(128, files, write, read, lambda _: {"": content})


DESCRIPTION = b"""{"fileFormat": "array_record", "moduleName": "mnist", "name": "mnist",
"splits": [{"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "name": "train",
"numBytes": "18360", "shardLengths": ["20"]}], "version": "3.0.1"}"""


def descriptions(folder):
    def read(folder, rng):
        return {"": _mnist._description(folder / "file")}

    return Reader(88, [DESCRIPTION], write, read, lambda content: {"": json.loads(content)})


def copies(folder):
    """A copy of 20 and 20 digits, as TFDS writes it."""
    import tensorflow_datasets  # noqa: F401
    from test_mnist import pairs, prepare

    rng = np.random.default_rng(0)
    digits = rng.integers(0, 256, (20, 28, 28), np.uint8), rng.integers(0, 10, 20)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        prepare(folder, digits, digits)
    copy = folder / "mnist" / "3.0.1"
    files = {path.name: path.read_bytes() for path in sorted(copy.iterdir())}

    def write(folder, content, rng):
        for name, whole in files.items():
            (copy / name).write_bytes(whole)
        name = rng.choice(sorted(files))
        (copy / name).write_bytes(mutated(rng, [files[name]]) if content else files[name])

    def read(folder, rng):
        _mnist._description(copy / "dataset_info.json")
        train, test = _mnist.read_tfds(copy, {"train": 20, "test": 20})
        return {"": [pairs(train), pairs(test)]}

    expected = {"": read(folder, None)[""]}
    return Reader(12, [b"a copy"], write, read, lambda _: expected)


def officials(folder):
    """The four official files, one of them mutated."""
    home = Path(os.environ.get("FGD_DATA_DIR", "/nowhere")) / "mnist"
    names = [f"{name}.gz" for split in _idx._FILES.values() for name, *_ in split]
    if not all((home / name).exists() for name in names):
        return None

    def write(folder, content, rng):
        for name in names:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(home / name)
        if content:
            name = rng.choice([*names, *names[1::2], *names[1::2]])
            whole = (home / name).read_bytes()
            (folder / name).unlink()
            (folder / name).write_bytes(mutated(rng, [whole]))

    def read(folder, rng):
        with contextlib.redirect_stderr(io.StringIO()):
            train, test, _ = fgd.data.mnist("files", folder)
        digests = [hashlib.sha256(np.asarray(x)).hexdigest() for x in (*train, *test)]
        return {"": digests}

    write(folder, b"", None)
    expected = read(folder, None)
    return Reader(2, [b"official"], write, read, lambda _: expected)


def readers(folder):
    made = {
        "safetensors": safetensors(folder),
        "labels": labels(folder),
        "descriptions": descriptions(folder),
        "copies": copies(folder),
        "officials": officials(folder),
    }
    made["artifacts"], made["arrays"] = artifacts(folder)
    return {name: reader for name, reader in made.items() if reader}


def same(ours, theirs):
    if set(ours) != set(theirs):
        return False
    return all(
        (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
        if isinstance(x, np.ndarray)
        else x == y or (json.dumps(x) == json.dumps(y) and "NaN" in json.dumps(x))
        for x, y in ((ours[name], theirs[name]) for name in ours)
    )


def attempt(reader, folder, rng):
    """How one case ended; AssertionError if it must not."""
    content = mutated(rng, reader.files)
    reader.write(folder, content, rng)
    try:
        value = reader.read(folder, rng)
    except (OSError, ValueError) as error:
        text, kind = str(error), type(error).__name__
        says_what = text.startswith(("interop.load: ", "export.load: ", "mnist: "))
        if not says_what or str(folder) not in text or len(text) > 1000:
            raise AssertionError(f"{kind}: {text[:500]}") from None
        return kind
    assert same(value, reader.right(content)), "another value"
    return "right"


def main(seed, first, last, folder):
    folder = Path(folder)
    made = readers(folder)
    for name, reader in made.items():
        content = reader.files[0]
        reader.write(folder, content if name not in ("copies", "officials") else b"", random)
        assert same(reader.read(folder, random.Random(0)), reader.right(content)), name
    limit_memory()
    shares = [reader.share for reader in made.values()]
    outcomes = collections.defaultdict(collections.Counter)
    progress = os.open(folder / "case", os.O_RDWR | os.O_CREAT)
    for case in range(int(first), int(last)):
        os.pwrite(progress, b"%9d" % case, 0)
        rng = random.Random(f"{seed} {case}")
        (name,) = rng.choices(list(made), shares)
        signal.setitimer(signal.ITIMER_REAL, MINUTE)
        outcomes[name][attempt(made[name], folder, rng)] += 1
    print(json.dumps(outcomes))


FUNCTIONS = {
    "interop.load": fgd.interop.load,
    "export.load": fgd.export.load,
    "files": functools.partial(fgd.data.mnist, "files"),
    "tfds": functools.partial(fgd.data.mnist, "tfds"),
}


def table():
    jnp.ones(3).sum().block_until_ready()
    import tensorflow_datasets  # noqa: F401

    limit_memory()
    for function, path in json.load(sys.stdin):
        signal.setitimer(signal.ITIMER_REAL, MINUTE)
        try:
            said = ["nothing", repr(FUNCTIONS[function](path))]
        except Exception as error:
            said = [type(error).__name__, str(error)]
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of packages that are read with
    table() if sys.argv[1] == "table" else main(*sys.argv[1:])
