"""A damaged directory of checkpoints gives an older state, or none: never a wrong one."""

import os
import random
import shutil
import warnings

import jax
import pytest
from problems import Problem, same

import fgd

CASES = {"": 11, "1": 150, "all": 500}.get(os.environ.get("FGD_LONG", ""), 150)
PROBLEM = Problem("linear", "adam", True, 23, 7, True, 0)
STEP = PROBLEM.step()
START = PROBLEM.start(STEP)


def train(folder):
    checkpoints = fgd.Checkpoints(folder, every=10, keep=3)
    return fgd.train(
        STEP, START, PROBLEM.data, num_steps=45, checkpoints=checkpoints, **PROBLEM.run
    )


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def flip(draw, folder):
    path = draw.choice([x for x in files(folder) if x.stat().st_size])
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(draw, folder):
    path = draw.choice(files(folder))
    os.truncate(path, draw.randrange(path.stat().st_size + 1))


def lengthen(draw, folder):
    with draw.choice(files(folder)).open("ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 99)))


def delete(draw, folder):
    draw.choice(files(folder)).unlink()


def remove(draw, folder):
    shutil.rmtree(draw.choice([path for path in folder.rglob("*") if path.is_dir()]))


def exchange(draw, folder):
    a, b = draw.sample(files(folder), 2)
    a.rename(folder / "between")
    b.rename(a)
    (folder / "between").rename(b)


def swap_checkpoints(draw, folder):
    a, b = draw.sample(sorted(folder.glob("0*")), 2)
    a.rename(folder / "between")
    b.rename(a)
    (folder / "between").rename(b)


def stray(draw, folder):
    name = draw.choice(["0000000050", "0000000044", ".0000000050.tmp", "new", "5", "00000000501"])
    (folder / name).mkdir()
    if draw.random() < 0.5:
        shutil.copy(draw.choice(files(folder)), folder / name / "about.json")


def half_written(draw, folder):
    """A copy of a checkpoint under another step, with some of its files."""
    source = draw.choice(sorted(folder.glob("0*")))
    target = folder / draw.choice(["0000000044", ".0000000044.tmp"])
    shutil.copytree(source, target)
    for path in files(target):
        if draw.random() < 0.3:
            path.unlink()


KINDS = [
    *(flip, flip, flip, truncate, lengthen, delete),
    *(remove, exchange, swap_checkpoints, stray, half_written),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory, the states that may come from it, and what the run returns."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    result = train(folder)
    states = {}
    for step in (30, 40, 45):
        states[step] = fgd.fit(STEP, START, PROBLEM.data, num_steps=step, **PROBLEM.run)[0]
    assert sorted(int(path.name) for path in folder.glob("0*")) == list(states)
    return folder, states, result


@pytest.mark.parametrize("seed", range(CASES), ids=str)
@pytest.mark.property
def test_a_damaged_directory(seed, whole, tmp_path):
    intact, states, result = whole
    folder, draw = tmp_path / "checkpoints", random.Random(seed)
    shutil.copytree(intact, folder)
    kind = KINDS[seed % len(KINDS)]
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        try:
            kind(draw, folder)
        except (FileExistsError, ValueError, IndexError):
            break  # it is done to this directory already
    before = [(path, path.read_bytes()) for path in files(folder)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            state = fgd.Checkpoints(folder).restore(START)
        except (ValueError, OSError) as error:
            assert "checkpoints" in str(error), kind  # noqa: PT017
        else:
            assert same(state, states[int(state.step)]), kind
        assert [(path, path.read_bytes()) for path in files(folder)] == before
        try:
            again = train(folder)
        except (ValueError, OSError) as error:
            assert str(error).startswith(("train: ", "checkpoints: ")), kind  # noqa: PT017
        else:
            assert same(again, result), kind


def test_older_ones_are_used_and_a_warning_names_the_others(whole, tmp_path):
    intact, states, result = whole
    folder = tmp_path / "checkpoints"
    shutil.copytree(intact, folder)
    array = folder / "0000000045" / "arrays" / "params.w" / "c" / "0" / "0"
    array.write_bytes(bytes(len(array.read_bytes())))
    shutil.rmtree(folder / "0000000040" / "arrays")
    said = r"an older one is used, for step 45: params.w\S* is not what was saved; step 40: "
    with pytest.warns(RuntimeWarning, match=said) as caught:
        state = fgd.Checkpoints(folder).restore(START)
    assert len(caught) == 1
    assert same(state, states[30])
    with pytest.warns(RuntimeWarning, match=said):
        assert same(train(folder), result)
    assert {"damaged-0000000040", "damaged-0000000045", "0000000045"} <= set(os.listdir(folder))
    assert same(train(folder), result)
    for path in folder.glob("0*/about.json"):
        path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"nothing in .* is whole: step 45: about.json can't be"):
        fgd.Checkpoints(folder).restore(jax.eval_shape(lambda: START))
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole .* give another directory"):
        train(folder)


def test_what_a_killed_process_left_is_swept(whole, tmp_path):
    intact, _, result = whole
    folder = tmp_path / "checkpoints"
    shutil.copytree(intact, folder)
    for name in (".0000000050.tmp", ".0000000030.old"):
        shutil.copytree(folder / "0000000030", folder / name)
    with (folder / "history").open("ab") as file:
        file.write(b"unfinished")
    assert same(train(folder), result)
    assert not list(folder.glob(".*"))
