"""The public API: exported in one place, documented with an example, light to import."""

import ast
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fgd

MODULES = [
    fgd,
    fgd.conv,
    fgd.data,
    fgd.export,
    fgd.interop,
    fgd.losses,
    fgd.models,
    fgd.parallel,
    fgd.plots,
    fgd.testing,
]
SOURCE = Path(inspect.getfile(fgd)).parent


def public(module):
    """What a module defines or re-exports of fgd's own."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__.startswith("fgd")
    }


NAMES = {
    fgd: "Checkpoints DivergedError Patience Step Summary TrainState adagrad adam averaged "
    "compilation_cache ema evaluate fit momentum per_example rmsprop sgd summary supervised sweep "
    "train train_step",
    fgd.conv: "avg_pool conv_general_dilated max_pool",
    fgd.data: "MNIST linear mnist normalize shuffle split",
    fgd.export: "Artifact load save",
    fgd.interop: "from_torch load save to_torch",
    fgd.losses: "accuracy binary_accuracy binary_cross_entropy cross_entropy mse",
    fgd.models: "Model Variables cnn from_equinox from_flax linear mlp",
    fgd.parallel: "init",
    fgd.plots: "contours digits fitted_line history loss_curve paths sweep_curves sweep_heatmap",
    fgd.testing: "check_gradients",
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_names(module):
    assert sorted(public(module)) == NAMES[module].split()


FUNCTIONS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in public(module).items()
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring(name):
    value = FUNCTIONS[name]
    text = inspect.getdoc(value) or ""
    assert text.splitlines()[0].endswith((".", "then", "`.")), "one line first"
    if inspect.isclass(value):
        assert "Attributes:" in text
        return
    assert "Example:" in text
    assert ">>>" in text
    assert not inspect.signature(value).parameters or "Args:" in text
    for parameter in inspect.signature(value).parameters:
        assert parameter in text, f"{parameter} is not described"


def test_import_is_light():
    """`import fgd` loads jax and optax, not what only some of it needs."""
    heavy = [
        "flax",
        "matplotlib",
        "tensorflow_datasets",
        "tensorflow",
        "tqdm",
        "orbax",
        "torch",
        "safetensors",
    ]
    code = f"import sys, fgd; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_it_is_typed():
    assert (SOURCE / "py.typed").exists()


def test_a_file_is_as_long_as_its_idea():
    """Around 200 lines: one that is much longer holds two."""
    for name, path in FILES.items():
        assert len(path.read_text().splitlines()) <= 250, name


# Each room imports from the rooms in its own row and above: imports point one way.
FLOORS = [
    {"_bilinear", "_checks", "_files", "_jax", "_jaxpr", "_keys", "_trees"},
    {"conv", "data", "losses", "optimizers", "parallel", "plots", "testing"},
    {"models", "checkpoint"},
    {"_run", "interop"},
    {"_train", "export"},
]


def imports(path):
    """The modules of fgd's that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fgd":
            yield from (f"fgd.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


FILES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path
    for path in SOURCE.rglob("*.py")
}


def test_imports_point_one_way():
    """From a floor to those below, or within a room; and the files of a room know no circles."""
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    graph = {}
    for name, path in FILES.items():
        _, *rest = name.removesuffix(".__init__").split(".")
        if not rest or rest[0] == "selfcheck":
            continue  # fgd/__init__.py imports everything, and a program uses what users do
        used = {module for module in imports(path) if module.split(".")[0] == "fgd"}
        for module in used:
            room = module.split(".")[1]
            lower = floor[room] < floor[rest[0]] or (floor[room] == 0 == floor[rest[0]])
            assert room == rest[0] or lower, f"{name} imports {module}, from a floor above"
        graph[name] = {m for m in used if m in FILES}
    assert graph["fgd._run.step"] >= {"fgd._run.loss", "fgd._checks"}
    tuple(TopologicalSorter(graph).static_order())  # CycleError names a circle


def test_what_jax_does_not_promise_is_in_one_place():
    """Private modules, experimental ones and interpreters: in two files of the ground."""
    for name, path in FILES.items():
        found = {m for m in imports(path) if re.match(r"jax\.(_src|experimental|interpreters)", m)}
        assert not found or name in ("fgd._jax", "fgd._bilinear"), f"{name} imports {found}"
