"""Every test runs strictly: shapes checked at run time, no silent promotion, several devices."""

import os

# Before anything imports matplotlib or jax.
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("fgd", "beartype.beartype")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)

_compiled = 0


def _count(event: str, _: float, **__: object) -> None:
    global _compiled
    _compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture
def compiled():
    """How many programs XLA has compiled so far."""
    return lambda: _compiled


@pytest.fixture
def x64():
    """float64, for comparisons to more than seven digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_users():
    """Without the run-time shape checks, which would speak before fgd's own messages can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
