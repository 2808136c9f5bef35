"""Plots draw what they were given, on the axes they were given, and never show."""

import io

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import fgd


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def pixels(ax):
    """The figure as drawn, [height, width, 3]."""
    file = io.BytesIO()
    ax.figure.savefig(file, format="rgba", dpi=ax.figure.dpi)
    width, height = ax.figure.canvas.get_width_height()
    return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)[:, :, :3]


def test_loss_curve():
    ax = fgd.plots.loss_curve(jnp.array([4.0, 2.0, 1.0]), every=10)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [10, 20, 30])
    np.testing.assert_array_equal(line.get_ydata(), [4, 2, 1])
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "step", "loss")
    same_ax = fgd.plots.loss_curve(jnp.array([3.0, 1.0]), label="other", ax=ax)
    assert same_ax is ax
    assert len(ax.lines) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["other"]
    assert pixels(ax).std() > 1


def test_digits_marks_the_wrong_ones():
    images = jnp.stack([jnp.full((28, 28), 255 * (i % 2), jnp.uint8) for i in range(13)])
    labels = jnp.arange(13) % 10
    predictions = labels.at[4].set(7).at[12].set(0)
    ax = fgd.plots.digits(images, predictions, labels)
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["0", "1", "2", "3", "7, is 4", *"56789", "0", "1", "0, is 2"]
    frames = [(patch.get_x() // 28, patch.get_y() // 37) for patch in ax.patches]
    assert frames == [(4, 0), (2, 1)]
    canvas = np.asarray(ax.images[0].get_array().filled(-1))
    np.testing.assert_array_equal(canvas[9:37, :28], images[0])
    np.testing.assert_array_equal(canvas[9 + 37 : 2 * 37, 28:56], images[11])
    red = (pixels(ax) == [0xC5, 0x1B, 0x1B]).all(axis=2)
    assert red.sum() > 100
    right = fgd.plots.digits(images, labels, labels)
    assert not (pixels(right) == [0xC5, 0x1B, 0x1B]).all(axis=2).any()
