"""Where a job's time goes: `python -m benchmarks.profile job [peer]`.

The operations of the compiled program, from JAX's own trace, the longest first.
"""

import collections
import glob
import gzip
import importlib
import json
import re
import sys
import tempfile
import time

from benchmarks.peers import PEERS, add_xla_flags
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
        add_xla_flags(f"--xla_dump_to={folder} --xla_dump_hlo_as_text")
        steps = JOBS[job].steps[0]
        run = importlib.import_module(f"benchmarks.peers.{PEERS[peer]}").JOBS[job](steps)
        run()
        steps = getattr(run, "steps", steps)
        start = time.perf_counter()
        run()
        whole = (time.perf_counter() - start) * 1e6 / steps
        known, events = meanings(folder), trace(run, folder)
    calls, times = collections.Counter(), collections.Counter()
    for name, microseconds in events:
        if name in known and not name.startswith("while"):  # a loop holds the others
            calls[name] += 1
            times[name] += microseconds
    print(f"{JOBS[job].title}, {peer}: {whole:,.1f} µs a step\n")
    print("| operation | result | of | calls a step | µs a step |\n|---|---|---|--:|--:|")
    for name, time_ in times.most_common(12):
        shape, origin = known[name]
        print(f"| {name} | {shape} | {origin} | {calls[name] / steps:.3g} | {time_ / steps:,.1f} |")
    together = times.total() / steps
    print(f"\nAll operations together {together:,.1f} µs; they may overlap, or be waited for.")


if __name__ == "__main__":
    main(*sys.argv[1:])
