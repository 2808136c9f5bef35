"""The benchmarks run and report; what they measure is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def benchmarks(*flags):
    command = [sys.executable, "-m", "benchmarks", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_quick(tmp_path):
    peers = ["fgd", "fgd train", "hand-written scan", "PyTorch eager"]
    done = benchmarks(
        *("r2b", "r2c", "r5e"),
        "--quick",
        "--rounds",
        "2",
        "--output",
        str(tmp_path),
        "--peers",
        *peers,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert min(results["limits"].values()) > 0
    for job in ("r2b", "r5e"):
        measured = {p: r for p, r in results["jobs"][job].items() if "seconds" in r}
        assert {*peers[:3]} <= {*measured}
        for result in measured.values():
            assert len(result["seconds"]) == 2
            assert min(result["seconds"]) > 0
            assert result["peak_mb"] > 50
        # The peers do the same work: the loss after the same steps from the same start.
        losses = [result["value"] for result in measured.values()]
        assert losses == pytest.approx(losses[:1] * len(losses), rel=1e-3 if job == "r2b" else 0.2)
    table = (tmp_path / "results.md").read_text()
    assert "| fgd |" in table
    assert "quick: the times mean nothing" in table
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_the_chart_has_room_for_every_peer(tmp_path):
    from benchmarks import _report
    from benchmarks.peers import PEERS
    from benchmarks.problems import JOBS

    one = {"seconds": [1.0, 2.0], "steps": 1, "of_steps": 1}
    _report.chart({job: dict.fromkeys(PEERS, one) for job in JOBS}, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_profile():
    """The longest operation of R3e's is a product of matrices."""
    command = [sys.executable, "-m", "benchmarks.profile", "r3e"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first = done.stdout.split("\n")[4]
    assert "dot" in first, done.stdout


@pytest.mark.slow
def test_a_missing_peer_is_skipped(tmp_path):
    """Reported, never fatal."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    code = f"""
import os, runpy, sys
os.environ["PYTHONPATH"] = {str(tmp_path)!r}
sys.argv = ["benchmarks", "r3a", "--quick", "--rounds", "1", "--output", {str(tmp_path)!r},
            "--peers", "fgd", "PyTorch eager"]
runpy.run_module("benchmarks", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "r3a: PyTorch eager is skipped: no torch here" in done.stderr
    assert "| PyTorch eager | skipped: no torch here |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["r9"], "unknown job r9; known: r2b, r2c"),
        (["r2b", "--peers", "Theano"], "unknown peer Theano; known: fgd, "),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_bad_flags(flags, message):
    done = benchmarks(*flags)
    assert done.returncode == 2
    assert message in done.stderr
