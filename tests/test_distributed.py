"""Law 4 over processes: real ones, that talk through sockets, and what happens when one dies."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scripts
import worker

import fgd

WORKER = Path(worker.__file__)
LINES = "loss", "on one device"
LOST = "process [01] lost its connection to another, which died"


def start(processes, *arguments):
    """So many processes of one job, with their outputs as pipes."""
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, arguments)],
            env=os.environ | scripts.QUICKLY | job | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def ended(process, timeout):
    """The exit code and standard error of a process, which may not hang."""
    try:
        _, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same program on one device of this process."""
    with jax.enable_x64(True):
        return worker.everything(None, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(
    ("processes", "devices", "task"),
    [
        pytest.param(1, 4, "little", marks=pytest.mark.slow),
        (2, 2, "everything"),
        pytest.param(4, 1, "little", marks=pytest.mark.slow),
    ],
)
def test_the_number_of_processes_does_not_matter(processes, devices, task, alone, tmp_path):
    job = start(processes, task, tmp_path, devices)
    try:
        outcomes = [ended(process, 120) for process in job]
    finally:
        for process in job:
            process.kill()
            process.communicate()
    assert [code for code, _ in outcomes] == [0] * processes, outcomes
    for i, (_, errors) in enumerate(outcomes):
        results = np.load(tmp_path / f"{processes}-{i}.npz")
        assert set(results) == {
            x for x in alone if task == "everything" or "fit" in x or "str" in x
        }
        for name, value in results.items():
            tolerance = 1e-4 if name.startswith("paced") else 1e-9
            np.testing.assert_allclose(value, alone[name], rtol=tolerance, atol=1e-9, err_msg=name)
        assert ("step/s" in errors) == (i == 0 and task == "everything"), "process 0 alone shows"
    if task == "little":
        return
    lines = (tmp_path / f"log-{processes}.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines if "loss" in x] == list(range(1, 13))


# What the one that is left says: fgd's own words, or whichever comes first of the lost connection
# and the heartbeats that JAX counts.
DIED = LOST + r"|unhealthy \(stopped sending heartbeats\)|leader task.*died|Heartbeat"
LEFT = "fgd: process {other} waits in train for process {victim}, which has "
ENDS = {
    "killed": DIED,
    "stopped": DIED,
    "terminated": "train: ended by SIGTERM after .* steps",
    "raises": DIED,
    "exits": LEFT + r"left it \(SystemExit: 0\)",
    "catches": LEFT + r"left it \(OSError: the disk is gone\)",
    "retries": LEFT + r"left it \(OSError: the disk is gone\)",
    "runs dry": LEFT + r"left it \(ValueError: train: the stream ended after 5 of",
    "ends before": LEFT + "ended without it",
}
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "terminated": signal.SIGTERM}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "victim"),
    [(how, 1) for how in ENDS]
    + [pytest.param(how, 0, marks=() if how in SIGNALS else scripts.at_full_size) for how in ENDS],
)
def test_whatever_ends_one_process_ends_the_others(how, victim):
    """In the middle of training, with a message, soon after the timeout at the latest."""
    job = start(2, f"{how}-{victim}", ".", 1)
    try:
        if how in SIGNALS:
            for process in job:
                assert any(line == "training\n" for line in process.stdout)
            job[victim].send_signal(SIGNALS[how])
        code, errors = ended(job[1 - victim], 60)
        if how in ("terminated", "raises"):
            gone, reason = ended(job[victim], 30)
            assert gone == {"terminated": 143, "raises": 1}[how]
            if how == "raises":
                assert "OSError: the disk is gone" in reason
                assert f"fgd: process {victim} failed; the others end too" in reason
    finally:
        for process in job:
            process.kill()
            process.communicate()
    assert code != 0
    assert re.search(ENDS[how].format(other=1 - victim, victim=victim), errors), errors


