"""What is said when something is not what it should be: what was given, expected, and to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import same

import fgd

MODEL = fgd.models.mlp([3, 4, 2])
LOSS = fgd.supervised(MODEL, fgd.losses.mse)
STEP = fgd.train_step(LOSS, fgd.adam(0.1))
STATE = STEP.init(MODEL.init(0))
X, Y = np.ones([6, 3], np.float32), np.ones([6, 2], np.float32)
DATA = X, Y

pytestmark = pytest.mark.usefixtures("as_users")


def flat(params, batch, **others):
    return jnp.float32(0)


OLD = {
    "has_aux": lambda: fgd.train_step(flat, fgd.sgd(0.1), has_aux=True),
    "stochastic": lambda: fgd.train_step(flat, fgd.sgd(0.1), stochastic=True),
    "stateful": lambda: fgd.train_step(flat, fgd.sgd(0.1), stateful=False),
    "stateful in supervised": lambda: fgd.supervised(MODEL, fgd.losses.mse, stateful=True),
    "chunk": lambda: fgd.train(STEP, STATE, DATA, num_steps=1, chunk=1),
    "save": lambda: fgd.export.save(MODEL.apply, STATE.params, X, "model.fgd"),
}
ADVICE = {
    "has_aux": r"no has_aux=: return \(loss, metrics\)",
    "stochastic": "no stochastic=: name an argument of loss_fn `key`",
    "stateful": "no stateful=: name an argument of loss_fn `model_state`",
    "stateful in supervised": "supervised: there is no stateful=: .* leave it out",
    "chunk": "no chunk=: evaluate_every is the steps between two evaluations",
    "save": r"the path comes first: export.save\(path, apply, params, sample\)",
}


@pytest.mark.parametrize("what", OLD)
def test_old_words_say_what_to_write_now(what):
    with pytest.raises(TypeError, match=ADVICE[what]):
        OLD[what]()


def test_a_word_that_never_was_is_pythons():
    with pytest.raises(TypeError, match="unexpected keyword argument 'has_auxx'"):
        fgd.train_step(flat, fgd.sgd(0.1), has_auxx=True)


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda params, batch, key: jax.random.uniform(key),
        lambda params, batch, *, key: jax.random.uniform(key),
        lambda params, key, batch: jax.random.uniform(key) + 0 * jnp.sum(batch),
        lambda params, batch, key=None: jax.random.uniform(key),
        lambda *given, key: jax.random.uniform(key) + 0 * jnp.sum(given[1]),
        jax.jit(lambda params, batch, key: jax.random.uniform(key)),
        jax.tree_util.Partial(lambda a, params, batch, key: a * jax.random.uniform(key), 1.0),
        type("Loss", (), {"__call__": lambda self, params, batch, key: jax.random.uniform(key)})(),
    ],
    ids=["last", "keyword", "second", "None", "star", "jit", "partial", "object"],
)
def test_a_key_wherever_it_stands(loss_fn):
    """It is asked for by name, in any of Python's ways; each step gets another."""
    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    _, history = fgd.fit(step, step.init(1.0), jnp.ones(3), num_steps=4)
    assert len(set(history["loss"].tolist())) == 4


def test_what_has_a_default_is_left_alone():
    def loss_fn(params, scale=2.0, batch=None, key=7, unused=None):
        assert (key, unused) == (7, None)
        return params * scale * jnp.sum(batch)

    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    _, metrics = step(step.init(3.0), jnp.ones(5))
    assert metrics["loss"] == 30.0


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (
            lambda params: 0.0,
            r"leaves no argument for the batch; expected loss_fn\(params, batch\)",
        ),
        (lambda params, batch, rng: 0.0, "'rng', for which there is no value.* named key"),
        (lambda: 0.0, "leaves no argument for the batch"),
        (3, r"loss_fn must be a function such as f\(params, batch\), got 3"),
    ],
)
def test_signatures(loss_fn, message):
    with pytest.raises(TypeError, match=message):
        fgd.train_step(loss_fn, fgd.sgd(0.1))


WORDS = np.array(["a"] * 6)
BAD_DATA = {
    "strings": ((X, WORDS), r"data\[1\] is an array <U1\[6\], expected numbers"),
    "objects": ((X, np.array([1] * 6, object)), r"data\[1\] is an array object\[6\], expected num"),
    "times": ((X, np.ones(6, "M8[s]")), r"data\[1\] is an array datetime64\[s\]\[6\], expected"),
    "records": ((X, np.ones(6, [("a", "f4")])), r"data\[1\] is an array .*expected numbers"),
    "other bytes": ((X, Y.astype(">f4")), "order of another machine; x.astype"),
    "keys": ({"a": X, 0: Y}, "a dict whose keys can't be sorted.* use keys of one type"),
    "iterator": (iter([DATA]), "data is an iterator, expected arrays"),
    "generator": ((x for x in [DATA]), "data is an iterator, expected arrays"),
    "list": ([DATA, DATA], "data is a list of 2 tuples; give arrays"),
    "wide": ((np.arange(6) + 2**40, Y), "values from 1099511627776 .* cut to 32 bits; first"),
}


