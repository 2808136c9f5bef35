"""What fgd uses of JAX beyond what JAX promises, tried on the versions in `TRIED`.

All of it, but for the rules of a primitive, in `_bilinear.py`, and what is read of a traced
function, in `_jaxpr.py`.

When JAX changes one of these, a test of `tests/test_jax.py` fails by its name.
"""

import enum
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TRIED = "0.10.1", "0.11.0", "0.12.0.1"


def keep_loop() -> AbstractContextManager[Any]:
    """Within it, a loop that runs once stays a loop.

    XLA unrolls a loop of one iteration into its surroundings, fuses it with them and rounds
    differently. The attribute is one of XLA's, which JAX passes on.
    """
    from jax.experimental.xla_metadata import set_xla_metadata

    return set_xla_metadata(**{"skip-simplify-while-loops_trip-count-one": "true"})


def is_tracing() -> bool:
    """Whether what is computed now is traced: within jit, grad, vmap or their like."""
    from jax._src import core

    return not core.trace_state_clean()


def was_forked() -> bool:
    """Whether this process is a fork of one in which JAX was at work, where it would hang."""
    return _forked_at_work


_forked_at_work = False


def _note_fork() -> None:
    from jax._src import xla_bridge

    global _forked_at_work
    _forked_at_work |= xla_bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class ClosuresAsArguments:
    """`jax.jit(function)`, whose programs take what `function` closes over as arguments.

    As constants, arrays would be compiled into every program. JAX has a way to hoist them out,
    behind a flag that must be set before JAX is imported, so here its two halves are asked for:
    arrays stay apart as a function is traced, and become arguments as it is lowered.
    https://docs.jax.dev/en/latest/internals/constants.html
    """

    def __init__(self, function: Callable[..., Any], **jit_options: Any) -> None:
        self._jitted = jax.jit(function, **jit_options)
        self._programs: dict[Any, Any] = {}
        self._fingerprints: dict[Any, str] = {}

    def lower(self, *args: Any) -> Any:
        """What is compiled for arguments like these."""
        return self._lower(self._trace(*args))

    def __call__(self, *args: Any) -> Any:
        """Compiles once for each shape of the arguments, place, and setting that a trace is of."""
        config: Any = jax.config
        if is_tracing() or config.jax_disable_jit or config.jax_debug_nans:
            return self._jitted(*args)
        traced = self._trace(*args)
        where = tuple(x.sharding if x.committed else None for x in jax.tree.leaves(args))
        kind = traced.jaxpr, where  # JAX keeps what it traced: the same object for the same kind
        if kind not in self._programs:
            self._programs[kind] = self._compile(traced)
        return self._programs[kind](*args)

    def fingerprint(self, *args: Any) -> str:
        """The same for functions that compute alike, and for no others; before it is compiled."""
        traced = self._trace(*args)
        if traced.jaxpr not in self._fingerprints:
            lowered = self._lower(traced)
            digest = hashlib.sha256(lowered.as_text().encode())
            for x in lowered._lowering.const_args:
                key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
                digest.update(np.asarray(jax.random.key_data(x) if key else x).tobytes())
            self._fingerprints[traced.jaxpr] = digest.hexdigest()
        return self._fingerprints[traced.jaxpr]

    def _compile(self, traced: Any) -> Any:
        """The program, with copies of its own of what the function closes over.

        On CPU an array of JAX's may be the memory of a NumPy array, which changes when that does.
        """
        program = self._lower(traced).compile()
        copies = [jnp.array(x, copy=True) for x in program._params.const_args]
        program._params = program._params._replace(const_args=jax.block_until_ready(copies))
        return program

    def _trace(self, *args: Any) -> Any:
        from jax._src import config

        with config.use_simplified_jaxpr_constants(True):
            return self._jitted.trace(*args)

    def _lower(self, traced: Any) -> Any:
        from jax._src import config
        from jax._src.interpreters.mlir import LoweringParameters

        options = LoweringParameters(hoist_constants_as_args=True)
        with config.use_simplified_jaxpr_constants(True):
            return traced.lower(_private_parameters=options)


def trace_settings() -> tuple[dict[str, Any], str]:
    """The settings on which programs depend: those that users know, by name; and the rest."""
    from jax._src import config

    named = {name: getattr(jax.config, name) for name in _SETTINGS}
    plain = bool | int | str | enum.Enum | None
    return named, repr([x for x in config.trace_context() if isinstance(x, plain)])


_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)


def tell_processes(key: str, value: str) -> None:
    """Leaves a note for all processes with JAX's coordination service, over an earlier one."""
    _coordination().key_value_set(key, value, allow_overwrite=True)


def told_processes(folder: str) -> dict[str, str]:
    """The notes in a folder, by the rest of their keys."""
    found = _coordination().key_value_dir_get(folder)
    return {key.removeprefix(f"{folder}/"): value for key, value in found}


def _coordination() -> Any:
    from jax._src import distributed

    return distributed.global_state.client


def reset_compilation_cache() -> None:
    """Makes JAX look again at the settings of its persistent cache, which it reads once."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


def container(node: Any) -> type | None:
    """The type of a node of a tree's structure; None of a leaf, NoneType of None."""
    data = node.node_data()
    if data is not None:
        return data[0]
    return None if node.num_leaves else type(None)


@contextmanager
def without_source_locations() -> Iterator[None]:
    """Within it, exported programs hold no paths of sources, so that equal ones are equal bytes."""
    config: Any = jax.config
    limit = config.jax_traceback_in_locations_limit
    config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        config.update("jax_traceback_in_locations_limit", limit)


def is_too_late_to_join(error: Exception) -> bool:
    """Whether `jax.distributed.initialize` was refused because JAX has computed already."""
    return isinstance(error, RuntimeError) and "before" in str(error)


def found_no_launcher(error: Exception) -> bool:
    """Whether `jax.distributed.initialize` found nothing that says how to join others."""
    return isinstance(error, ValueError) and "coordinator_address" in str(error)
