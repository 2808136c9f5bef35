"""No CUDA graphs at all."""

from benchmarks.peers import gpu

JOBS = gpu.jobs(("r2b", "r3e", "r3f", "r5e", "cnn"), "--xla_gpu_enable_command_buffer=")
