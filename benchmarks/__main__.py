"""Runs jobs in fgd and in every peer that can do them, in turns, and reports.

    python -m benchmarks [job …] [--rounds 5] [--quick] [--output build/benchmarks]

Every peer has a process of its own, which waits while another has its turn. Run it on an idle
machine.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks.peers import PEERS
from benchmarks.problems import JOBS


class Worker:
    """One job of one peer, in its own process."""

    def __init__(self, peer: str, job: str, steps: int) -> None:
        command = [sys.executable, "-m", "benchmarks._worker", peer, job, str(steps)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hear(self) -> dict[str, Any]:
        """Its next answer; it may print other things."""
        for line in self._process.stdout or ():
            if line.startswith("#"):
                return json.loads(line[1:])
        return {"missing": f"ended with exit code {self._process.wait()}"}

    def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.hear()

    def end(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = self.hear()
        self._process.wait()
        return answer


def measure(job: str, peers: list[str], steps: int, rounds: int) -> dict[str, dict[str, Any]]:
    """By peer: seconds of every round, of the first run, peak memory, last loss; or why not."""
    workers, results = {}, {}
    for peer in peers:
        worker = Worker(peer, job, steps)
        first = worker.hear()
        if "missing" in first:
            if first["missing"] != "not one of its jobs":
                results[peer] = first
                print(f"{job}: {peer} is skipped: {first['missing']}", file=sys.stderr)
            worker.end()
            continue
        workers[peer] = worker
        results[peer] = {
            "seconds": [],
            "steps": first["steps"],
            "of_steps": steps,
            "first": first["seconds"],
            "value": first["value"],
        }
    names = list(workers)
    for turn in range(rounds):
        for peer in names[turn % len(names) :] + names[: turn % len(names)]:  # each follows each
            results[peer]["seconds"].append(workers[peer].ask()["seconds"])
    for peer, worker in workers.items():
        results[peer] |= worker.end()
    return results


def main() -> None:
    flags = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    flags.add_argument("jobs", nargs="*", help=f"of {', '.join(JOBS)}; none: all")
    flags.add_argument(
        "--rounds", type=int, default=5, help="timed runs of each, at least 5 to count"
    )
    flags.add_argument("--quick", action="store_true", help="few steps: to see that it works")
    flags.add_argument("--peers", nargs="+", default=list(PEERS), help="by name; default: all")
    flags.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    args = flags.parse_args()
    for kind, names, known in (("job", args.jobs, JOBS), ("peer", args.peers, PEERS)):
        if unknown := [name for name in names if name not in known]:
            flags.error(f"unknown {kind} {', '.join(unknown)}; known: {', '.join(known)}")
    if args.rounds < 1:
        flags.error(f"--rounds must be at least 1, got {args.rounds}")
    quick = ["quick"] if args.quick else []
    command = [sys.executable, "-m", "benchmarks._limits", *quick]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    limits = found["limits"]
    heading = (
        f"# Benchmarks\n\n{found['machine']}. {args.rounds} rounds in turns, a process for each "
        f"peer{', quick: the times mean nothing' if quick else ''}."
    )
    results = {}
    for job in args.jobs or JOBS:
        steps = JOBS[job].steps[args.quick]
        results[job] = measure(job, args.peers, steps, args.rounds)
        _report.save(results, limits, heading, args.output)  # after each, for it may take long
        print(_report.markdown({job: results[job]}, limits, "").split("\n", 4)[-1], flush=True)
    print(f"wrote {args.output}/results.md, results.json and ratios.png")


if __name__ == "__main__":
    main()
