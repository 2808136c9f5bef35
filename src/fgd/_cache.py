"""`compilation_cache`: compiled programs that outlive the process."""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as cache


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
    path = Path(folder).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"compilation_cache: expected a folder or a new path, but {path} is a file"
        )
    path.mkdir(parents=True, exist_ok=True)
    cache.reset_cache()  # JAX looks at its settings once, at the first program
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
