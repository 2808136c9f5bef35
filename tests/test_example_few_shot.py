"""examples/few_shot.py as its reader runs it, and its outer step beside torch.func's."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import EXAMPLES, assert_picture, assert_refused, run

import fgd


@pytest.mark.slow
def test_five_points_are_enough(tmp_path):
    done = run("few_shot.py", "--num-steps", 300, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^from (\w+) +([\d. ]+)$", done.stdout, re.M)
    errors = {name: [float(x) for x in numbers.split()] for name, numbers in rows}
    assert [*errors] == ["random", "pretrained", "MAML"]
    assert errors["MAML"][2] < 0.6 * min(errors["random"][2], errors["pretrained"][2])
    assert_picture(tmp_path / "sines.png")


@pytest.mark.slow
def test_outer_steps_are_those_of_torch_func(monkeypatch, x64):
    """Five steps of Adam on the loss after five inner steps, float64: every loss to 1e-9."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("few_shot")
    params = example.model.init(0)
    x, y = example.sines(jax.random.key(1), 50)
    step = fgd.train_step(example.after_adapting, fgd.adam(1e-3))
    _, history = fgd.fit(step, step.init(params), (x, y), batch_size=10, num_steps=5, shuffle=False)

    net = torch.nn.Sequential(
        torch.nn.Linear(1, 40, dtype=torch.float64),
        torch.nn.Tanh(),
        torch.nn.Linear(40, 40, dtype=torch.float64),
        torch.nn.Tanh(),
        torch.nn.Linear(40, 1, dtype=torch.float64),
    )
    net.load_state_dict(fgd.interop.to_torch(params, net))
    start = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}

    def loss(weights, x, y):
        return torch.mean((torch.func.functional_call(net, weights, (x,)) - y) ** 2)

    def after_adapting(weights, x, y):
        for _ in range(5):
            slopes = torch.func.grad(loss)(weights, x[:5], y[:5])
            weights = {name: w - 0.02 * slopes[name] for name, w in weights.items()}
        return loss(weights, x[5:], y[5:])

    optimizer = torch.optim.Adam(start.values(), lr=1e-3)
    expected = []
    for rows in np.arange(50).reshape(5, 10):
        batch = (torch.tensor(np.asarray(a[rows])) for a in (x, y))
        losses = torch.func.vmap(after_adapting, in_dims=(None, 0, 0))(start, *batch)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        expected.append(losses.mean().item())
    assert jnp.isfinite(history["loss"]).all()
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--num-steps", "0"], "--num-steps"), (["--sine", "1000"], "--sine must be one of 1,000")],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    assert_refused(tmp_path, "few_shot.py", arguments, message)
