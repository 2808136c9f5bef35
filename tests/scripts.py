"""The examples as their readers run them: in processes of their own."""

import os
import struct
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *arguments):
    """Runs an example on a machine without a prepared TFDS copy."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TFDS_DATA_DIR": "/nowhere"},
    )


def assert_refused(folder, script, arguments, message):
    """Nonsense ends in one line and exit code 2, without a traceback."""
    if "--output" not in arguments:
        arguments = [*arguments, "--output", folder]
    done = run(script, *arguments)
    assert done.returncode == 2
    *usage, last = [line for line in done.stderr.splitlines() if not line.startswith("MNIST:")]
    assert last.startswith(f"{script}: error: ")
    assert message in last
    assert "Traceback" not in done.stderr
    assert usage[0].startswith("usage:")


def assert_picture(path):
    """A PNG of some size, not of one color: flat images compress to almost nothing."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert min(width, height) >= 400
    assert len(content) > 20_000
