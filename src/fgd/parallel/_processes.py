"""Joining the processes of a job, and ending them together."""

import os
import sys
from types import TracebackType
from typing import Any

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
    local = None
    if given == (None, None, None) and (_is_shell_of_slurm() or _is_alone_in_open_mpi()):
        return
    if "OMPI_COMM_WORLD_RANK" in os.environ and "OMPI_MCA_orte_hnp_uri" not in os.environ:
        given, local = _of_open_mpi_5(given)
    missing = [n for n, x in zip(_NAMES, given, strict=True) if x is None]
    if 0 < len(missing) < 3 and not launched:
        raise ValueError(
            f"parallel.init: {' and '.join(missing)} missing beside the other arguments; give all "
            f"of {', '.join(_NAMES)}, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID"
        )
    # JAX's service for preemptions takes SIGTERM for itself and goes on; Python's handlers end it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            local_device_ids=local,
            initialization_timeout=timeouts[0],
            heartbeat_timeout_seconds=timeouts[1],
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except Exception as error:
        if len(missing) == 3 and not launched:
            if not (_jax.found_no_launcher(error) or _jax.is_too_late_to_join(error)):
                # What JAX took for a launcher started this one alone: a notebook in Kubernetes.
                text = (
                    f"fgd: parallel.init found no other processes ({type(error).__name__}: {error})"
                )
                print(text, file=sys.stderr)
            return
        if _jax.is_too_late_to_join(error):
            raise RuntimeError(
                "parallel.init: JAX has computed something already, and can't join other processes "
                "any more; call it first"
            ) from error
        raise
    if jax.process_count() > 1:
        sys.excepthook = _end
        watch(timeouts[1])


def _is_shell_of_slurm() -> bool:
    """Whether this is the one process in which SLURM runs a batch script, and not one of srun's."""
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_NODELIST" in os.environ:
        return False
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks != "1":
        raise ValueError(
            f"parallel.init: this is the script of a job of SLURM_NTASKS={tasks}, not one of its "
            "tasks; start the program with srun: srun python …"
        )
    return True


def _is_alone_in_open_mpi() -> bool:
    return os.environ.get("OMPI_COMM_WORLD_SIZE") == "1"


def _of_open_mpi_5(given: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], int | None]:
    """What Open MPI says since its version 5, which no longer names an address; and the device."""
    address, processes, process = given
    names = ("SIZE", "RANK", "LOCAL_RANK")
    size, rank, local = (int(os.environ.get(f"OMPI_COMM_WORLD_{name}", 0)) for name in names)
    if address is None:
        raise ValueError(
            f"parallel.init: Open MPI says that this is process {rank} of {size}, but since its "
            "version 5 not where process 0 is; mpirun -x JAX_COORDINATOR_ADDRESS=host:port …, with "
            "the first machine and a free port of it, says it"
        )
    filled = address, size if processes is None else processes, rank if process is None else process
    return filled, None if "JAX_LOCAL_DEVICE_IDS" in os.environ else local


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
