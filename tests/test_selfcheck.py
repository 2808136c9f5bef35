"""`python -m fgd.selfcheck` as users run it, and that it tells what is broken by name."""

import os
import subprocess
import sys

import jax
import pytest

import fgd
from fgd.selfcheck import main


def run(*words, **settings):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fgd.selfcheck", *words],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )


def test_it_runs_as_a_program():
    done = run("jax: products", "R5d", JAX_DEFAULT_MATMUL_PRECISION="bfloat16", JAX_DISABLE_JIT="1")
    assert (done.returncode, done.stderr) == (0, "")
    first, versions, devices, settings, note, *checks, last = done.stdout.splitlines()
    assert first.startswith("fgd ")
    assert versions.startswith(f"jax {jax.__version__}, jaxlib ")
    assert devices.startswith("devices: 1 × ")
    assert settings == "settings: jax_default_matmul_precision=bfloat16, jax_disable_jit=True"
    assert "jit is disabled" in note
    assert len(checks) == 5
    assert all(line.startswith("ok      ") for line in checks)
    assert "0.4142104, 0.2260517, 0.2231874, 0.2204667; came 0.414210" in done.stdout
    assert last.startswith("all 5 checks are right")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "4"},
        {"JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        {"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg", "JAX_THREEFRY_PARTITIONABLE": "0"},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_all_is_right_however_jax_is_set(settings):
    done = run(**settings)
    assert done.returncode == 0, done.stdout
    assert ("settings: " in done.stdout) == bool(settings)


def test_a_broken_optimizer_is_named(monkeypatch, capsys):
    sgd = fgd.sgd
    monkeypatch.setattr(fgd, "sgd", lambda learning_rate: sgd(learning_rate * 1.001))
    assert main(["R5d", "descent"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  R5d: losses of a line" in said
    assert "FAILED  gradient: that of descent" in said
    assert "ok      R5d: the first loss" in said
    assert "2 of 3 checks FAILED" in said
    assert "another version" not in said  # jax is not to blame


def test_an_error_is_a_failure_and_jax_is_blamed_for_its_own(monkeypatch, capsys):
    def broken(*args):
        raise ZeroDivisionError("so it goes\nand on")

    monkeypatch.setattr(jax.random, "fold_in", broken)
    assert main(["threefry"]) == 1
    said = capsys.readouterr().out
    assert "came ZeroDivisionError: so it goes\n" in said
    assert "computes wrongly on this device" in said


def test_words_that_name_nothing(capsys):
    assert main(["nothing of the kind"]) == 2
    assert (
        "selfcheck: no check is named nothing of the kind; there are:\n" in capsys.readouterr().out
    )


def test_import_does_not_load_it():
    done = subprocess.run(
        [sys.executable, "-c", "import fgd, sys; print('fgd.selfcheck' in sys.modules)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n"
