"""examples/learn_the_learning_rate.py as its reader runs it: in a process of its own."""

import re

import jax
import numpy as np
import pytest
from scripts import assert_picture, assert_refused, run

import fgd


def by_hand(rate, num_steps):
    """The example's training run in float64, its gradients on paper: the validation loss."""
    x_key, w_key, noise_key, key = jax.random.split(jax.random.key(0), 4)
    x, w = (np.asarray(jax.random.normal(k, s)) for k, s in ((x_key, (1100, 5)), (w_key, (5, 1))))
    noise = np.asarray(jax.random.normal(noise_key, (1100, 1)))
    y = np.sin(2 * x @ w / np.linalg.norm(w)) + 0.3 * noise
    first, last = fgd.models.mlp([5, 100, 1]).init(key)
    params = [np.asarray(p, float) for layer in (first, last) for p in (layer["w"], layer["b"])]
    velocity = [np.zeros_like(p) for p in params]

    def errors(rows):
        w1, b1, w2, b2 = params
        hidden = np.tanh(x[rows] @ w1 + b1)
        return hidden, hidden @ w2 + b2 - y[rows]

    for _ in range(num_steps):
        hidden, error = errors(slice(100))
        delta = 2 * error / 100
        back = delta @ params[2].T * (1 - hidden**2)
        grads = x[:100].T @ back, back.sum(axis=0), hidden.T @ delta, delta.sum(axis=0)
        velocity = [0.9 * v + g for v, g in zip(velocity, grads, strict=True)]
        params = [p - rate * v for p, v in zip(params, velocity, strict=True)]
    return np.mean(errors(slice(100, 1100))[1] ** 2)


@pytest.mark.slow
def test_descent_beats_the_sweep(tmp_path):
    done = run("learn_the_learning_rate.py", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^(.+?) +(0\.\d{6})(?:, (0\.\d{6}))? +(0\.\d{6})$", done.stdout, re.M)
    (best, begin, found, layers) = [(float(rate), float(loss)) for _, rate, _, loss in lines]
    assert best[0] in np.round(np.logspace(-3, 0, 32), 6)
    for rate, loss in (best, begin, found):
        assert loss == pytest.approx(by_hand(rate, 400), abs=1e-4)
    assert layers[1] < found[1] <= best[1] < begin[1]
    assert_picture(tmp_path / "descent.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "0"], "--start"),
        (["--num-steps", "some"], "--num-steps"),
        (["--seed", "99999999999"], "--seed must fit"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    assert_refused(tmp_path, "learn_the_learning_rate.py", arguments, message)
