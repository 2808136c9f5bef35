"""Every reader of a file refuses what is not what it should be: in words, at once, in no memory."""

import dataclasses
import functools
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import mutations
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="how much memory is mapped is read from /proc"
)
SEED = 1
GIGABYTES = 6 * 2**30


def in_little_memory(*arguments, stdin=""):
    return subprocess.run(
        [sys.executable, mutations.__file__, *map(str, arguments)],
        capture_output=True,
        input=stdin,
        text=True,
        timeout=1800,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.parametrize("cases", [700, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_read_right(tmp_path, cases):
    """No other exception, value, crash, hang or gigabyte, whatever was done to a file."""
    if cases > 700 and os.environ.get("FGD_LONG") != "all":
        cases = 20_000
    done = in_little_memory(SEED, 0, cases, tmp_path)
    if done.returncode:
        case = int((tmp_path / "case").read_text())
        pytest.fail(
            f"seed {SEED}, case {case}: exit status {done.returncode}; again, with tests/ and src/ "
            f"in PYTHONPATH: mutations.py {SEED} {case} {case + 1} FOLDER\n{done.stderr[-3000:]}"
        )
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert sum(map(sum, (ended.values() for ended in outcomes.values()))) == cases
    assert all(ended["ValueError"] > 0 for ended in outcomes.values()), outcomes
    assert outcomes["safetensors"]["right"] > 0 < outcomes["copies"]["right"], outcomes


# Named files: for each a function that makes it, and what is said of it.


def large(start=b""):
    def make(path):
        with open(path, "wb") as file:
            file.write(start)
            file.truncate(GIGABYTES)

    return make


def content(*parts):
    return lambda path: path.write_bytes(b"".join(parts))


def header(text, data=b""):
    text = text if isinstance(text, bytes) else text.encode()
    return content(struct.pack("<Q", len(text)), text, data)


def entry(shape="[1]", offsets="[0,4]", dtype='"F32"', name="a"):
    return f'{{"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


def anything(name, says):
    """What is wrong with any file, and begins with the path in each message."""
    return {
        f"{name} absent": (lambda path: None, FileNotFoundError, "there is no file "),
        f"{name} pipe": (os.mkfifo, ValueError, "is no file: a directory, a pipe or a device"),
        f"{name} directory": (Path.mkdir, ValueError, "is no file: a directory, a pipe or"),
        f"{name} device": (lambda path: path.symlink_to("/dev/zero"), ValueError, "is no file"),
        f"{name} empty": (Path.touch, ValueError, says),
        f"{name} of 6 GiB": (large(), ValueError, says),
    }


NO_HEADER = "is no whole safetensors file: "
SAFETENSORS = {
    **anything("file", NO_HEADER),
    "6 GiB behind a header": (large(struct.pack("<Q", 2) + b"{}"), ValueError, "arrays end at 10"),
    "header of 6 GiB": (
        large(struct.pack("<Q", GIGABYTES - 8)),
        ValueError,
        "should be its header",
    ),
    "header of 2**64 - 1": (content(b"\xff" * 8), ValueError, "of 8 bytes, 18446744073709551615 "),
    "array of 2**60": (header(entry("[1152921504606846976]"), b"1234"), ValueError, "not as long"),
    "array beyond": (header(entry("[2]", "[0,8]"), b"1234"), ValueError, "arrays end at"),
    "hole": (header(entry(offsets="[4,8]"), b"12345678"), ValueError, "'a' is not where"),
    "negative": (header(entry("[-1]", "[4,0]"), b"1234"), ValueError, "not all counts"),
    "true": (header(entry("[true]"), b"1234"), ValueError, "not all counts"),
    "fraction": (header(entry("[1.0]"), b"1234"), ValueError, "not all counts"),
    "three offsets": (header(entry(offsets="[0,4,4]"), b"1234"), ValueError, "too many values"),
    "no dtype": (header(entry(dtype="[]"), b"1234"), ValueError, "unhashable"),
    "long dtype": (header(entry(dtype=f'"{"F" * 10**6}"'), b"1234"), ValueError, "is no whole"),
    "100 axes": (header(entry(f"[{'1,' * 99}1]"), b"1234"), ValueError, "a: maximum supported dim"),
    "nested": (header('{"a":' * 100_000 + "1" + "}" * 100_000), ValueError, "recursion depth"),
    "null": (header('{"a":null}'), ValueError, "mapping, not NoneType"),
    "list": (header("[]"), ValueError, NO_HEADER),
    "metadata list": (header('{"__metadata__":[]}'), ValueError, NO_HEADER),
    "metadata of numbers": (header('{"__metadata__":{"a":1}}'), ValueError, "not texts"),
    "UTF-16": (header(entry().encode("utf-16"), b"1234"), ValueError, NO_HEADER),
    "half a character": (header(entry(name="\\ud800"), b"1234"), ValueError, "surrogates"),
    "digits": (header(entry(f"[{'9' * 5000}]"), b"1234"), ValueError, "integer string conversion"),
}


@functools.cache
def program():
    def double(arrays, x):
        return arrays["w"] * x

    shapes = {"w": jax.ShapeDtypeStruct((2,), "float32")}, jax.ShapeDtypeStruct((2,), "float32")
    return jax.export.export(jax.jit(double), platforms=["cpu"])(*shapes)


def npy(value, claim=None):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(value), allow_pickle=True)
    text = buffer.getvalue()
    longer = b"(2,), }" + (len(claim) - 1) * b" " if claim else b""
    return text.replace(longer, b"(%s,), }" % claim) if claim else text


def zipped(compression=zipfile.ZIP_STORED, **files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as folder:
        for name, data in files.items():
            folder.writestr(f"{name}.npy", data)
    return buffer.getvalue()


W = np.float32([1, 2])


def artifact(arrays=None, code=None, **changes):
    def make(path):
        text = (
            bytes(dataclasses.replace(program(), **changes).serialize()) if code is None else code
        )
        path.write_bytes(mutations.seal(b"fgd1/mod", text, arrays or zipped(w=npy(W))))

    return make


NOT_OURS = "is no file of fgd.export.save, of this version"
ARTIFACTS = {
    **anything("file", NOT_OURS),
    "6 GiB of a model": (large(b"fgd1/mod"), ValueError, "is too long: 6442450944 of 56 bytes"),
    "cut": (content(b"fgd1/stp", 16 * b"\xff"), ValueError, "is cut short: 24 of 3689"),
    "no digest": (content(b"fgd1/mod", bytes(48)), ValueError, "is damaged"),
    "no program": (artifact(code=b""), ValueError, "has no program that JAX"),
    "zeros": (artifact(code=bytes(1000)), ValueError, "has no program that JAX"),
    "text": (artifact(code=b"import os" * 100), ValueError, "has no program that JAX"),
    "convention 99": (
        artifact(calling_convention_version=99),
        ValueError,
        "has a program of calling convention 99, JAX",
    ),
    "no arrays": (artifact(zipped()), ValueError, "of its program: missing arrays['w']"),
    "other arrays": (
        artifact(zipped(w=npy(np.ones(3)), v=npy(W))),
        ValueError,
        "left over arrays['v']; arrays['w'] is float64[3], expected float32[2]",
    ),
    "no zip": (artifact(b"PK"), ValueError, "has no arrays to be read (File is not a zip file)"),
    "bomb": (
        artifact(zipped(zipfile.ZIP_DEFLATED, w=bytes(2**26))),
        ValueError,
        "has no arrays to be read (they are compressed)",
    ),
    "array of 2**40": (
        artifact(zipped(w=npy(W, b"1099511627776"))),
        ValueError,
        "has no arrays to be read (buffer is smaller than requested size)",
    ),
    "pickle": (artifact(zipped(w=npy(np.array([print])))), ValueError, "create an OBJECT array"),
}

IMAGES = "train-images-idx3-ubyte"
OTHER = "is not the official train-images-idx3-ubyte: "
FILES = {
    **{
        f"{name}{zipped}": (make, error, says)
        for zipped in ("", ".gz")
        for name, (make, error, says) in anything("", OTHER).items()
        if name != " absent"
    },
    "bomb of 4.3 GB.gz": (
        lambda path: path.write_bytes(mutations.bomb(members=64)),
        ValueError,
        "it holds more than 47,040,016 bytes",
    ),
    "one byte more": (
        lambda path: path.write_bytes(bytes(47_040_017)),
        ValueError,
        "it holds more than 47,040,016 bytes",
    ),
    "one byte less.gz": (
        content(gzip.compress(bytes(47_040_015), 1)),
        ValueError,
        "it holds fewer than 47,040,016 bytes",
    ),
    "black.gz": (content(gzip.compress(bytes(47_040_016), 1)), ValueError, "has SHA-256 "),
    "cut.gz": (content(gzip.compress(bytes(9999))[:-9]), ValueError, "truncated or not gzip"),
    "name without end.gz": (
        large(b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 2**20),
        ValueError,
        "it has 6,442,450,944 bytes",
    ),
    "other method.gz": (content(b"\x1f\x8b\x09", bytes(99)), ValueError, "Unknown compression"),
}

ELSEWHERE = (
    b'{"fileFormat": "array_record", "name": "mnist", "splits": [{"filepathTemplate": "%s"}]}'
)
DESCRIPTIONS = {
    **{k: v for k, v in anything("file", "is not JSON").items() if " absent" not in k},
    "file of 6 GiB": (large(), ValueError, "is no description of MNIST: it is far too large"),
    "list": (content(b"[]"), ValueError, "is no description of a TFDS copy; remove that copy"),
    "null": (content(b"null"), ValueError, "is no description of a TFDS copy"),
    "nested": (content(b"[" * 100_000), ValueError, "is not JSON (maximum recursion depth"),
    "bytes": (content(b'{"a": "\xff"}'), ValueError, "is not JSON ('utf-8' codec can't"),
    "format list": (
        content(b'{"fileFormat": ["array_record"]}'),
        FileNotFoundError,
        "no TFDS copy",
    ),
    "parent": (content(ELSEWHERE % b"../{SPLIT}"), ValueError, "names files elsewhere"),
    "root": (content(ELSEWHERE % rb"\u002fetc\u002fpasswd"), ValueError, "names files elsewhere"),
    "no features": (content(mutations.DESCRIPTION), ValueError, "is no whole TFDS copy of MNIST"),
}


def place(function, folder, name, make):
    """Makes a file where the function looks for it; what the function is given."""
    folder.mkdir(parents=True)
    if function == "files":
        for other in [
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        ]:
            (folder / other).touch()
        make(folder / (f"{IMAGES}.gz" if name.endswith(".gz") else IMAGES))
        return folder
    if function == "tfds":
        (folder / "mnist" / "3.0.1").mkdir(parents=True)
        make(folder / "mnist" / "3.0.1" / "dataset_info.json")
        return folder
    make(folder / "file")
    return folder / "file"


def test_named_files(tmp_path):
    tables = {
        "interop.load": SAFETENSORS,
        "export.load": ARTIFACTS,
        "files": FILES,
        "tfds": DESCRIPTIONS,
    }
    cases = [
        (function, name, *what)
        for function, table in tables.items()
        for name, what in table.items()
    ]
    paths = [
        place(function, tmp_path / function / str(i), name, make)
        for i, (function, name, make, _, _) in enumerate(cases)
    ]
    asked = json.dumps([[case[0], str(path)] for case, path in zip(cases, paths, strict=True)])
    done = in_little_memory("table", stdin=asked)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        pytest.fail(
            f"exit status {done.returncode} at {cases[len(said)][:2]}: {done.stderr[-3000:]}"
        )
    wrong = [
        f"{function}, {name}: {kind}: {text[:300]}"
        for (function, name, _, error, message), path, (kind, text) in zip(
            cases, paths, said, strict=True
        )
        if kind != error.__name__
        or message not in text
        or str(path) not in text
        or len(text) > 500
        or not text.startswith("mnist: " if function in ("files", "tfds") else f"{function}: ")
    ]
    assert not wrong, "\n".join(wrong)
