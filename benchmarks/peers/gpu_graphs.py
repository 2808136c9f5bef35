"""Each pass of the run's loop as one CUDA graph; XLA by itself makes none of loops."""

from benchmarks.peers import gpu

JOBS = gpu.jobs(("r2b", "r3e", "r3f", "r5e", "cnn"), "--xla_gpu_enable_command_buffer=+WHILE")
