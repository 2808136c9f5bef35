"""Every test runs strictly: shapes checked at run time, no silent promotion, several devices."""

import os

# Before anything imports matplotlib or jax.
os.environ.setdefault("MPLBACKEND", "agg")
# Several tests at once keep all cores busy: XLA need not split each compilation over them.
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_parallel_codegen_split_count=1".strip()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jaxtyping.install_import_hook("fgd", "beartype.beartype")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)

# Most of the time of a test is XLA's. What is about values and not about their last bits is
# compiled without most of XLA's optimizations, unless FGD_LONG is set, as CI does.
QUICK = not os.environ.get("FGD_LONG")
OPTIMIZED = {  # the files in which rounding, memory, or XLA itself is the point
    "test_export", "test_jax", "test_laws", "test_platform", "test_regression_parity"
}  # fmt: skip


@pytest.fixture(autouse=True)
def optimized(request):
    """XLA as it is for users, in the files that need it."""
    plain = QUICK and request.node.path.stem not in OPTIMIZED
    jax.config.update("jax_disable_most_optimizations", plain)


_compiled = 0


def _count(event: str, _: float, **__: object) -> None:
    global _compiled
    _compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.hookimpl(trylast=True)  # after the terminal is there
def pytest_configure(config):
    """A test that fails is named when it fails: a long run need not be waited for."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:  # a process of pytest-xdist's has none
        config.pluginmanager.register(NamesFailures(terminal))


class NamesFailures:
    def __init__(self, terminal):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.terminal.ensure_newline()
            self.terminal.write_line(f"FAILED {report.nodeid} ({report.when})", red=True)


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
