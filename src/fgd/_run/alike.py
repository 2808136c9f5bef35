"""What several processes compare before they make a run together: its plan, program and values."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fgd import _jax
from fgd._checks import PyTree, spec
from fgd._run.order import Order
from fgd._run.programs import keep
from fgd._run.state import TrainState
from fgd._run.step import Step
from fgd._trees import count_rows, host
from fgd.parallel._agreement import digest, require_alike
from fgd.parallel._placement import within


def require_same_run(
    caller: str,
    step: Step,
    state: TrainState,
    data: PyTree,
    order: Order | None,
    mesh: Mesh,
    plan: dict[str, Any],
) -> None:
    """ValueError on every process that shares `mesh`, if one of them is about to do otherwise."""
    rows = count_rows(caller, data)
    size = order.batch_size if order else rows
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), data)
    require_alike(
        caller,
        mesh,
        given="arrays",
        rows=rows,
        batch_size=size,
        shuffle=order.shuffle if order else None,
        **plan,
        program=_fingerprint(step, state, batch, mesh),
        state=digest(state),
        data=digest(data),
    )


def same_stream(
    step: Step, state: TrainState, batches: Iterator[PyTree], mesh: Mesh, plan: dict[str, Any]
) -> Iterator[PyTree]:
    """The stream; its first batch says which program it is for, and that too must be the same."""
    require_alike("train", mesh, given="a stream", **plan, state=digest(state))

    def compared(given: PyTree) -> PyTree:
        arrays = jax.tree.map(host, given)
        rows = count_rows("train", arrays, "batch") * jax.process_count()
        shapes = jax.eval_shape(lambda x: x, arrays)
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), shapes)
        program = _fingerprint(step, state, whole, mesh)
        batch = ", ".join(map(spec, jax.tree.leaves(shapes)))
        require_alike("train", mesh, batch=batch, program=program)
        return given

    return chain(map(compared, islice(batches, 1)), batches)


def _fingerprint(step: Step, state: TrainState, batch: PyTree, mesh: Mesh) -> str:
    """Of the program of a step, before it is compiled; found once for each of its shapes."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (state, batch))
    leaves, treedef = jax.tree.flatten(shapes)

    def found() -> str:
        with within(mesh):
            return _jax.ClosuresAsArguments(step.update).fingerprint(*shapes)

    return keep(step, ("fingerprint", treedef, *leaves, mesh, _jax.trace_settings()[1]), found)