@pytest.mark.parametrize("run", [fgd.fit, fgd.train, fgd.evaluate], ids=lambda f: f.__name__)
@pytest.mark.parametrize("what", BAD_DATA)
def test_data(run, what):
    data, message = BAD_DATA[what]
    if run is fgd.train and what in ("iterator", "generator"):
        return  # they are streams
    first, options = (LOSS, {}) if run is fgd.evaluate else (STEP, {"num_steps": 1})
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        run(first, STATE, data, **options)
    assert "functools.partial(" not in str(caught.value)


def test_wide_integers_are_refused_wherever_they_come_in():
    """JAX would cut them to 32 bits, which makes other numbers of them."""
    wide = np.array([1, 2**40])
    step = fgd.train_step(lambda p, b: jnp.mean(b.astype(jnp.float32) * p), fgd.sgd(0.1))
    calls = (
        lambda: fgd.sweep(lambda a: a, a=wide),
        lambda: fgd.sweep(lambda a: a["x"], a={"x": wide.astype(np.uint64)}),
        lambda: fgd.train(step, step.init(1.0), iter([wide]), num_steps=1),
        lambda: step(step.init(1.0), wide),
        lambda: fgd.evaluate(lambda p, b: {"m": b}, 1.0, wide),
    )
    for call in calls:
        with pytest.raises((OverflowError, ValueError), match="to 1099511627776, which JAX would"):
            call()
    with jax.enable_x64(True):
        assert fgd.sweep(lambda a: a, a=wide).tolist() == wide.tolist()
    assert fgd.sweep(lambda a: a, a=np.array([1, 2**31 - 1])).tolist() == [1, 2**31 - 1]


@pytest.mark.parametrize(
    ("batch", "said"),
    [((X, Y, Y, Y), "a tuple of 4"), (X, r"an array float32\[6, 3\]"), ({"x": X}, "keys 'x'")],
)
def test_batches_of_supervised(batch, said):
    with pytest.raises(TypeError, match=rf"expected a batch \(inputs, targets\), got .*{said}"):
        fgd.fit(STEP, STATE, batch, num_steps=1)


def test_a_state_of_numpy_leaves_is_a_state():
    """What `jax.device_get` gives goes on as the state itself does, everywhere."""
    host = jax.device_get(STATE)
    assert isinstance(host.params[0]["w"], np.ndarray)
    data = jax.tree.map(jnp.asarray, DATA)
    for run in (fgd.fit, fgd.train):
        assert same(*(run(STEP, state, data, num_steps=3) for state in (STATE, host)))
    assert same(STEP(host, data), STEP(STATE, data))
    assert same(fgd.evaluate(LOSS, host, data), fgd.evaluate(LOSS, STATE, data))


@pytest.mark.parametrize("run", [fgd.fit, fgd.train])
def test_other_states(run):
    big = fgd.models.mlp([784, 200, 10]).init(0)
    for bad in (big, (1, 2), None, "state", 3.0):
        with pytest.raises(TypeError, match="expected the state of step") as caught:
            run(STEP, bad, DATA, num_steps=1)
        assert len(str(caught.value)) < 200


def test_different_devices():
    data = jax.device_put(DATA, jax.devices()[1])
    state = jax.device_put(STATE, jax.devices()[2])
    with pytest.raises(ValueError, match=r"state.* is on \S+:2 but data\[0\] is on \S+:1; jax.dev"):
        fgd.fit(STEP, state, data, num_steps=1)
    fgd.fit(STEP, STATE, data, num_steps=1)  # STATE is on no device in particular


def test_evaluate_says_what_it_wants():
    with pytest.raises(
        TypeError, match=r"must return a dict of \[rows\] arrays, got 1.0; a loss of"
    ):
        fgd.evaluate(lambda params, batch: 1.0, STATE, DATA)
    step = fgd.train_step(flat, fgd.sgd(0.1))
    with pytest.raises(TypeError, match=r"evaluate is rows, but the loss .* fgd.supervised"):
        fgd.train(step, step.init(1.0), DATA, num_steps=1, evaluate=DATA)
    for name in ("loss", "step", "evaluate"):
        with pytest.raises(ValueError, match=f'a metric may not be named "{name}"'):
            fgd.supervised(MODEL, fgd.losses.mse, metrics={name: fgd.losses.mse})
    with pytest.raises(TypeError, match="expected an fgd Model or its apply function"):
        fgd.supervised((MODEL.init, MODEL.apply), fgd.losses.mse)


