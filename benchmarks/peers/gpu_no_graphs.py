"""No CUDA graphs at all."""

from benchmarks.peers import gpu

JOBS = gpu.with_command_buffers("")
