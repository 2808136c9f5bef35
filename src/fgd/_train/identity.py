"""What a run is, in words and digests: two runs that agree in all of it are one and the same."""

from hashlib import sha256
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from fgd._checks import PyTree
from fgd._keys import has_keys
from fgd._run.data import Mapped, Stream, arrays_of
from fgd._run.plan import Run
from fgd._run.step import Step
from fgd._trees import named, nbytes
from fgd.checkpoint import _arrays

Identity = dict[str, Any]  # what JSON can hold


def identity(step: Step, run: Run) -> Identity:
    """The state that a run starts from, its plan, data, program and versions."""
    order = run.plan.order
    streamed = isinstance(run.data, Stream)
    return {
        "start": int(run.state.step),
        "leaves": _arrays.describe("train", run.state),
        "plan": {
            "batch_size": order.batch_size if order else None,
            "shuffle": order.shuffle if order else None,
            "record_every": run.plan.record_every,
        },
        "data": "a stream" if streamed else _content(run.data),
        "program": None if streamed else program(step, run.state, batch_like(run)),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")}
        | {"x64": bool(jax.config.read("jax_enable_x64")), "platform": jax.default_backend()},
    }


def differences(ours: Identity, theirs: Identity) -> list[str]:
    """What of plan, data, program and versions differs, in words."""
    found = [
        f"{name} is {ours[part][name]}, was {value}"
        for part in ("plan", "versions")
        for name, value in theirs[part].items()
        if ours[part][name] != value
    ]
    if ours["data"] != theirs["data"]:
        found.append("the data is other data")
    return found + program_differs(ours, theirs)


def program_differs(ours: Identity, theirs: Identity) -> list[str]:
    """Whether the programs differ, which can be told of one version of JAX alone."""
    known = ours["program"] and theirs["program"] and ours["versions"] == theirs["versions"]
    if not known or ours["program"] == theirs["program"]:
        return []
    return ["the loss, the optimizer or its constants are others, or the code of one of them"]


def batch_like(run: Run) -> PyTree:
    """Shapes of what a step sees of arrays."""
    order = run.plan.order
    rows = {} if order is None else {"rows": order.batch_size}

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        dtype = x.dtype if has_keys(x) else jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((rows.get("rows", x.shape[0]), *x.shape[1:]), dtype)

    return jax.tree.map(shape, arrays_of(run.data))


def program(step: Step, state: PyTree, batch: PyTree) -> str:
    """The digest of the step's lowered text, wherever its arrays lie."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
    text = step.program(_once).lower(*shapes).as_text()
    return sha256(text.encode()).hexdigest()


def _once(update: Any, state: PyTree, batch: PyTree) -> Any:
    return update(state, batch)


WHOLE = 2**28  # bytes of data in files of which all are read to know them


def _content(data: PyTree | Mapped) -> str:
    """The digest of all rows; of more than `WHOLE` bytes in files, of a thousand rows."""
    digest, arrays = sha256(), arrays_of(data)
    sampled = isinstance(data, Mapped) and nbytes(arrays) > WHOLE
    for name, leaf in named("train", arrays).items():
        values = np.asarray(jax.random.key_data(leaf) if has_keys(leaf) else leaf)
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        if sampled:
            values = values[np.linspace(0, len(values) - 1, 1000).astype(int)]
        digest.update(bytes.fromhex(_arrays.sha256(values)))
    return digest.hexdigest()
