"""fgd on CPU with a device for each core, over which a sweep's runs are spread."""

import os
from functools import partial

import jax

from benchmarks.peers import fgd_fit

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

JOBS = {}
if jax.default_backend() == "cpu":
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    JOBS = {
        name: partial(fgd_fit.JOBS[name], mesh=mesh)
        for name in ("sweep_r2b", "sweep_mlp", "sweep_border")
    }
