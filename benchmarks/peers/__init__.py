"""The peers, each as its own documentation recommends.

A module has `JOBS`: by job, a function `(steps) -> run`, where `run()` trains from the start and
returns the last loss, when it is known. What a peer needs is imported in its own process alone.
"""

import os

PEERS = {
    "fgd": "fgd_fit",
    "fgd train": "fgd_train",
    "fgd, cached": "fgd_cached",
    "fgd, a device for each core": "fgd_devices",
    "fgd, graphs of loops": "gpu_graphs",
    "fgd, no graphs": "gpu_no_graphs",
    "fgd, bfloat16": "gpu_bfloat16",
    "hand-written scan": "raw_jax",
    "PyTorch eager": "pytorch",
    "PyTorch compiled": "pytorch_compiled",
    "torch.func.vmap": "pytorch_vmap",
    "PyTorch, processes": "pytorch_processes",
    "Keras 3 on JAX": "keras_jax",
    "Equinox": "eqx",
    "Flax nnx": "nnx",
    "scikit-learn": "sklearn_mlp",
}


def add_xla_flags(flags):
    """To those of the environment; before JAX looks at its devices."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
