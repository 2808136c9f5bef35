"""What processes must have in common before they take a step together, compared in one message."""

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import keystr

from fgd import _jax
from fgd._checks import PyTree, is_concrete
from fgd._keys import has_keys
from fgd.parallel._placement import gather, is_multi_process

_SIZE = 4096  # bytes that each process sends, whatever it has to say, so that none waits for more
_LONGEST = 64  # letters of a value; of longer ones, a digest is compared

# What can't be read has words of its own.
_WORDS = {
    "settings": "a setting of JAX on which programs depend differs",
    "program": "the program: its loss, optimizer or code differ, or arrays that they close over",
    "state": "the state: its values differ; give every process the same",
    "data": "the data: its values differ; give every process all rows, or train on a stream of "
    "each one's own share",
    "evaluation": "the evaluation: its rows differ; give every process the same",
    "axes": "the axes: their values differ",
}


def require_alike(caller: str, mesh: Mesh | None, **facts: Any) -> None:
    """ValueError on every process, if these facts are not the same on all; says which are not.

    All processes of the mesh must call it, each with what it knows. Facts are values to be read
    (the plan of a run), or digests under the names of `_WORDS`. Where plans or versions differ, so
    do the programs, and only the former are named.
    """
    if not is_multi_process(mesh) or _jax.is_tracing():
        return
    mine = {"call": caller, **facts}
    said = json.dumps([_versions(), {name: _short(x) for name, x in mine.items()}]).encode()
    rows = gather(mesh, np.frombuffer(said.ljust(_SIZE), np.uint8))
    (leader, ours), *others = ((p, json.loads(row.tobytes())) for p, row in rows.items())
    if unlike := {process: theirs for process, theirs in others if theirs != ours}:
        process, *more = unlike
        raise ValueError(
            f"{caller}: processes that share a mesh must make the same run, but process {process} "
            + (f"(and {', '.join(map(str, more))}) " if more else "")
            + f"is unlike process {leader}: "
            + "; ".join(_differences(process, unlike[process], leader, ours))
        )


def _differences(process: int, theirs: Any, leader: int, ours: Any) -> Iterator[str]:
    """The plan and the versions by their values, the rest in words; least of all the program."""
    hidden: list[str] = []
    known = False
    for what, a, b in zip(("versions and settings", "plan"), theirs, ours, strict=True):
        names = [name for name in b if name in a and a[name] != b[name]]
        hidden += [name for name in names if name in _WORDS]
        if names := [name for name in names if name not in _WORDS]:
            known = True
            here, there = (", ".join(f"{name}={facts[name]}" for name in names) for facts in (a, b))
            yield f"the {what}: process {process} has {here}, process {leader} {there}"
    for name in hidden:
        if not (known and name == "program"):
            yield _WORDS[name]


def digest(tree: PyTree) -> str:
    """Of all values that a process brings on its own; what lies on all of them already is alike."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_concrete(leaf) and getattr(leaf, "is_fully_addressable", True):
            whole = np.asarray(jax.random.key_data(leaf) if has_keys(leaf) else leaf)
            found.update(f"{keystr(path)} {whole.dtype} {whole.shape}".encode())
            found.update(whole.tobytes())
    return found.hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:40]}… ({hashlib.sha256(text.encode()).hexdigest()[:12]})"


def _versions() -> dict[str, str]:
    named, others = _jax.trace_settings()
    settings = {name: str(value) for name, value in named.items()}
    return _installed() | settings | {"settings": hashlib.sha256(others.encode()).hexdigest()[:16]}


@functools.cache
def _installed() -> dict[str, str]:
    versions = {"jax": jax.__version__}
    for name in ("fgd", "jaxlib"):
        with suppress(PackageNotFoundError):  # run from its sources
            versions[name] = version(name)
    return versions
