"""Each pass of the run's loop as one CUDA graph; XLA by itself makes none of loops."""

from benchmarks.peers import gpu

JOBS = gpu.with_command_buffers("+WHILE")
