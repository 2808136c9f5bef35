"""Joining the processes of a job, and ending them together."""

import os
import sys
from types import TracebackType

import jax
from jax.sharding import AxisType, Mesh

from fgd import _checks, _jax
from fgd.parallel._placement import AXIS
from fgd.parallel._watch import watch

_NAMES = "coordinator_address", "num_processes", "process_id"
# What launchers that JAX knows tell each process of its number; Kubernetes says it to indexed jobs.
_LAUNCHERS = "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX", "TPU_WORKER_ID"

# Seconds that a process which has ended waits for the others: one may plot or save for long. Those
# that die meanwhile miss their heartbeats.
_SHUTDOWN = 24 * 3600


def init(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    initialization_timeout: int = 120,
    heartbeat_timeout: int = 20,
) -> Mesh:
    """Joins the processes of a job, and gives the mesh of all of their devices.

    Call it first in every process, before JAX computes anything; then run the same program in each
    with `mesh=mesh`. Under SLURM, Open MPI, Kubernetes and on TPUs it needs no arguments; alone, in
    a process that nobody else waits for, it gives that one's own devices.

    When a process ends or dies, those that wait for it end too, within `heartbeat_timeout`, and say
    on standard error which one is gone: after an exception, caught or not, after `sys.exit`, and
    after a signal. SIGTERM does in a process of several what it does in one alone.

    Args:
      coordinator_address: "host:port" of process 0, a free port that all can reach. None: the
        environment's JAX_COORDINATOR_ADDRESS, or what the launcher says.
      num_processes: processes in all. None: JAX_NUM_PROCESSES, or what the launcher says.
      process_id: this one's number, from 0. None: JAX_PROCESS_ID, or what the launcher says.
      initialization_timeout: seconds in which all must have come.
      heartbeat_timeout: seconds without a sign of life after which a process counts as dead.

    Returns:
      A mesh with one axis, "data", over the devices of all processes. A second call gives it again.

    Raises:
      RuntimeError: JAX has computed already, so that it is too late to join.
      TypeError, ValueError: an argument makes no sense, or is missing beside the others.

    Example:
      >>> import fgd
      >>> mesh = fgd.parallel.init()
      >>> mesh.axis_names, mesh.size == jax.device_count()
      (('data',), True)

    Source: `jax.distributed.initialize`, with shorter timeouts.
    """
    if not jax.distributed.is_initialized():
        timeouts = (
            _checks.count(
                "parallel.init", "initialization_timeout", initialization_timeout, least=1
            ),
            _checks.count("parallel.init", "heartbeat_timeout", heartbeat_timeout, least=1),
        )
        if not isinstance(coordinator_address, str | None):
            raise TypeError(
                'parallel.init: coordinator_address must be a str, "host:port", got '
                f"{_checks.describe(coordinator_address)}"
            )
        given = (
            coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
            _number("num_processes", num_processes, least=1),
            _number("process_id", process_id, least=0),
        )
        _join(given, timeouts)
    # Axes of the Auto type, so that the mesh serves other programs as it serves fgd's.
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def _join(given: tuple[str | None, int | None, int | None], timeouts: tuple[int, int]) -> None:
    launched = any(name in os.environ for name in _LAUNCHERS)
    missing = [n for n, x in zip(_NAMES, given, strict=True) if x is None]
    if 0 < len(missing) < 3 and not launched:
        raise ValueError(
            f"parallel.init: {' and '.join(missing)} missing beside the other arguments; give all "
            f"of {', '.join(_NAMES)}, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID"
        )
    alone = len(missing) == 3 and not launched
    # JAX's service for preemptions takes SIGTERM for itself and goes on; Python's handlers end it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=timeouts[0],
            heartbeat_timeout_seconds=timeouts[1],
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except ValueError as error:
        if alone and _jax.found_no_launcher(error):
            return
        raise
    except RuntimeError as error:
        if alone:
            return
        if not _jax.is_too_late_to_join(error):
            raise
        raise RuntimeError(
            "parallel.init: JAX has computed something already, and can't join other processes "
            "any more; call it first"
        ) from error
    if jax.process_count() > 1:
        sys.excepthook = _end
        watch(timeouts[1])


_show = sys.excepthook


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends the process for good: an orderly exit would wait for those that wait for this one."""
    _show(kind, error, trace)
    said = "failed; the others end too"
    if any(word in str(error) for word in ("Gloo", "NCCL", "by peer")):
        said = "lost its connection to another, which died; see what that one wrote last"
    print(f"fgd: process {jax.process_index()} {said}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _number(name: str, value: int | None, *, least: int) -> int | None:
    if value is None:
        text = os.environ.get(f"JAX_{name.upper()}")
        if text is None:
            return None
        if not text.isdecimal():
            raise ValueError(f"parallel.init: JAX_{name.upper()} must be a number, got {text!r}")
        value = int(text)
    return _checks.count("parallel.init", name, value, least=least)
