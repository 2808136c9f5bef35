"""Models and training steps as files that JAX alone can run."""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from fgd import _files, _trees
from fgd._checks import PyTree, describe, require_callable
from fgd._keys import has_keys
from fgd._run.signature import read_signature
from fgd._run.state import TrainState
from fgd._run.step import Step
from fgd.export import _program
from fgd.models._model import Model, Variables

# A file: eight bytes that say what it is; the lengths of program and arrays, of eight bytes each;
# the program (jax.export's); the arrays (.npz); the SHA-256 of all that.
_MODEL, _STEP = b"fgd1/mod", b"fgd1/stp"
_HEAD, _DIGEST = 24, 32


@dataclass(frozen=True, eq=False, repr=False)
class Artifact:
    """What `load` returns: of a model `artifact(x) -> y`, of a step `artifact(state, batch)`.

    Attributes:
      arrays: {name: array} saved with the program: a model's parameters, or the state of which a
        step makes the next. Names are the keys on the way, joined by dots: `params.0.w`.
    """

    arrays: dict[str, jax.Array]
    _call: Callable[..., Any]
    _is_step: bool

    def __repr__(self) -> str:
        kind = "a step" if self._is_step else "a model"
        names = ", ".join([*list(self.arrays)[:4], *(["…"] if len(self.arrays) > 4 else [])])
        return f"Artifact({kind} of {_trees.summary(self.arrays)}: {names})"

    def __call__(self, *inputs: PyTree) -> PyTree:
        inputs = tuple(_trees.on_device("artifact", "input", x) for x in inputs)
        if not self._is_step:
            return self._call(self.arrays, *map(_program.plain, inputs))
        state, *batch = inputs
        return self._call(_program.encoded(state), *map(_program.plain, batch))


def save(
    path: str | os.PathLike[str],
    apply: Any,
    params: PyTree,
    sample: PyTree,
    *,
    any_batch: bool = True,
    overwrite: bool = False,
) -> None:
    """Writes a model, or a whole training step, as a program for CPU and CUDA with its arrays.

    `save(path, model.apply, params, sample)` or `save(path, step, state, batch)`: either is a
    function of arrays that are kept and arrays that come in. The program is StableHLO; it takes any
    number of rows and needs neither fgd nor the model's source. The arrays stand beside it, once:
    as constants in it, 400 MB would cost 9 s of compiling for every new number of rows.

    What the program takes and returns are dicts, lists and tuples of arrays: of other containers,
    such as a NamedTuple, dicts by name. A step's state is {name: array}, the names joined by dots;
    there PRNG keys are their data, and bfloat16 its bits, as uint16.

    Args:
      path: the file.
      apply: a model or its `apply(params, x) -> y`, with a row of y for each of x, in evaluation
        mode; or a step.
      params: the parameters, a model's `Variables`, or the state of a run; for a step, the state
        to start from.
      sample: an input, or for a step a batch: arrays or shapes; only shapes and dtypes matter.
      any_batch: leave the number of rows open; False: as many as `sample` has.
      overwrite: replace an existing file.

    Raises:
      FileExistsError: the file exists and `overwrite` is False.
      TypeError: `apply` is not a function, a parameter not an array.
      ValueError: a sample without rows; a model that works for one number of rows only, or whose
        output has not one row for each of its input's.

    Example:
      >>> import fgd, jax.numpy as jnp, tempfile
      >>> model = fgd.models.mlp([4, 3, 2])
      >>> params = model.init(0)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     fgd.export.save(f"{folder}/model.fgd", model.apply, params, jnp.ones([1, 4]))
      ...     predict = fgd.export.load(f"{folder}/model.fgd")
      >>> predict(jnp.ones([7, 4])).shape
      (7, 2)

    Source: https://docs.jax.dev/en/latest/export/export.html.
    """
    if callable(path):
        raise TypeError(
            "export.save: the path comes first: export.save(path, apply, params, sample)"
        )
    if isinstance(apply, Model):
        apply = apply.apply
    if isinstance(apply, Step):
        params = _trees.on_device("export.save", "state", params)
    elif isinstance(params, TrainState):
        whole = Variables(params.params, params.model_state)
        params = whole.params if whole.model_state is None else whole
    require_callable("export.save", "apply", apply, " such as model.apply, or a step")
    if not isinstance(apply, Step):
        takes = read_signature("export.save", "apply", apply, batch="x").takes("model_state")
        if takes and not isinstance(params, Variables):
            raise TypeError(
                "export.save: the model has arrays of its own: give its Variables(params, "
                f"model_state), as model.init makes, or a state; got {describe(params)}"
            )
        apply = _of_variables(apply) if takes else apply
    _files.require("export.save", "flatbuffers", "export")
    with _files.atomic("export.save", path, overwrite) as temporary:
        leaves = [
            leaf if has_keys(leaf) else jnp.asarray(_trees.array("export.save", name, leaf))
            for name, leaf in _trees.named("export.save", params).items()
        ]
        params = jax.tree.unflatten(jax.tree.structure(params), leaves)
        program = _program.exported(apply, params, sample, any_batch)
        arrays = _npz(_program.encoded(params))
        head = _STEP if isinstance(apply, Step) else _MODEL
        head += len(program).to_bytes(8, "little") + len(arrays).to_bytes(8, "little")
        digest = hashlib.sha256()
        with open(temporary, "wb") as file:
            for part in (head, program, arrays):
                file.write(part)
                digest.update(part)
            file.write(digest.digest())


