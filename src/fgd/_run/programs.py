"""Compiled programs: who keeps them, for how long, and where they outlive the process."""

import os
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax

from fgd import _jax
from fgd._files import as_path

# One rule for all of fgd: a program belongs to the object it was compiled for (a step, a metric
# function, a run), is made once for every use of it, and is freed with it.
_kept: "weakref.WeakKeyDictionary[Any, dict[Hashable, Any]]" = weakref.WeakKeyDictionary()


def keep(owner: Any, use: Hashable, make: Callable[[], Any]) -> Any:
    """`make()`, once for each `use` of `owner`; what it returns must refer to it weakly.

    An owner that can't be hashed, or has no room for weak references, has it made every time.
    """
    config: Any = jax.config
    use = use, config.jax_default_prng_impl  # on which a trace depends, and which jit overlooks
    try:
        programs = _kept.setdefault(owner, {})
    except TypeError:
        return make()
    if use not in programs:
        programs[use] = make()
    return programs[use]


def weak(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """A call that gives `function`, without keeping it alive if that is possible."""
    try:
        return weakref.ref(function)  # type: ignore[return-value]
    except TypeError:
        return lambda: function


def compilation_cache(folder: str | os.PathLike[str]) -> Path:
    """Keeps every program that is compiled from now on in a folder, and reads it from there.

    JAX's persistent cache, told to keep small programs too. A process that compiles what an earlier
    one did, with the same versions and for the same devices, loads it instead; results are the
    same, bit for bit. Nothing is ever deleted: empty the folder when it grows too large.

    Args:
      folder: made if need be. It belongs to one kind of machine: do not share it between others,
        for a program is made for the processor that compiles it.

    Returns:
      The folder, as an absolute path.

    Raises:
      NotADirectoryError: something else is in its place.

    Example:
      >>> import fgd
      >>> fgd.compilation_cache("~/.cache/fgd")  # doctest: +SKIP
      PosixPath('/home/ada/.cache/fgd')
    """
    path = as_path("compilation_cache", folder, "folder").expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"compilation_cache: expected a folder or a new path, but {path} is a file"
        )
    path.mkdir(parents=True, exist_ok=True)
    _jax.reset_compilation_cache()
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
