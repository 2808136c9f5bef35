"""fgd in a process that finds its programs compiled by an earlier one."""

from benchmarks import problems
from benchmarks.peers import process

FLAGS = "--source", "files", "--cache", f"{problems.FOLDER.name}/programs"

JOBS = {"mnist_99": lambda steps: process.mnist_99(process.EXAMPLES / "mnist_99.py", FLAGS)}
