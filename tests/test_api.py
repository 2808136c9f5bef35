"""The public API: exported in one place, documented with an example, light to import."""

import inspect
import subprocess
import sys
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
    fgd: "Step TrainState adagrad adam compilation_cache evaluate fit momentum rmsprop sgd "
    "supervised sweep train train_step",
    fgd.conv: "avg_pool conv_general_dilated max_pool",
    fgd.data: "MNIST linear mnist normalize shuffle split",
    fgd.export: "Artifact load save",
    fgd.interop: "from_torch load save to_torch",
    fgd.losses: "accuracy cross_entropy mse supervised",
    fgd.models: "Model cnn from_flax linear mlp",
    fgd.parallel: "init",
    fgd.plots: "contours digits fitted_line loss_curve paths sweep_curves sweep_heatmap",
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


def test_files_are_short_and_typed():
    assert (SOURCE / "py.typed").exists()
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 200, path


@pytest.mark.parametrize("layer", ["conv", "data", "losses", "models", "optimizers", "plots"])
def test_imports_point_one_way(layer):
    """Data, losses, models and optimizers know nothing of the spine."""
    code = f"""
import importlib, sys, types
package = types.ModuleType("fgd"); package.__path__ = [{str(SOURCE)!r}]
sys.modules["fgd"] = package  # so that fgd/__init__.py itself does not run
importlib.import_module("fgd.{layer}")
spine = ["_types", "_step", "_plan", "_fit", "_evaluate", "_train", "_sweep"]
print([name for name in spine if "fgd." + name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
