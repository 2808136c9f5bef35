"""`python -m benchmarks.checkpoints`: what checkpoints cost a run, and what 1 GB takes.

Medians of rounds in turns, in one process: R5e with Adam with a checkpoint about every second and
without; a state of 1 GB saved and restored by fgd, by Orbax alone, and by PyTorch if it is there.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fgd


def run_costs(rounds: int, folder: Path) -> None:
    model = fgd.models.mlp([784, 200, 10])
    loss_fn = fgd.supervised(
        model, fgd.losses.cross_entropy, preprocess=lambda x: fgd.data.normalize(x).reshape(-1, 784)
    )
    step = fgd.train_step(loss_fn, fgd.adam(1e-3))
    start = step.init(model.init(0))
    draw = np.random.default_rng(0)
    data = jax.device_put(
        (draw.integers(0, 256, (60_000, 28, 28), np.uint8), draw.integers(0, 10, 60_000, np.int32))
    )

    def seconds(checkpoints: fgd.Checkpoints | None, steps: int) -> float:
        begin = time.perf_counter()
        fgd.train(step, start, data, batch_size=100, num_steps=steps, checkpoints=checkpoints)
        return time.perf_counter() - begin

    seconds(None, 600)
    every = int(600 / seconds(None, 600))  # steps in a second
    steps, times = 10 * every, {"without": [], "with": [], "start": []}
    for i in range(rounds):
        times["without"].append(seconds(None, steps))
        checkpoints = fgd.Checkpoints(folder / f"run{i}", every=every)
        times["with"].append(seconds(checkpoints, steps))
        times["start"].append(seconds(checkpoints, steps))  # reads the end, computes nothing
    medians = {name: statistics.median(values) for name, values in times.items()}
    # What is paid once, with any number of checkpoints: digests of the data, the program's text.
    print(f"{steps} steps of R5e with Adam, {every} between two checkpoints, {rounds} rounds")
    print(f"  without checkpoints  {medians['without']:.2f} s")
    print(f"  with                 {medians['with']:.2f} s", end="")
    print(f"  + {100 * (medians['with'] / medians['without'] - 1):.1f} %")
    print(f"  to begin and to read the end of a run that has ended  {medians['start']:.2f} s")


def gigabyte_costs(rounds: int, folder: Path) -> None:
    import orbax.checkpoint as ocp

    keys = jax.random.split(jax.random.key(0), 10)
    params = [jax.random.normal(key, (25, 1000, 1000)) for key in keys]
    state = fgd.TrainState(params, (), jnp.int32(7), jax.random.key(0))
    jobs = {}

    def ours() -> tuple[float, float]:
        checkpoints = fgd.Checkpoints(folder / "fgd")
        times = timed(lambda: checkpoints.save(state)), timed(lambda: checkpoints.restore(state))
        shutil.rmtree(folder / "fgd")
        return times

    def orbax() -> tuple[float, float]:
        with ocp.StandardCheckpointer() as checkpointer:
            path = folder / "orbax"

            def save() -> None:
                checkpointer.save(path, params)
                checkpointer.wait_until_finished()

            times = timed(save), timed(lambda: checkpointer.restore(path, params))
        shutil.rmtree(path)
        return times

    jobs |= {"fgd, with digests": ours, "Orbax alone": orbax}
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: not measured")
    else:
        tensors = [torch.from_numpy(np.array(x)) for x in params]

        def pytorch() -> tuple[float, float]:
            path = folder / "torch.pt"
            times = timed(lambda: torch.save(tensors, path)), timed(lambda: torch.load(path))
            path.unlink()
            return times

        jobs["torch.save, not synchronized"] = pytorch
    times = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            times[name].append(job())
    print(f"1 GB, {rounds} rounds: save, restore")
    for name, pairs in times.items():
        save, restore = (statistics.median(x) for x in zip(*pairs, strict=True))
        print(f"  {name:30} {save:5.2f} s {restore:5.2f} s")


def timed(call) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        run_costs(rounds, Path(folder))
        gigabyte_costs(rounds, Path(folder))


if __name__ == "__main__":
    main()
