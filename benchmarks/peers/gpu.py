"""fgd on a GPU: rows beside the plain one, which are absent where there is none."""

import os
from functools import partial


def jobs(names, flag=None, **options):
    """fgd's jobs with one of XLA's flags set, which has to be before JAX looks at devices."""
    if flag:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    import jax

    from benchmarks.peers import fgd_fit

    if jax.default_backend() != "gpu":
        return {}
    return {name: partial(fgd_fit.JOBS[name], **options) for name in names}
