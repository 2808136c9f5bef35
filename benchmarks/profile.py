"""Where a job's time goes: `python -m benchmarks.profile job [peer]`.

The operations of the compiled program, from JAX's own trace, the longest first.
"""

import collections
import glob
import gzip
import importlib
import json
import os
import re
import sys
import tempfile
import time

from benchmarks.peers import PEERS
from benchmarks.problems import JOBS


def trace(run, folder):
    """Events [name, microseconds] of one run."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        run()
    (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return [(event["name"], event["dur"]) for event in events if event.get("ph") == "X"]


def meanings(folder):
    """By operation: the shape of its result, and what it was in the program."""
    found = {}
    for path in glob.glob(f"{folder}/*after_optimizations.txt"):
        with open(path) as file:
            operation = r"%([\w.-]+) = (\(.*?\)|\w+\[[\d,]*\])(.*)"
            for name, shape, rest in re.findall(operation, file.read()):
                origin = re.search(r'op_name="([^"]*)"', rest)
                found[name] = shape, origin[1].split("/", 1)[-1][-48:] if origin else ""
    return found


def main(job: str, peer: str = "fgd") -> None:
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " " + flags
        steps = JOBS[job].steps[0]
        run = importlib.import_module(f"benchmarks.peers.{PEERS[peer]}").JOBS[job](steps)
        run()
        steps = getattr(run, "steps", steps)
        start = time.perf_counter()
        run()
        whole = (time.perf_counter() - start) * 1e6 / steps
        totals = collections.defaultdict(lambda: [0, 0.0])
        known, events = meanings(folder), trace(run, folder)
    for name, microseconds in events:
        if name in known and not name.startswith("while"):  # a loop holds the others
            totals[name][0] += 1
            totals[name][1] += microseconds
    print(f"{JOBS[job].title}, {peer}: {whole:,.1f} µs a step\n")
    print("| operation | result | of | calls a step | µs a step |\n|---|---|---|--:|--:|")
    for name, (calls, sum_) in sorted(totals.items(), key=lambda item: -item[1][1])[:12]:
        shape, origin = known[name]
        print(f"| {name} | {shape} | {origin} | {calls / steps:.3g} | {sum_ / steps:,.1f} |")
    rest = sum(sum_ for _, sum_ in totals.values()) / steps
    print(f"\nAll operations together {rest:,.1f} µs; they may overlap, or be waited for.")


if __name__ == "__main__":
    main(*sys.argv[1:])
