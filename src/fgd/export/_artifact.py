"""Models and training steps as files that JAX alone can run."""

import hashlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from fgd import _files, _trees
from fgd._checks import PyTree, describe, require_callable, require_flag
from fgd._keys import has_keys
from fgd._run.signature import read_signature
from fgd._run.state import TrainState
from fgd._run.step import Step
from fgd.export import _program
from fgd.export._arrays import npz, unzipped
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
        names = ("state", "batch") if self._is_step else ("x",)
        if len(inputs) != len(names):
            raise TypeError(
                f"artifact: takes {' and '.join(names)}, got "
                f"{', '.join(map(describe, inputs)) or 'nothing'}"
            )
        *state, x = map(partial(_trees.on_device, "artifact"), names, inputs)
        arrays = _program.encoded(state[0]) if state else self.arrays
        return self._call(arrays, _program.plain(x))


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
    require_flag("export.save", any_batch=any_batch)
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
        arrays = npz(_program.encoded(params))
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

    Load only what you trust. An artifact is a program: the digest guards against accidents, not
    against people, who can make another. A program altered on purpose can compute anything, call
    whatever jaxlib has to be called, or crash the interpreter.

    Args:
      path: the file.

    Returns:
      A function, compiled once for each number of rows: `artifact(x) -> y` of a model;
      `artifact(state, batch) -> (state, metrics)` of a step, to start from `artifact.arrays` or a
      TrainState. Inputs of another structure, shape or dtype than the program's are a ValueError
      that names them.

    Raises:
      OSError: the file does not exist (FileNotFoundError) or can't be read.
      ValueError: it is a directory or a pipe, not fgd's, cut short, too long or damaged; says
        which, and before more than its head is read if its length is wrong. Or its program is one
        that this version of JAX can't read; float64 while JAX is without it.

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
    path = _files.regular("export.load", _files.as_path("export.load", path))
    with open(path, "rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(_HEAD)
        kind, *lengths = head[:8], head[8:16], head[16:]
        if kind not in (_MODEL, _STEP):
            raise ValueError(f"export.load: {path} is no file of fgd.export.save, of this version")
        middle, end = itertools.accumulate(int.from_bytes(n, "little") for n in lengths)
        whole = _HEAD + end + _DIGEST
        if size != whole:
            problem = "cut short" if size < whole else "too long"
            raise ValueError(f"export.load: {path} is {problem}: {size} of {whole} bytes")
        body, digest = memoryview(file.read(end)), file.read(_DIGEST)
    sha256 = hashlib.sha256(head)
    sha256.update(body)
    if sha256.digest() != digest:
        raise ValueError(f"export.load: {path} is damaged: its content is not what was saved")
    names = ("arrays", "x") if kind == _MODEL else ("state", "batch")
    program, expected = _program.imported(f"export.load: {path}", body[:middle], names)
    try:
        arrays = unzipped(body[middle:])
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, by zipfile and NumPy
        what = str(error)[:200]  # it may quote the file
        raise ValueError(f"export.load: {path} has no arrays to be read ({what})") from error
    if problem := _program.difference(names, expected[:1], (arrays,)):
        raise ValueError(f"export.load: {path} lacks the arrays of its program: {problem}")
    values = {name: _trees.exactly("export.load", name, value) for name, value in arrays.items()}
    return Artifact(values, program, kind == _STEP)


def _of_variables(apply: Callable[..., Any]) -> Callable[[Variables, PyTree], PyTree]:
    """A model with arrays of its own as a function of both and an input."""
    return lambda variables, x: apply(*variables, x)[0]
