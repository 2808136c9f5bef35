"""`python -m fgd.selfcheck`: does fgd keep its promises with this JAX, on this device?

The laws (docs/laws.md) and the reference numbers at small size, and what they stand on: JAX's
products, sums, convolutions and random numbers, compared with float64 NumPy. A line for each check:
what was expected, and what came. The exit code is 0 if all are right, else 1. Words choose checks
by their names: `python -m fgd.selfcheck sweep R5d`.
"""

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import fgd
from fgd.selfcheck import _ground as _ground, _laws as _laws, _reference as _reference
from fgd.selfcheck._outcome import CHECKS, Check, Outcome

EXCLUDED = {  # by fgd's dependencies
    "0.10.2": "it computes products wrongly on CPU (jax#39103)",
    "0.11.1": "the history of a run takes time quadratic in its length (jax#40101)",
}
USUAL = {  # settings on which results depend
    "jax_enable_x64": False, "jax_default_matmul_precision": None, "jax_disable_jit": False,
    "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow",
}  # fmt: skip


def main(words: Sequence[str] = ()) -> int:
    """Makes the checks that have one of these words in their names, all if there is none.

    Returns:
      0 if all are right, 1 if one failed, 2 if none has such a name.
    """
    for line in _circumstances():
        print(line)
    chosen = {n: c for n, c in CHECKS.items() if not words or any(word in n for word in words)}
    if not chosen:
        print(f"selfcheck: no check is named {' or '.join(words)}; there are:", *CHECKS, sep="\n  ")
        return 2
    start, failed = time.perf_counter(), []
    with jax.disable_jit(False):  # what is promised is promised of compiled programs
        for name, function in chosen.items():
            expected, came, is_right = _outcome(function)
            failed += [] if is_right else [name]
            print(
                f"{'ok    ' if is_right else 'FAILED'}  {name}: expected {expected}; came {came}",
                flush=True,
            )
    seconds = time.perf_counter() - start
    if not failed:
        print(f"all {len(chosen)} checks are right ({seconds:.0f} s)")
        return 0
    print(f"{len(failed)} of {len(chosen)} checks FAILED ({seconds:.0f} s)")
    if any(name.startswith("jax") for name in failed):
        print(
            f"jax {jax.__version__} computes wrongly on this device, whatever uses it; "
            "install another version"
        )
    return 1


def _outcome(function: Check) -> Outcome:
    try:
        return function()
    except Exception as error:
        what, *_ = str(error).splitlines() or [""]
        return Outcome("a result", f"{type(error).__name__}: {what}", False)


def _circumstances() -> list[str]:
    """Versions, devices, settings that are not the usual ones, and what is known to be wrong."""
    try:
        version = importlib.metadata.version("fgd")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    jaxlib = importlib.metadata.version("jaxlib")
    python = f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    kinds = [f"{d.platform} {d.device_kind}" for d in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    lines = [
        f"fgd {version} of {Path(fgd.__file__).parent}",
        f"jax {jax.__version__}, jaxlib {jaxlib}, numpy {np.__version__}, {python}",
        f"devices: {devices}",
    ]
    set_ = {name: getattr(jax.config, name) for name in USUAL}
    unusual = [f"{name}={value}" for name, value in set_.items() if value != USUAL[name]]
    if unusual:
        lines.append(f"settings: {', '.join(unusual)}")
    if set_["jax_disable_jit"]:
        lines.append(
            "note: jit is disabled, but the checks compile: that is what fgd's laws are of"
        )
    for version in {jax.__version__, jaxlib} & EXCLUDED.keys():
        lines.append(f"WARNING: not for fgd, jax {version}: {EXCLUDED[version]}")
    return lines
