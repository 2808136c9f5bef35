"""Patience: when it ends a run, what it keeps, and what it remembers over a resume."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgd

MODEL = fgd.models.mlp([2, 8, 1], activation=jnp.tanh)
LOSS = fgd.supervised(MODEL, fgd.losses.mse, metrics={"error": fgd.losses.mse})


def rows(seed, n):
    x = jax.random.normal(jax.random.key(seed), (n, 2))
    return x, jnp.sin(3 * x[:, :1]) + 0.5 * jax.random.normal(jax.random.key(seed + 1), (n, 1))


TRAIN, VALID = rows(0, 12), rows(2, 40)  # so few that it learns them by heart


def start():
    step = fgd.train_step(LOSS, fgd.adam(0.05))
    return step, step.init(MODEL.init(0))


def run(patience, steps=400, **options):
    step, state = start()
    return fgd.train(
        step,
        state,
        TRAIN,
        batch_size=4,
        num_steps=steps,
        evaluate=VALID,
        evaluate_every=7,
        stop_when=patience,
        **options,
    )


def by_hand(losses, patience):
    """What the definition gives: the place of the best, and of the last evaluation."""
    best, since = 0, 0
    for i, loss in enumerate(losses):
        best, since = (i, 0) if i == 0 or loss < losses[best] else (best, since + 1)
        if since == patience:
            return best, i
    return best, len(losses) - 1


@pytest.mark.parametrize("evaluations", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_where_it_ends(evaluations):
    _, whole = run(None)
    losses = whole["evaluate"]["loss"]
    best, last = by_hand(losses, evaluations)
    assert last < len(losses) - 1, "the run has to end early"
    patience = fgd.Patience("loss", evaluations)
    state, history = run(patience)
    assert history["evaluate"]["step"][-1] == state.step == 7 * (last + 1)
    assert (patience.best_step, patience.best_value) == (7 * (best + 1), losses[best])
    step, begun = start()
    there, _ = fgd.fit(step, begun, TRAIN, batch_size=4, num_steps=patience.best_step)
    jax.tree.map(np.testing.assert_array_equal, patience.best_state.params, there.params)
    again, _ = run(patience)  # the same object, in another run
    assert again.step == state.step


def test_the_greatest_and_nan():
    values = iter([1.0, np.nan, 3.0, 2.0, np.nan, 3.0, 9.0])
    patience = fgd.Patience("score", 3, maximize=True)
    step, state = start()
    state, _ = fgd.train(
        step,
        state,
        TRAIN,
        num_steps=9,
        evaluate=lambda state: {"score": next(values)},
        evaluate_every=1,
        stop_when=patience,
    )
    assert (patience.best_value, patience.best_step, int(state.step)) == (3.0, 3, 6)
    assert repr(patience) == "Patience('score', 3): best 3 at 3"


def test_without_an_evaluation_it_is_what_is_trained_on():
    step, state = start()
    patience = fgd.Patience("loss", 2)
    _, history = fgd.train(
        step, state, TRAIN, batch_size=4, num_steps=300, evaluate_every=5, stop_when=patience
    )
    means = history["loss"].reshape(-1, 5).mean(axis=1)
    best, last = by_hand(means, 2)
    assert (patience.best_step, len(means)) == (5 * (best + 1), last + 1)


class Ending(fgd.Patience):
    """Its process ends after some step."""

    def __init__(self, metric, evaluations, end):
        super().__init__(metric, evaluations)
        self.end = end

    def __call__(self, state, metrics):
        if int(state.step) > self.end:
            raise RuntimeError("ended")
        return super().__call__(state, metrics)


def same(a, b):
    for ours, theirs in zip(
        *(jax.tree.leaves((s.params, s.opt_state, s.step)) for s in (a, b)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("every", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_it_resumes_with_its_memory(tmp_path, every):
    """Ended anywhere, the run that goes on ends as the whole one, with the same best state."""
    whole = fgd.Patience("error", 4)
    expected, history = run(whole)
    ends = whole.best_step - 1, whole.best_step + 8
    checkpoints = fgd.Checkpoints(tmp_path / "run", every=every, keep=1)
    for end in ends:
        with pytest.raises(RuntimeError, match="ended"):
            run(Ending("error", 4, end), checkpoints=checkpoints)
    patience = fgd.Patience("error", 4)
    state, found = run(patience, checkpoints=checkpoints)
    assert (patience.best_step, patience.best_value) == (whole.best_step, whole.best_value)
    same(patience.best_state, whole.best_state)
    same(state, expected)
    jax.tree.map(np.testing.assert_array_equal, found, history)
    # And again, when all is done.
    patience = fgd.Patience("error", 4)
    state, _ = run(patience, checkpoints=fgd.Checkpoints(tmp_path / "run", every=every, keep=1))
    assert (state.step, patience.best_step) == (expected.step, whole.best_step)
    same(patience.best_state, whole.best_state)


def test_another_stopper_that_remembers(tmp_path):
    class Third:
        seen = 0

        def __call__(self, state, metrics):
            self.seen += 1
            if self.seen == 2 and not (tmp_path / "ended").exists():
                (tmp_path / "ended").touch()
                raise RuntimeError("ended")
            return self.seen == 3

        def get_state(self):
            return self.seen

        def set_state(self, seen):
            self.seen = seen

    checkpoints = fgd.Checkpoints(tmp_path / "run", every=7)
    with pytest.raises(RuntimeError, match="ended"):
        run(Third(), checkpoints=checkpoints)
    state, _ = run(Third(), checkpoints=checkpoints)
    assert state.step == 21


def test_bad_arguments(tmp_path, as_users):
    for arguments, error, match in (
        ((3, 2), TypeError, "Patience: metric must be a name"),
        (("loss", 0), ValueError, "Patience: evaluations must be at least 1"),
        (("loss", 1.5), TypeError, "Patience: evaluations must be an int"),
    ):
        with pytest.raises(error, match=match):
            fgd.Patience(*arguments)
    with pytest.raises(ValueError, match="'acc', but the loss of this step has 'loss', 'error'"):
        run(fgd.Patience("acc", 2))
    step, state = start()
    with pytest.raises(
        ValueError, match=r"waits for 'acc', which is not among the .* evaluate gives: 'b'"
    ):
        fgd.train(
            step,
            state,
            TRAIN,
            num_steps=9,
            evaluate=lambda state: {"b": 1.0},
            stop_when=fgd.Patience("acc", 2),
        )
    with pytest.raises(ValueError, match=r"keep the best 'error' .* Patience that of 'loss'"):
        run(fgd.Patience("loss", 2), checkpoints=fgd.Checkpoints(tmp_path, best="error"))


@pytest.mark.slow
def test_a_run_that_ended_goes_on_with_more_patience(tmp_path):
    """With the same it stays ended; with more, it is the run that had that from the first."""
    checkpoints = fgd.Checkpoints(tmp_path / "run", every=10)
    ended, _ = run(fgd.Patience("loss", 1), checkpoints=checkpoints)
    again, _ = run(fgd.Patience("loss", 1), checkpoints=checkpoints)
    assert again.step == ended.step
    more, expected = fgd.Patience("loss", 4), fgd.Patience("loss", 4)
    state, _ = run(more, checkpoints=checkpoints)
    whole, _ = run(expected)
    assert state.step == whole.step > ended.step
    assert more.best_step == expected.best_step
    same(state, whole)
    state, history = run(None, checkpoints=fgd.Checkpoints(tmp_path / "run", every=10, best="loss"))
    assert state.step == 400
    np.testing.assert_array_equal(history["evaluate"]["step"], [*range(7, 400, 7), 400])
    with pytest.raises(
        ValueError, match="keeps the least 'loss', now the greatest 'error' is asked"
    ):
        run(fgd.Patience("error", 2, maximize=True), checkpoints=checkpoints)


@pytest.mark.parametrize("worst", [np.inf, pytest.param(-np.inf, marks=pytest.mark.slow)])
def test_an_infinite_evaluation_is_kept(tmp_path, worst):
    """As of a perplexity that overflows at first: it is written, and read again."""

    def value(state):
        return {"v": worst if state.step < 21 else float(state.step)}

    def again(steps, **options):
        step, state = start()
        patience = fgd.Patience("v", 5, maximize=worst < 0)
        fgd.train(
            step,
            state,
            TRAIN,
            num_steps=steps,
            evaluate=value,
            evaluate_every=7,
            stop_when=patience,
            **options,
        )
        return patience

    checkpoints = fgd.Checkpoints(tmp_path, every=7)
    first = again(14, checkpoints=checkpoints)
    assert (first.best_value, first.best_step) == (worst, 7)
    assert again(42, checkpoints=checkpoints).best_step == again(42).best_step
