"""The README's program does what it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_idea_in_twenty_lines(capsys):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in program.splitlines() if line]) <= 24
    names = {}
    exec(compile(program, "README.md", "exec"), names)
    loss, *losses, slope = capsys.readouterr().out.splitlines()
    run = jax.jit(names["run"], static_argnums=1)
    np.testing.assert_allclose(float(loss), run(1e-2, 0), rtol=1e-4)
    assert len(re.findall(r"\d\.\d+", " ".join(losses))) == 4 * 2
    # The slope is that of the secant, as far as float32 shows it.
    h = 1e-3
    secant = (run(1e-2 + h, 0) - run(1e-2 - h, 0)) / (2 * h)
    np.testing.assert_allclose(float(slope), secant, rtol=0.05)
    assert jnp.all(jax.tree.leaves(names["whole"].params)[1] == names["again"].params[0]["w"])
