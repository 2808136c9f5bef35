"""What the machine can do at best: products and loops through JAX, reading through NumPy."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np


def typical(run, rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(quick: bool) -> dict[str, float]:
    """FLOP/s of a large product, bytes/s that a scalar product reads, seconds of an empty loop."""
    n, rounds = (256, 2) if quick else (2048, 7)
    a = jnp.ones((n, n))
    product = jax.jit(lambda a: a @ a)
    steps = 100 if quick else 100_000
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda i, x: x * 0.5 + 1, x))
    x, y = np.ones((2, 100_000), np.float32)  # as R2c has
    return {
        "flops": 2 * n**3 / typical(lambda: product(a).block_until_ready(), rounds),
        "bytes": 2 * x.nbytes / typical(lambda: np.dot(x, y), 100 * rounds),
        "iteration": typical(lambda: loop(1.0).block_until_ready(), rounds) / steps,
    }


if __name__ == "__main__":
    import json
    import os
    import sys

    gpus = [device.device_kind for device in jax.devices() if device.platform == "gpu"]
    machine = f"{os.cpu_count()} CPU cores; GPU: {', '.join(gpus) or 'not measured'}"
    print(json.dumps({"machine": machine, "limits": measure("quick" in sys.argv)}))