def load(path: str | os.PathLike[str]) -> Artifact:
    """Reads what `save` wrote, after its digest says that it is whole.

    Args:
      path: the file.

    Returns:
      A function, compiled once for each number of rows: `artifact(x) -> y` of a model;
      `artifact(state, batch) -> (state, metrics)` of a step, to start from `artifact.arrays` or a
      TrainState.

    Raises:
      ValueError: the file is not fgd's, cut short, too long or damaged; says which.

    Example:
      >>> import fgd, jax.numpy as jnp, tempfile
      >>> step = fgd.train_step(lambda w, x: jnp.mean((w - x) ** 2), fgd.sgd(0.25))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     fgd.export.save(f"{folder}/step.fgd", step, step.init(0.0), jnp.ones(2))
      ...     step = fgd.export.load(f"{folder}/step.fgd")
      >>> state, metrics = step(step.arrays, jnp.array([1.0, 3.0, 2.0]))
      >>> float(state["params"]), int(state["step"])
      (1.0, 1)
    """
    _files.require("export.load", "flatbuffers", "export")
    content = memoryview(Path(path).read_bytes())
    kind, size = bytes(content[:8]), len(content)
    if kind not in (_MODEL, _STEP):
        raise ValueError(f"export.load: {path} is no file of fgd.export.save, of this version")
    middle = _HEAD + int.from_bytes(content[8:16], "little")
    end = middle + int.from_bytes(content[16:24], "little")
    if size != end + _DIGEST:
        problem = "cut short" if size < end + _DIGEST else "too long"
        raise ValueError(f"export.load: {path} is {problem}: {size} of {end + _DIGEST} bytes")
    if hashlib.sha256(content[:end]).digest() != content[end:]:
        raise ValueError(f"export.load: {path} is damaged: its content is not what was saved")
    program = jax.export.deserialize(bytearray(content[_HEAD:middle]))
    with np.load(io.BytesIO(content[middle:end]), allow_pickle=False) as arrays:
        values = {name: _trees.exactly("export.load", name, arrays[name]) for name in arrays}
    return Artifact(values, jax.jit(program.call), kind == _STEP)


def _of_variables(apply: Callable[..., Any]) -> Callable[[Variables, PyTree], PyTree]:
    """A model with arrays of its own as a function of both and an input."""
    return lambda variables, x: apply(*variables, x)[0]


def _npz(arrays: dict[str, jax.Array]) -> bytes:
    """What `np.load` reads; `np.savez` itself has no room for an array named "file"."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as folder:
        for name, value in arrays.items():
            with folder.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
    return buffer.getvalue()