def test_updates_are_shaped_like_the_parameters():
    """optax.contrib.dpsgd takes rows of a weight for examples; their mean would broadcast."""

    def mean_over_examples(updates, state, params=None):
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), updates), state

    optimizer = optax.GradientTransformation(lambda params: (), mean_over_examples)
    step = fgd.train_step(LOSS, optimizer)
    with pytest.raises(ValueError, match=r"update of params\[0\]\['b'\] has shape \(\), expected"):
        fgd.fit(step, step.init(MODEL.init(0)), DATA, num_steps=1)


def test_representations_are_a_few_lines(tmp_path):
    """Of a state of 159,010 parameters and their moments, and of what was exported."""
    big = fgd.models.mlp([784, 200, 10])
    state = fgd.train_step(fgd.supervised(big, fgd.losses.mse), fgd.adam(0.1)).init(big.init(0))
    assert "step: 0,\n  params: 4 arrays, 159,010 numbers, float32" in repr(state)
    assert len(repr(state)) < 300
    fgd.export.save(tmp_path / "a.fgd", big.apply, state.params, np.ones([1, 784], np.float32))
    artifact = fgd.export.load(tmp_path / "a.fgd")
    assert repr(artifact) == (
        "Artifact(a model of 4 arrays, 159,010 numbers, float32: 0.b, 0.w, 1.b, 1.w)"
    )
    repr(jax.eval_shape(lambda: state)), repr(jax.tree.map(lambda x: None, state))


def test_torch_is_told_what_to_do():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"torch.Tensor float32\[6, 3\], expected .* its .numpy\("):
        fgd.fit(STEP, STATE, tuple(map(torch.tensor, DATA)), num_steps=1)
    batch = tuple(torch.tensor(x).bfloat16() for x in DATA)  # NumPy has no such type, JAX has
    loss = fgd.supervised(MODEL, fgd.losses.mse, preprocess=lambda x: x.astype(jnp.float32))
    step = fgd.train_step(lambda p, b: loss(p, (b[0], b[1].astype(jnp.float32))), fgd.sgd(0.1))
    state, _ = fgd.train(step, step.init(MODEL.init(0)), iter([batch]), num_steps=1)
    assert int(state.step) == 1


def test_a_decorator_is_asked_for_its_own_arguments():
    """One that adds a key gets it, whatever it wraps; one that passes all on is looked through."""

    def noisy(loss):
        @functools.wraps(loss)
        def with_noise(params, batch, key):
            return loss(params, batch) + jax.random.uniform(key)

        return with_noise

    def timed(loss):
        @functools.wraps(loss)
        def passing_on(*args, **kwargs):
            return loss(*args, **kwargs)

        return passing_on

    def loss(params, batch):
        return params * jnp.sum(batch)

    for decorated in (noisy(loss), timed(noisy(loss)), timed(timed(noisy(loss)))):
        step = fgd.train_step(decorated, fgd.sgd(0.0))
        _, history = fgd.fit(step, step.init(1.0), jnp.ones(3), num_steps=4)
        assert len(set(history["loss"].tolist())) == 4


def test_other_ways_in(tmp_path):
    """Artifacts, metrics and axes are as strict as data."""
    wide = np.array([2**40 + 1])
    fgd.export.save(tmp_path / "a", lambda p, x: x % 7, 1.0, jnp.ones(3, int))
    artifact = fgd.export.load(tmp_path / "a")
    with pytest.raises(ValueError, match="to 1099511627777, which JAX would cut"):
        artifact(wide)
    assert jax.jit(artifact)(jnp.arange(9))[8] == 1
    with pytest.raises(TypeError, match="metric 'a' is complex"):
        fgd.evaluate(lambda p, b: {"a": b.astype(complex)}, 2.0, jnp.ones(5))
    with pytest.raises(ValueError, match=r"axis seed: .* an array of jnp.uint32 holds seeds up to"):
        fgd.sweep(lambda seed: seed, seed=[2**31, 0])
    step = fgd.train_step(lambda p, b: (p, {1: p}), fgd.sgd(0.1))
    with pytest.raises(TypeError, match="metrics must have words for names, got 1"):
        step(step.init(1.0), jnp.ones(2))
    for metrics in ({1: fgd.losses.mse}, [fgd.losses.mse]):
        with pytest.raises(TypeError, match="supervised: metrics must"):
            fgd.supervised(MODEL, fgd.losses.mse, metrics=metrics)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        fgd.sweep(lambda a: jnp.log(a), a=[-1.0, 2.0])


def test_a_log_with_an_unfinished_line(tmp_path):
    """As a killed process leaves it: what is added begins on a line of its own."""
    (tmp_path / "a.jsonl").write_text('{"step": 1, "lo')
    (tmp_path / "a.csv").write_text("step,name,value\n1,loss,2")
    for name in ("a.jsonl", "a.csv"):
        fgd.train(STEP, STATE, DATA, num_steps=1, log=tmp_path / name)
        lines = (tmp_path / name).read_text().splitlines()
        assert len(lines) == (2 if name == "a.jsonl" else 3)
        assert "loss" in lines[-1]
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "1,loss,2"
