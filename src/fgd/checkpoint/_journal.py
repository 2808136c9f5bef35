"""A file that grows with a run: what each checkpoint adds to its history, piece after piece.

A piece: two lengths of eight bytes, of its head and of its arrays; the head, JSON; the arrays'
bytes; the SHA-256 of all that and of the digest before it. So the last digest is that of all.
"""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgd import _files
from fgd._checks import PyTree

_LENGTH, _DIGEST = 8, 32


class Mark(NamedTuple):
    """A place in the file: bytes before it, and their digest."""

    size: int = 0
    digest: str = "00" * _DIGEST


class Journal:
    """The file, and the place that its reader or writer has reached."""

    def __init__(self, path: Path) -> None:
        self.path, self.mark = path, Mark()

    def read(self, mark: Mark) -> list[PyTree]:
        """The pieces before a mark; ValueError unless they are those that were written."""
        pieces, at = [], Mark()
        if mark.size:
            with _files.regular("checkpoints", self.path).open("rb") as file:
                while at.size < mark.size:
                    piece, at = _read(file, at, mark.size)
                    pieces.append(piece)
        if at != mark:
            raise ValueError(f"{self.path.name} is not what was saved")
        return pieces

    def cut(self, mark: Mark) -> None:
        """Forgets what was written after a mark."""
        if mark.size or self.path.exists():
            with self.path.open("ab") as file:
                file.truncate(mark.size)
        self.mark = mark

    def append(self, tree: PyTree) -> None:
        """Writes a piece after the mark, in place of an unfinished one, and moves the mark."""
        leaves: list[np.ndarray] = []
        structure = _encode(tree, leaves)
        kinds = [[x.dtype.name, list(x.shape)] for x in leaves]
        head = json.dumps([structure, kinds]).encode()
        body = b"".join(x.tobytes() for x in leaves)
        piece = b"".join([*(len(x).to_bytes(_LENGTH, "little") for x in (head, body)), head, body])
        digest = sha256(bytes.fromhex(self.mark.digest) + piece).digest()
        with self.path.open("ab") as file:
            file.truncate(self.mark.size)
            file.write(piece + digest)
            file.flush()
            os.fsync(file.fileno())
        self.mark = Mark(self.mark.size + len(piece) + _DIGEST, digest.hex())


def _read(file: Any, at: Mark, end: int) -> tuple[PyTree, Mark]:
    """The piece after `at`, which may not reach beyond `end`."""
    lengths = file.read(2 * _LENGTH)
    sizes = [int.from_bytes(lengths[i : i + _LENGTH], "little") for i in (0, _LENGTH)]
    after = at.size + 2 * _LENGTH + sum(sizes) + _DIGEST
    if after > end:
        raise ValueError("history has lengths that were not saved")
    head, body, digest = (file.read(size) for size in (*sizes, _DIGEST))
    if sha256(bytes.fromhex(at.digest) + lengths + head + body).digest() != digest:
        raise ValueError("history is not what was saved")
    structure, kinds = json.loads(head)
    leaves, start = [], 0
    for name, shape in kinds:
        dtype = jnp.dtype(name)
        number = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(body, dtype, number, start).reshape(shape)
        leaves.append(values.copy())
        start += values.nbytes
    return _decode(structure, leaves), Mark(after, digest.hex())


def _encode(tree: PyTree, leaves: list[np.ndarray]) -> Any:
    """A tree of dicts, lists and tuples as JSON, in which a number is the place of a leaf."""
    if isinstance(tree, dict) and all(isinstance(name, str) for name in tree):
        return {"dict": [[name, _encode(x, leaves)] for name, x in tree.items()]}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_encode(x, leaves) for x in tree]}
    if tree is None:
        return None
    if isinstance(tree, np.ndarray | np.generic | jax.Array | int | float):
        leaves.append(np.asarray(tree))
        return len(leaves) - 1
    raise TypeError(
        f"train: evaluate returned a {type(tree).__name__}, which checkpoints can't keep; return "
        "dicts by words, lists or tuples of arrays"
    )


def _decode(code: Any, leaves: list[np.ndarray]) -> PyTree:
    if code is None or isinstance(code, int):
        return None if code is None else leaves[code]
    ((kind, items),) = code.items()
    if kind == "dict":
        return {name: _decode(x, leaves) for name, x in items}
    return {"list": list, "tuple": tuple}[kind](_decode(x, leaves) for x in items)
