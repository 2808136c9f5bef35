"""One job of one peer, in a process of its own: `python -m benchmarks._worker peer job steps`.

It answers each line of its input with a line of JSON, so that peers can take turns.
"""

import importlib
import json
import resource
import sys
import time

from benchmarks.peers import PEERS


def answer(**fields):
    print("#" + json.dumps(fields), flush=True)


def timed(run, times=1):
    start = time.perf_counter()
    for _ in range(times):
        value = run()
    seconds = (time.perf_counter() - start) / times
    if isinstance(value, tuple):  # a process that knows its own time
        value, seconds = value
    return {"seconds": seconds, "value": value}


def main(peer: str, job: str, steps: int) -> None:
    try:
        module = importlib.import_module(f"benchmarks.peers.{PEERS[peer]}")
        make = module.JOBS.get(job)
    except ImportError as error:
        return answer(missing=str(error))
    if make is None:
        return answer(missing="not one of its jobs")
    run = make(steps)
    answer(steps=getattr(run, "steps", steps), **timed(run))  # the first run compiles
    # Short runs are repeated, and warmed up after the other peers' turns: one alone would measure
    # how the processor wakes up and finds its data again.
    seconds = timed(run)["seconds"]
    times = max(1, round(0.05 / seconds))
    for _ in sys.stdin:
        if seconds < 1:
            run()
        answer(**timed(run, times))
    # Of this process and of those it started; kilobytes on Linux.
    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    answer(peak_mb=max(peaks) / 1024)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
