"""Lines of code for the same jobs in fgd, Keras and Lightning, each run to the same metric.

    python -m benchmarks.lines [--output build/lines.json]

A job is a function of (train, valid) that returns predictions of the validation rows; NumPy
computes their mean loss. Counted are the lines of its body, formatted to 100 columns: no blank
lines, comments, imports, nor the loading of data. Every peer has a process of its own.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from benchmarks.jobs import data

PEERS = {"fgd": "in_fgd", "Keras": "in_keras", "Lightning": "in_lightning"}
JOBS = {  # name: (in words, the loss that each peer must reach)
    "early_stopping": ("early stopping, best parameters back", 0.62),
    "validation": ("validation each epoch", 0.62),
    "plot": ("plot of training and validation", 0.62),
    "checkpoints": ("checkpoints, periodic and best", 0.62),
    "weights": ("weights of rows and classes", 0.68),
    "one_logit": ("one-logit classifier", 0.4),
    "sequences": ("logits [rows, time, classes]", 1.35),
    "average": ("average of parameters (EMA)", 0.62),
    "bfloat16": ("bfloat16", 0.62),
    "autoencoder": ("autoencoder", 0.008),
}
FILES = {"plot": ["history.png"], "checkpoints": ["kept"]}  # what a job leaves


def lines(peer):
    """{job: lines of code in its body}."""
    path = Path(__file__).parent / "jobs" / f"{PEERS[peer]}.py"
    source = path.read_text()
    text = source.splitlines()
    counts = {}
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef):
            body = text[function.body[0].lineno - 1 : function.end_lineno]
            code = [line for line in map(str.strip, body) if line and not line.startswith("#")]
            counts[function.name] = len(code)
    return counts


def run(peer):
    """{job: the loss of its predictions}, of one peer, in this process."""
    jobs = import_module(f"benchmarks.jobs.{PEERS[peer]}")
    losses = {}
    for job in JOBS:
        given = train, valid = data.of(job)
        if peer == "Lightning":
            import torch

            def tensors(part):
                if isinstance(part, tuple):
                    return tuple(map(tensors, part))
                tensor = torch.as_tensor(part)
                return tensor if tensor.is_floating_point() else tensor.long()

            train, valid = tensors(given)
        here = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                predictions = getattr(jobs, job)(train, valid)
                missing = [name for name in FILES.get(job, []) if not Path(name).exists()]
            finally:
                os.chdir(here)
        assert not missing, f"{peer}, {job}: no {missing}"
        if hasattr(predictions, "detach"):
            predictions = predictions.detach()
        if peer == "Keras":
            import keras

            keras.config.set_dtype_policy("float32")
        losses[job] = float(data.score(job, predictions, given[1]))
        print(f"{peer}, {job}: {losses[job]:.4g}", file=sys.stderr)
    return losses


def in_process(peer):
    command = [sys.executable, "-m", "benchmarks.lines", "--peer", peer]
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(counts, losses):
    rows = [["job", *PEERS, "loss to reach", *(f"{peer}'s" for peer in PEERS)]]
    rows += [["---"] * len(rows[0])]
    for job, (words, bar) in JOBS.items():
        reached = [f"{losses[peer][job]:.2g}" for peer in PEERS]
        rows.append([words, *(str(counts[peer][job]) for peer in PEERS), f"{bar:g}", *reached])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=PEERS, help="run this one's jobs, in this process")
    parser.add_argument("--output", type=Path, help="a file for the numbers, as JSON")
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(run(options.peer)))
        return
    counts = {peer: lines(peer) for peer in PEERS}
    losses = {peer: in_process(peer) for peer in PEERS}
    print(table(counts, losses))
    if options.output:
        options.output.write_text(json.dumps({"lines": counts, "losses": losses}, indent=1))
    for job, (words, bar) in JOBS.items():
        for peer in PEERS:
            assert losses[peer][job] <= bar, f"{words}: {peer} reached {losses[peer][job]}"
            if counts["fgd"][job] > counts[peer][job]:
                print(f"{words}: {counts['fgd'][job]} lines in fgd, {counts[peer][job]} in {peer}")


if __name__ == "__main__":
    main()
