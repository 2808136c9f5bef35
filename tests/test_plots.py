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


def test_contours_lie_where_the_function_has_their_height():
    ax = fgd.plots.contours(lambda p: p[0] ** 2 + 9 * p[1] ** 2, (-3.0, 3.0), (-1.0, 2.0), levels=7)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-3, 3), (-1, 2))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    (lines,) = ax.collections
    assert len(lines.levels) == 7
    assert lines.levels.min() > 0  # not at the minimum, where there is nothing to draw
    for level, line in zip(lines.levels, lines.get_paths(), strict=True):
        x, y = line.vertices[line.codes != line.CLOSEPOLY].T
        np.testing.assert_allclose(x**2 + 9 * y**2, level, atol=5e-3)
    # An eighth of the picture is lower than the first line, an ellipse of area π·r²/3.
    np.testing.assert_allclose(np.pi * lines.levels[0] / 3, 18 / 8, rtol=0.02)
    assert fgd.plots.contours(lambda p: p[0], (0.0, 1.0), (0.0, 1.0), ax=ax) is ax


def test_paths_from_a_ring_to_a_dot():
    ax = fgd.plots.contours(lambda p: p[0] * p[1], (-1.0, 1.0), (-1.0, 1.0))
    two = {
        "sgd": jnp.array([[0.9, 0.0], [0.5, 0.1], [5.0, 0.2]]),
        "adam": jnp.array([[jnp.nan, 0.0], [0.1, 0.2], [0.3, 0.4], [jnp.nan, jnp.nan]]),
    }
    assert fgd.plots.paths(two, ax=ax) is ax
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-1, 1))  # those of the contours
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["sgd", "adam"]
    for name, at, ring, dot in (("sgd", 0, 0, 2), ("adam", 3, 1, 2)):
        line, start, end = ax.lines[at : at + 3]
        np.testing.assert_array_equal(np.transpose(line.get_data()), two[name])
        np.testing.assert_array_equal(np.ravel(start.get_data()), two[name][ring])
        np.testing.assert_array_equal(np.ravel(end.get_data()), two[name][dot])
        assert [start.get_fillstyle(), end.get_fillstyle()] == ["none", "full"]
        assert line.get_color() == start.get_color() == end.get_color()
    blue = (pixels(ax) == [0x1F, 0x77, 0xB4]).all(axis=2)
    assert blue.sum() > 100


def test_paths_in_space_and_nowhere():
    ax = plt.figure().add_subplot(projection="3d")
    fgd.plots.paths(
        {"run": jnp.arange(12.0).reshape(4, 3), "lost": jnp.full((4, 3), jnp.nan)}, ax=ax
    )
    np.testing.assert_array_equal(ax.lines[0].get_data_3d()[2], [2, 5, 8, 11])
    assert [len(line.get_data_3d()[0]) for line in ax.lines] == [4, 1, 1, 4, 0, 0]
    assert pixels(ax).std() > 1


@pytest.mark.parametrize(("maximize", "best"), [(False, (20, 1.0)), (True, (10, 3.0))])
def test_history(maximize, best):
    """A run of 30 steps that began at step 0 or later, an entry every 5: it ends where it ended."""
    run = {
        "loss": np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]),
        "evaluate": {"step": np.array([10, 20, 40]), "loss": np.array([3.0, 1.0, np.nan])},
    }
    ax = fgd.plots.history(run, maximize=maximize, every=5)
    training, evaluation, mark = ax.lines
    np.testing.assert_array_equal(training.get_xdata(), [15, 20, 25, 30, 35, 40])
    np.testing.assert_array_equal(evaluation.get_ydata(), run["evaluate"]["loss"])
    assert tuple(np.ravel(mark.get_data())) == best
    assert mark.get_label() == f"best: {best[1]:g} at step {best[0]}"
    assert pixels(ax).std() > 1
    alone = fgd.plots.history({"loss": run["loss"]}, every=5)
    np.testing.assert_array_equal(alone.lines[0].get_xdata(), [5, 10, 15, 20, 25, 30])


@pytest.mark.parametrize("column", [False, True])
def test_fitted_line(column):
    """Points [rows] or [rows, 1]; the model is asked at 100 places of the same form."""
    x, y = jnp.array([3.0, -1.0, 2.0]), jnp.array([9.0, 2.0, 4.0])
    if column:
        x, y = x[:, None], y[:, None]

    def predict(at):
        assert at.shape == (100, *x.shape[1:])
        return at**2

    ax = fgd.plots.fitted_line(x, y, predict)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_legend()) == ("x", "y", None)
    (line,), (points,) = ax.lines, ax.collections
    at = line.get_xdata()
    assert (at[0], at[-1], len(at)) == (-1, 3, 100)
    np.testing.assert_allclose(line.get_ydata(), at**2)
    np.testing.assert_array_equal(points.get_offsets(), [[3, 9], [-1, 2], [2, 4]])
    assert points.zorder < line.zorder
    again = fgd.plots.fitted_line(x, None, lambda at: 2 * at, label="other", ax=ax)
    assert again is ax
    assert (len(ax.lines), len(ax.collections)) == (2, 1)  # the points are not drawn again
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["other"]
    gray = (pixels(ax) == 0x99).all(axis=2)
    assert gray.sum() > 20  # what the lines leave of three points


def test_sweep_curves():
    losses = jnp.array([[[4.0, 2.0], [8.0, 1.0], [6.0, 3.0]], [[5.0, 5.0], [5.0, 5.0], [5.0, 9.0]]])
    ax = fgd.plots.sweep_curves(losses, every=5, learning_rate=jnp.array([0.1, 0.02]))
    for line, medians in zip(ax.lines, ([6, 2], [5, 5]), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [5, 10])
        np.testing.assert_array_equal(line.get_ydata(), medians)
    band = ax.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(5, 4), (5, 8), (10, 1), (10, 3)}
    assert ax.get_legend().get_title().get_text() == "learning rate"
    assert pixels(ax).std() > 1


def test_sweep_heatmap():
    values = jnp.array([[1.0, 2.0, 40.0], [3.0, 0.5, jnp.nan]])
    axes = {"learning_rate": jnp.array([0.1, 0.2]), "seed": jnp.arange(3)}
    ax = fgd.plots.sweep_heatmap(values, label="error", **axes)
    np.testing.assert_array_equal(ax.images[0].get_array().filled(-1), values.at[1, 2].set(-1))
    (frame,) = ax.patches
    assert frame.get_xy() == (0.5, 0.5)
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[2, 1]]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.1", "0.2"]
    assert ax.images[0].colorbar.ax.get_ylabel() == "error"
    assert pixels(ax).std() > 1
    assert len(fgd.plots.sweep_heatmap(jnp.full((2, 3), jnp.nan), **axes).lines) == 6


@pytest.mark.parametrize("draw", [fgd.plots.sweep_curves, fgd.plots.sweep_heatmap])
def test_axes_of_another_sweep(draw):
    with pytest.raises(ValueError, match=r"axes of lengths .* but \{'rate': 4, 'seed': 3\}"):
        draw(jnp.ones([2, 3]), rate=jnp.ones(4), seed=jnp.arange(3))
