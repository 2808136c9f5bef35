"""Makes docs/reference.md: every reference program, the number it prints, the number expected.

    FGD_DATA_DIR=… python tools/make_reference.py [--check]

Runs every command of the table and fails when a number has drifted; --check writes nothing.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "reference.md"
NUMBER = r"(-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)"

HEAD = """# Reference

Every program of the course that fgd reimplements: a command, the numbers it prints, and the
numbers expected. *Published* ones were printed by the original; *float64* ones come from a closed
form or NumPy in double precision. `tools/make_reference.py` makes this page, and fails when a
number drifts.

| | what | command | prints | expected | |
|---|---|---|---|---|---|
"""


class Row(NamedTuple):
    """One line of the table; `pattern` finds the numbers, # standing for each."""

    name: str
    what: str
    command: str
    pattern: str
    expected: tuple[float, ...]
    within: float  # of each, absolute
    source: str


AUTOGRAD = "examples/autograd.py"
REGRESSION = "examples/linear_regression.py --part {}"
NETWORKS = "examples/two_layer_net.py --style {}"
KEPT = "kept; [PyTorch's](parity.md)"

ROWS = [
    Row("R1", "three ways: largest difference of a loss", REGRESSION.format("three-ways"),
        "losses of a step differ by #", (0.0,), 1e-6, "they agree"),
    Row("R2a", "y = ‖4x‖ at [1, 1]", AUTOGRAD, r"y +# +published", (5.6569,), 5e-5, "published"),
    Row("R2a", "∂y/∂x", AUTOGRAD, r"∂y/∂x +\[# #\]", (2.8284, 2.8284), 5e-5, "published"),
    Row("R2b", "loss and w from w₀ = [0.5, 0.5]", REGRESSION.format("five-points"),
        r"ours +loss #, w \[#, #\]", (8.229387, 5.082875, 5.602187), 2e-5, "float64"),
    Row("R2c", "loss, 100,000 points", "examples/large_regression.py", "loss +# ",
        (0.120936,), 1e-4, "published (other draw)"),
    Row("R2c", "loss against float64", "examples/large_regression.py", "loss +# +# ",
        (0.120956, 0.120956), 1e-5, "float64"),
    Row("R3a", "raw arrays: loss after 100 steps", NETWORKS.format("raw"), "100: #",
        (433,), 1, KEPT),
    Row("R3b", "a ReLU by hand: its slope at −1, 0, 1", AUTOGRAD, r"by hand +\[# # #\]",
        (0, 1, 1), 0, "its definition"),
    Row("R3c", "slope of clip(x, −1, 1) at −1, 0, 1", AUTOGRAD, r"jnp.clip.* +\[# +# +#\]",
        (0.5, 1, 0.5), 0, "its definition"),
    Row("R3d", "compiled: runs of the loss by Python", NETWORKS.format("adam"),
        "compiled step .* by Python: # ×", (1,), 0, "once, while tracing"),
    Row("R3e", "Sequential: loss after 100 steps", NETWORKS.format("sequential"), "100: #",
        (1.54,), 0.01, KEPT),
    Row("R3f", "Adam", NETWORKS.format("adam"), "100: #", (65,), 0.5, KEPT),
    Row("R3g", "a Flax module", NETWORKS.format("module"), "100: #", (2.7,), 0.05,
        KEPT),
    Row("R4a", "w, b, loss on y = 3x + 0.8", REGRESSION.format("line"),
        "step 2000 +w # +b # +loss #", (2.838168, 0.886927, 0.0021206), 1e-4, KEPT),
    Row("R4b", "the same as a model, lr 0.001", REGRESSION.format("module"),
        "w # +b # +loss #", (1.456935, 1.617407, 0.191255), 1e-4, KEPT),
    Row("R4c", "∇ Σ x·stop_gradient(x) at [1, 1]", AUTOGRAD,
        r"x·stop_gradient\(x\) +\[# #\]", (1, 1), 0, "its definition"),
    Row("R4e", "averaging is momentum with a shorter step: difference", "examples/optimizers.py",
        "at most # apart", (0.0,), 1e-6, "they agree"),
    Row("R5b", "the saddle's path after 100 steps", "examples/descent.py",
        "position +# +#", (0.016870, 0.050505), 2e-6, "(1 − 2η)ᵗ, 0.001·(1 + 2η)ᵗ"),
    Row("R5d", "first loss, ∂w, ∂b", REGRESSION.format("fifteen-points"),
        "ours +loss #, ∂w #, ∂b #", (10.2335, -41.1289, -6.0890), 1e-4, "published"),
    Row("R5d", "losses at 0, 10, 20, 30", REGRESSION.format("fifteen-points"),
        "ours +#, #, #, #", (0.4142104, 0.2260517, 0.2231874, 0.2204667), 2e-7, "published"),
    Row("R5e", "MNIST, mean loss of an epoch", "examples/mnist.py --source files",
        "mean training loss +#", (0.905261,), 0.045, "published"),
]  # fmt: skip


def printed(command: str, outputs: dict[str, str]) -> str:
    """What a command prints; each is run once."""
    if command not in outputs:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [sys.executable, *shlex.split(command), "--output", folder]
            done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"python {command} failed:\n{done.stderr}")
        outputs[command] = done.stdout
    return outputs[command]


def main(check: bool) -> None:
    """Runs the commands, compares, and writes the table."""
    outputs: dict[str, str] = {}
    lines, drifted = [], []
    for row in ROWS:
        found = re.search(row.pattern.replace("#", NUMBER), printed(row.command, outputs))
        numbers = found.groups() if found else ()
        right = len(numbers) == len(row.expected) and all(
            abs(float(a) - b) <= row.within for a, b in zip(numbers, row.expected, strict=True)
        )
        if not right:
            drifted.append(f"{row.name}, {row.what}: {numbers}, expected {row.expected}")
        expected = ", ".join(f"{value:.7g}" for value in row.expected)
        lines.append(
            f"| {row.name} | {row.what} | `python {row.command}` | {', '.join(numbers)} "
            f"| {expected} ± {row.within:g} | {row.source} |\n"
        )
    if drifted:
        raise SystemExit("drifted:\n" + "\n".join(drifted))
    if not check:
        TABLE.write_text(HEAD + "".join(lines))
    print(f"{len(ROWS)} numbers as expected")


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
