"""PyTorch with `torch.compile` around forward and backward."""

from functools import partial

from benchmarks.peers import pytorch

JOBS = {
    name: partial(pytorch.JOBS[name], compile_step=True)
    for name in ("r2c", "r3e", "r3f", "r5e", "cnn")
}