@pytest.mark.slow
def test_checkpoints_of_two_processes(tmp_path, x64):
    """SIGTERM in one ends both at the same step; they go on bit for bit; one can read it alone."""
    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()

    def run(kind, folder):
        job = start(2, f"saves-{kind}", folder, 1)
        try:
            return [ended(process, 120) for process in job]
        finally:
            for process in job:
                process.kill()
                process.communicate()

    for code, errors in run("ended", tmp_path / "ended"):
        assert code == 143, errors
        assert "ended by SIGTERM after 30 of 40 steps; the state is in" in errors
    checkpoints = fgd.Checkpoints(tmp_path / "ended" / "checkpoints")
    assert checkpoints.latest() == 30
    for folder in (tmp_path / "ended", tmp_path / "whole"):
        for code, errors in run("whole", folder):
            assert code == 0, errors
    ours, theirs = (
        [np.load(tmp_path / x / f"{i}.npz") for i in (0, 1)] for x in ("ended", "whole")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.files) > 8
        for name in b.files:
            np.testing.assert_array_equal(a[name], b[name])
    logs = [(tmp_path / x / "log.jsonl").read_text() for x in ("ended", "whole")]
    assert logs[0] == logs[1]
    given = worker.problem()
    state = checkpoints.restore(given.start(given.step()))
    for i, leaf in enumerate(jax.tree.leaves((state.params, state.opt_state))):
        np.testing.assert_array_equal(leaf, theirs[0][f"arr_{i}"])


@pytest.mark.slow
def test_nobody_is_ended_for_an_error_that_all_share():
    """Nor for waiting, at its end, for a process that is busy longer than the timeout."""
    job = start(2, "lingers", ".", 1)
    try:
        outcomes = [process.communicate(timeout=120) for process in job]
    finally:
        for process in job:
            process.kill()
            process.communicate()
    assert [process.returncode for process in job] == [0, 0], outcomes
    assert all(said.endswith("done\n") for said, _ in outcomes), outcomes


PROGRAM = """
import fgd, jax
mesh = fgd.parallel.init(initialization_timeout=20)
print(jax.process_index(), jax.process_count(), mesh.size)
"""
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


def launched(processes=1, **environment):
    """What a launcher starts, by the variables that it sets: how each process ends."""
    job = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ
            | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
            | {name: value.format(rank=i) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        return [process.communicate(timeout=60) for process in job]
    finally:
        for process in job:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (SLURM | {"SLURM_NTASKS": "1"}, ""),
        (SLURM | {"SLURM_NTASKS": "8"}, "SLURM_NTASKS=8, not one of its tasks; .* with srun"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "2"},
            "process 0 of 2, but since its version 5 .*JAX_COORDINATOR_ADDRESS=host:port",
        ),
    ],
    ids=["sbatch of one", "sbatch without srun", "mpirun of one", "mpirun"],
)
def test_launchers_that_say_less_than_jax_needs(environment, said):
    ((printed, errors),) = launched(**environment)
    assert printed == ("" if said else "0 1 1\n"), errors
    assert re.search(said, errors), errors


@pytest.mark.slow
def test_a_notebook_in_a_pod_is_alone(tmp_path):
    """Where JAX's search for a job fails: here of a stand-in for Kubernetes' own client."""
    (tmp_path / "kubernetes.py").write_text(
        "class config:\n    def load_incluster_config():\n        raise KeyError('job-name')\n"
    )
    path = f"{Path(fgd.__file__).parents[1]}{os.pathsep}{tmp_path}"
    ((printed, errors),) = launched(KUBERNETES_SERVICE_HOST="10.0.0.1", PYTHONPATH=path)
    assert printed == "0 1 1\n", errors
    assert "fgd: parallel.init found no other processes (KeyError: 'job-name')" in errors


@pytest.mark.slow
def test_open_mpi_5_with_an_address():
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    ranks = {"OMPI_COMM_WORLD_RANK": "{rank}", "OMPI_COMM_WORLD_LOCAL_RANK": "{rank}"}
    size = {"OMPI_COMM_WORLD_SIZE": "2"}
    outcomes = launched(2, **ranks, **size, JAX_COORDINATOR_ADDRESS=address)
    assert [said.splitlines()[-1:] for said, _ in outcomes] == [["0 2 2"], ["1 2 2"]], outcomes


@pytest.mark.slow
def test_the_example(tmp_path):
    """One command starts its processes, which reach the numbers of one device."""
    done = scripts.run("distributed.py", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout.replace("→", " ").splitlines()
    assert "2 processes, 4 devices in all" in said
    numbers = {name: line.split()[-1] for line in said for name in LINES if line.startswith(name)}
    differences = re.findall(r"(?:difference|stream) +(\S+)", done.stdout)
    assert len(differences) == 2
    assert all(float(x) < 1e-5 for x in differences)
    assert numbers["loss"] == numbers["on one device"]
