"""fgd on a GPU: rows beside the plain one, which are absent where there is none."""

from functools import partial

import jax

from benchmarks.peers import add_xla_flags, fgd_fit


def jobs(*names, **options):
    """fgd's jobs of these names."""
    if jax.default_backend() != "gpu":
        return {}
    return {name: partial(fgd_fit.JOBS[name], **options) for name in names}


def with_command_buffers(kinds):
    """Runs whose CUDA graphs XLA makes of these kinds of commands."""
    add_xla_flags(f"--xla_gpu_enable_command_buffer={kinds}")
    return jobs("r2b", "r3e", "r3f", "r5e", "cnn")
