"""The examples as their readers run them: in processes of their own."""

import contextlib
import io
import os
import runpy
import struct
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

at_full_size = pytest.mark.skipif(
    os.environ.get("FGD_LONG") != "all", reason="takes long; FGD_LONG=all runs it"
)
EXAMPLES = Path(__file__).parents[1] / "examples"
# As in conftest.py: most of an example's time is XLA's, and its numbers do not need it.
QUICKLY = {} if os.environ.get("FGD_LONG") else {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def run(script, *arguments):
    """Runs an example on a machine without a prepared TFDS copy."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | QUICKLY | {"TFDS_DATA_DIR": "/nowhere"},
    )


def assert_refused(folder, script, arguments, message):
    """Nonsense ends in one line and exit code 2, without a traceback. In this process: quickly."""
    if "--output" not in arguments:
        arguments = [*arguments, "--output", folder]
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [script, *map(str, arguments)]),
        mock.patch.object(sys, "path", [str(EXAMPLES), *sys.path]),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as end,
    ):
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert end.value.code == 2
    *usage, last = [line for line in said.getvalue().splitlines() if not line.startswith("MNIST:")]
    assert last.startswith(f"{script}: error: ")
    assert message in last, last
    assert usage[0].startswith("usage:")


def assert_picture(path):
    """A PNG of some size, not of one color: flat images compress to almost nothing."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert min(width, height) >= 400
    assert len(content) > 20_000
