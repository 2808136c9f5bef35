"""Real kill -9 and SIGTERM, at random moments: in steps, in saves, as it resumes."""

import json
import os
import random
import signal

import killed
import numpy as np
import pytest

LONG = {"": 6, "1": 12, "all": 200}.get(os.environ.get("FGD_LONG", ""), 12)


def begin(context, folder, checkpointed=True):
    process = context.Process(target=killed.child, args=(str(folder), checkpointed))
    process.start()
    return process


def last_step(log):
    """Of the last whole line."""
    lines = log.read_text().splitlines() if log.exists() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:
            continue
    return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody ended, and how long a process takes for it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    folder.mkdir()
    context = killed.forkserver()
    process = begin(context, folder, checkpointed=False)
    process.join(120)
    assert process.exitcode == 0, (folder / "errors").read_text()
    return folder


def assert_same(folder, whole):
    ours, theirs = (dict(np.load(place / "end.npz")) for place in (folder, whole))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    assert (folder / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_run_that_is_killed(number, whole):
    """It is started again until so many processes were killed in it; every run ends alike."""
    context, draw = killed.forkserver(), random.Random(int(number))
    left, runs, redone = LONG if number == signal.SIGKILL else LONG // 2, 0, []
    while left > 0:
        folder, runs = whole.parent / f"{number.name} {runs}", runs + 1
        folder.mkdir()
        reached = 0
        while True:
            process = begin(context, folder)
            process.join(draw.uniform(0.05, 2.5) if left > 0 else 120)
            if process.exitcode is None:
                os.kill(process.pid, number)
                process.join(60)
            said = (folder / "errors").read_text() if (folder / "errors").exists() else ""
            if (folder / "resumed").exists():
                resumed = int((folder / "resumed").read_text())
                if reached:
                    redone.append(reached - resumed)
                (folder / "resumed").unlink()
            reached = last_step(folder / "log.jsonl")
            if process.exitcode == 0:
                break
            assert process.exitcode in (-number, 128 + number), said
            left -= process.exitcode != -signal.SIGTERM  # which it was before train began
            if process.exitcode == 128 + signal.SIGTERM:
                assert f"ended by SIGTERM after {reached} of {killed.STEPS} steps" in said
        assert_same(folder, whole)
    print(f"{number.name}: {runs} runs, steps done again: {sorted(redone)}")
    assert all(0 <= steps <= killed.EVERY for steps in redone)
    if number == signal.SIGTERM:
        assert set(redone) <= {0}
