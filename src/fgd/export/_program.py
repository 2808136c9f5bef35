"""A model or a step as a StableHLO program of plain trees: dicts, lists and tuples of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
from jax.tree_util import keystr

from fgd import _jax
from fgd._checks import PyTree, spec
from fgd._keys import has_keys
from fgd._run.step import Step
from fgd._trees import count_rows, misfit, named, shape

_KNOWN = (dict, list, tuple, type(None))
_ADVICE = "read their number from the input, x.shape[0], or export just this one: any_batch=False"


def exported(apply: Any, params: PyTree, sample: PyTree, any_batch: bool) -> bytes:
    """`(arrays, inputs) -> y`, or for a step `-> (arrays, metrics)`, as jax.export's bytes."""
    kinds = jax.tree.map(lambda x: str(jax.random.key_impl(x)) if has_keys(x) else x.dtype, params)

    def program(arrays: dict[str, jax.Array], inputs: PyTree) -> PyTree:
        inputs = restored(sample, inputs)
        if isinstance(apply, Step):
            state, metrics = apply.update(decoded(kinds, arrays), inputs)
            return encoded(state), metrics
        return plain(apply(decoded(kinds, arrays), inputs))

    if any_batch:
        count_rows("export.save", sample, "sample")
    arrays, inputs = jax.eval_shape(encoded, params), jax.tree.map(_shape, plain(sample))
    jax.eval_shape(program, arrays, inputs)  # an error of the model's own is raised as it is, here
    export = _for_any_rows if any_batch else _for_these_rows
    result = export(program, arrays, inputs)
    if any_batch and not isinstance(apply, Step):
        _check_rows(result)
    return bytes(result.serialize())


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    given = shape(x)
    return jax.ShapeDtypeStruct(given.shape, jax.dtypes.canonicalize_dtype(given.dtype))


def _for_these_rows(program: Any, arrays: PyTree, inputs: PyTree) -> jax.export.Exported:
    with _jax.without_source_locations():
        return jax.export.export(jax.jit(program), platforms=("cpu", "cuda"))(arrays, inputs)


def _for_any_rows(program: Any, arrays: PyTree, inputs: PyTree) -> jax.export.Exported:
    def of(rows: Any) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), inputs)

    given = jax.tree.leaves(inputs)[0].shape[0]
    try:
        jax.eval_shape(program, arrays, of(given + 1))  # a reshape to `given` rows is found here
        return _for_these_rows(program, arrays, of(*jax.export.symbolic_shape("rows")))
    except Exception as error:  # of many kinds, by JAX and by the model
        what, *_ = str(error).splitlines() or [""]
        raise ValueError(
            f"export.save: works for {given} rows, but not for any number of them: {what} "
            f"({_ADVICE})"
        ) from error


def _check_rows(result: jax.export.Exported) -> None:
    *_, first = result.in_avals
    y = jax.tree.unflatten(result.out_tree, result.out_avals)
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        if leaf.shape[:1] != first.shape[:1]:
            raise ValueError(
                f"export.save: the output{keystr(path)} has shape {list(leaf.shape)} for any "
                f"number of rows, expected a row for each ({_ADVICE})"
            )


def plain(tree: PyTree) -> PyTree:
    """`tree`, if it is of containers that any JAX program knows, else its leaves by name."""

    def is_known(node: Any) -> bool:
        kind = _jax.container(node)
        return (kind is None or kind in _KNOWN) and all(map(is_known, node.children()))

    return tree if is_known(jax.tree.structure(tree)) else named("export.save", tree)


def restored(like: PyTree, given: PyTree) -> PyTree:
    """`plain`'s inverse."""
    if plain(like) is like:
        return given
    names = named("export.save", like)
    return jax.tree.unflatten(jax.tree.structure(like), [given[name] for name in names])


def encoded(tree: PyTree) -> dict[str, jax.Array]:
    """The leaves by name, as what NumPy knows: PRNG keys as their data, bfloat16 as its bits."""

    def encode(leaf: Any) -> Any:
        if has_keys(leaf):
            return jax.random.key_data(leaf)
        if np.dtype(leaf.dtype).kind == "V":
            return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        return leaf

    return {name: encode(leaf) for name, leaf in named("export.save", tree).items()}


def decoded(kinds: PyTree, arrays: dict[str, jax.Array]) -> PyTree:
    """`encoded`'s inverse; `kinds` are dtypes, and the names of kinds of keys."""

    def decode(x: jax.Array, kind: Any) -> jax.Array:
        if isinstance(kind, str):
            return jax.random.wrap_key_data(x, impl=kind)
        return x if kind == x.dtype else jax.lax.bitcast_convert_type(x, kind)

    leaves = [decode(arrays[name], kind) for name, kind in named("export.save", kinds).items()]
    return jax.tree.unflatten(jax.tree.structure(kinds), leaves)


def imported(
    what: str, content: Any, names: tuple[str, str]
) -> tuple[Callable[..., Any], tuple[PyTree, PyTree]]:
    """A function of `exported`'s bytes, which refuses what does not fit; and what does fit.

    Args:
      what: begins a message about the bytes.
      content: the bytes.
      names: of the two arguments, for a message about them.
    """
    try:
        program = jax.export.deserialize(bytearray(content))
        (arrays, inputs), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: the reader takes what it finds for granted
        raise ValueError(
            f"{what} has no program that JAX {jax.__version__} can read: it is another version's, "
            f"or was altered ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    low = jax.export.minimum_supported_calling_convention_version
    high = jax.export.maximum_supported_calling_convention_version
    if not low <= program.calling_convention_version <= high:
        raise ValueError(
            f"{what} has a program of calling convention {program.calling_convention_version}, "
            f"JAX {jax.__version__} knows {low} to {high}; save it with a version like this"
        )
    expected = arrays, inputs

    def call(*given: PyTree) -> PyTree:  # traced, so this costs a known kind of inputs nothing
        if problem := difference(names, expected, given):
            raise ValueError(f"artifact: {problem}")
        leaves = [_leaves(names, given)[name] for name in _leaves(names, expected)]
        return program.call(*jax.tree.unflatten(jax.tree.structure(expected), leaves))

    return jax.jit(call), expected


def difference(names: tuple[str, ...], expected: PyTree, given: PyTree) -> str:
    """How what is given differs from what a program takes, in words; empty if in nothing."""
    wanted, found = _leaves(names, expected), _leaves(names, given)
    sizes: dict[str, Any] = {}  # of the axes that a program leaves open, as they are met

    def axis(open_: Any, length: Any) -> Any:
        if isinstance(open_, int) or length == 0:
            return open_
        return sizes.setdefault(str(open_), length)

    wrong = []
    for name in [name for name in wanted if name in found]:
        want, have = wanted[name], found[name]
        axes = list(want.shape)
        if len(axes) == len(have.shape):
            axes = list(map(axis, axes, have.shape))
        if (have.dtype, [*have.shape]) != (want.dtype, axes):
            text = f"{want.dtype}[{', '.join(map(str, axes))}]"
            rows = ", of one row at least" if 0 in have.shape and 0 not in axes else ""
            wrong.append(f"{name} is {spec(have)}, expected {text}{rows}")
    return misfit(
        [name for name in wanted if name not in found],
        [name for name in found if name not in wanted],
        wrong,
    )


def _leaves(names: tuple[str, ...], trees: PyTree) -> dict[str, Any]:
    return {
        names[path[0].idx] + keystr(path[1:]): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }
