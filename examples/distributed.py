"""One run over several processes: the same program in each, and the numbers of a single device.

`python examples/distributed.py` starts two processes of two devices each. On a cluster, start it
once for each process instead (`srun python examples/distributed.py`): it joins the others.
"""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
from _script import parser, positive, run

import fgd

ROWS, BATCH, STEPS = 4096, 256, 200
JOB = "JAX_COORDINATOR_ADDRESS", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX"


def launch(processes, devices):
    """Starts this script once for each process; returns the first exit code that is not 0."""
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    job = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "GLOG_minloglevel": "2",
    }
    workers = [
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | job | {"JAX_PROCESS_ID": i})
        for i in map(str, range(processes))
    ]
    return next((code for code in [worker.wait() for worker in workers] if code), 0)


def main(args):
    if not any(name in os.environ for name in JOB):
        sys.exit(launch(args.processes, args.devices))
    mesh = fgd.parallel.init()
    first, processes = jax.process_index() == 0, jax.process_count()
    if first:
        print(f"{processes} processes, {mesh.size} devices in all")

    model = fgd.models.mlp([32, 64, 8])
    step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.adam(1e-2))
    start = step.init(model.init(0))
    x = np.random.default_rng(0).normal(size=(ROWS, 32)).astype(np.float32)
    data = x, np.tanh(x[:, :8] * x[:, 8:16])

    # Arrays: every process holds all rows, and every device computes its part of each batch.
    whole, history = fgd.fit(step, start, data, batch_size=BATCH, num_steps=STEPS, mesh=mesh)

    # A stream: every process reads its share of each batch, and no other rows.
    def share():
        mine = BATCH // processes
        for t in range(STEPS):
            at = (t * BATCH + jax.process_index() * mine) % ROWS
            yield tuple(array[at : at + mine] for array in data)

    streamed, _ = fgd.train(step, start, share(), num_steps=STEPS, mesh=mesh)

    # The same on one device of each process alone.
    run = {"batch_size": BATCH, "num_steps": STEPS}
    alone, losses = fgd.fit(step, start, data, **run)
    ordered, _ = fgd.fit(step, start, data, shuffle=False, **run)

    def greatest(a, b):
        differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), a, b)
        return max(jax.tree.leaves(differences))

    if first:
        print(f"loss                 {float(history['loss'][0]):.4f} → {history['loss'][-1]:.4f}")
        print(f"on one device        {float(losses['loss'][0]):.4f} → {losses['loss'][-1]:.4f}")
        print(f"greatest difference  {greatest(whole.params, alone.params):.1e} in the parameters")
        print(f"of the stream        {greatest(streamed.params, ordered.params):.1e}")


if __name__ == "__main__":
    flags = parser(__doc__, "out/distributed")
    flags.add_argument("--processes", type=positive(int), default=2)
    flags.add_argument("--devices", type=positive(int), default=2, help="of each process")
    run(main, flags)
