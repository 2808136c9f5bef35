"""A run in a real Jupyter kernel: what its cells show, and what an interrupted one keeps."""

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BEGIN = """
import fgd, jax
data = fgd.data.linear(jax.random.key(0), 1000)
train, valid = fgd.data.split(jax.random.key(1), data, 0.8)
model = fgd.models.linear(1, 1)
step = fgd.train_step(fgd.supervised(model, fgd.losses.mse), fgd.sgd(0.01))
start = step.init(model.init(0))
"""


def executed(*cells):
    """The notebook with its outputs."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(x) for x in cells])
    return nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300).execute()


def shown(cell, kind="text/plain"):
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


def test_what_is_shown():
    pytest.importorskip("ipywidgets")
    run = """
state, history = fgd.train(step, start, train, batch_size=8, num_epochs=5, evaluate=valid)
state, step, model
"""
    notebook = executed(BEGIN, run, "fgd.summary(model)")
    _, ran, table = notebook.cells
    assert shown(ran, "application/vnd.jupyter.widget-view+json")
    widgets = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    texts = [str(widget["state"].get("value")) for widget in widgets.values()]
    assert any("loss=" in text and "evaluate/loss=" in text for text in texts)
    assert "row wrap" in [widget["state"].get("flex_flow") for widget in widgets.values()]
    assert 500.0 in [widget["state"].get("value") for widget in widgets.values()]
    (said,) = [text for text in shown(ran) if "TrainState" in text]
    assert len(said.splitlines()) < 9
    assert shown(table)[0].splitlines()[-1] == "2 parameters, 8 bytes"


def test_an_interrupted_cell_keeps_its_state():
    """Jupyter interrupts a kernel by SIGINT; here the kernel sends it to itself, as it trains."""
    run = """
import os, signal

def interrupt(state, metrics):
    if state.step == 300:
        os.kill(os.getpid(), signal.SIGINT)

state, history = fgd.train(
    step, start, train, batch_size=8, num_epochs=10**6, stop_when=interrupt, progress=True
)
"""
    notebook = executed(BEGIN, run, "print(int(state.step), history['loss'].shape)")
    assert notebook.cells[-1].outputs[0]["text"] == "400 (400,)\n"
