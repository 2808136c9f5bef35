"""Jobs that are whole processes, from start to end."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

PEERS = Path(__file__).parent
EXAMPLES = PEERS.parent.parent / "examples"


def program(code: str):
    """A program that prints its loss."""
    command = [sys.executable, "-c", code]
    return lambda: float(subprocess.run(command, check=True, capture_output=True).stdout)


def mnist_99(script: Path, flags: tuple[str, ...] = ()):
    """A script that says its accuracy, and the seconds from its start until it knew it."""

    def run() -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            output = ("--output", folder) if flags else ()
            command = [sys.executable, str(script), *flags, *output]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        labels = "test accuracy", "from the start"
        accuracy, seconds = (float(re.findall(rf"{x} +([\d.]+)", said)[0]) for x in labels)
        return accuracy, seconds

    return run
