"""Law 4: neither devices nor how arrays lie on them change a run; and what its steps send."""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from problems import Problem, close, examples, problems, same

import fgd
from fgd._run.plan import Options, prepare


def mesh_of(n, kind=AxisType.Explicit):
    return jax.make_mesh((n,), ("data",), axis_types=(kind,))


MESH = mesh_of(4)
PROBLEM = Problem("mlp", "adam", True, 64, 16, True, 0)
STEP = PROBLEM.step()
START = PROBLEM.start(STEP)


@st.composite
def divided(draw):
    """A problem whose batches divide over a number of devices, and that number."""
    devices = draw(st.sampled_from([1, 2, 4, 8]))
    rows = draw(st.sampled_from([8, 23, 64, 100]))
    sizes = [n for n in (8, 16, 40, rows) if n <= rows and n % devices == 0]
    size = draw(st.sampled_from(sizes))
    return draw(problems(rows=rows, batch_size=None if size == rows else size)), devices


@examples(1, 5)
@given(divided(), st.sampled_from([AxisType.Explicit, AxisType.Auto]), st.integers(1, 10))
@example((Problem("mlp", "adam", True, 100, 40, True, 0), 8), AxisType.Explicit, 10)
@example((Problem("relu mlp", "momentum", True, 23, 8, False, 0), 4), AxisType.Auto, 10)
@example((Problem("flax", "sgd", False, 64, None, False, 0), 2), AxisType.Auto, 10)
def test_the_number_of_devices_does_not_matter(drawn, kind, num_steps):
    """To the order of sums; and train is fit there too, bit for bit."""
    problem, devices = drawn
    with jax.enable_x64(True):
        step, data = problem.step(), problem.data
        start = problem.start(step)
        run = {"num_steps": num_steps, **problem.run}
        whole, history = fgd.fit(step, start, data, **run)
        state, losses = fgd.fit(step, start, data, mesh=mesh_of(devices, kind), **run)
        # One element of adagrad's first step is g/√g²: a sign, where g is rounding alone.
        close((state.params, losses), (whole.params, history), rtol=1e-7, atol=1e-9)
        assert jax.tree.leaves(state.params)[0].sharding.num_devices == devices
        trained = fgd.train(step, start, data, mesh=mesh_of(devices, kind), **run)
        assert same(trained, (state, losses))


def test_composition():
    """Bit for bit on a mesh, in the middle of an epoch and in single steps."""
    problem = PROBLEM._replace(rows=23, batch_size=8)
    step, data = problem.step(), problem.data

    def fit(state, num_steps):
        return fgd.fit(step, state, data, num_steps=num_steps, mesh=MESH, **problem.run)

    start = problem.start(step)
    whole, history = fit(start, 6)
    for split in (1, 3):
        middle, begun = fit(start, split)
        end, ended = fit(middle, 6 - split)
        assert same(end, whole)
        assert same(jnp.concatenate([begun["loss"], ended["loss"]]), history["loss"])


def batches(problem):
    x, y = (np.asarray(a) for a in problem.data)
    for t in range(10**9):
        rows = np.arange(t * problem.batch_size, (t + 1) * problem.batch_size) % problem.rows
        yield x[rows], y[rows]


def test_a_stream_of_fits_batches_is_fit():
    problem = PROBLEM._replace(shuffle=False, rows=23, batch_size=8)
    step = problem.step()
    start = problem.start(step)
    expected = fgd.fit(step, start, problem.data, num_steps=7, mesh=MESH, **problem.run)
    assert same(fgd.train(step, start, batches(problem), num_steps=7, mesh=MESH), expected)


PLACES = {
    "numpy": np.asarray,
    "committed to one device": lambda x: jax.device_put(x, jax.devices()[3]),
    "replicated": lambda x: jax.device_put(x, NamedSharding(MESH, P())),
    "on other devices": lambda x: jax.device_put(x, NamedSharding(mesh_of(2), P("data"))),
    "split": lambda x: jax.device_put(x, NamedSharding(MESH, P("data"))),
}


@pytest.mark.parametrize(
    "place",
    ["numpy", "split", *(pytest.param(p, marks=pytest.mark.slow) for p in list(PLACES)[1:4])],
)
def test_data_wherever_it_is(place):
    run = {"num_steps": 5, "mesh": MESH, **PROBLEM.run}
    expected = fgd.fit(STEP, START, PROBLEM.data, **run)
    placed = jax.tree.map(PLACES[place], PROBLEM.data)
    state, history = fgd.fit(STEP, START, placed, **run)
    close((state.params, history), (expected[0].params, expected[1]), rtol=1e-5)
    assert same(fgd.train(STEP, START, placed, **run), (state, history))


def test_data_made_under_an_explicit_mesh():
    run = {"num_steps": 5, "mesh": MESH, **PROBLEM.run}
    expected = fgd.fit(STEP, START, PROBLEM.data, **run)
    with jax.set_mesh(MESH):
        made = jax.tree.map(lambda x: jax.device_put(x, P("data")), PROBLEM.data)
        assert made[0].sharding.mesh.axis_types == (AxisType.Explicit,)
        inside = fgd.fit(STEP, START, made, **run)
        assert same(fgd.train(STEP, START, made, **run), inside)
    close(inside[1], expected[1], rtol=1e-5)
    assert same(fgd.fit(STEP, START, made, **run), inside)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_a_state_that_its_caller_placed_stays_there(kind):
    """Weights split over a second axis, and their moments with them: tensor parallelism."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    run = {"num_steps": 5, **PROBLEM.run}
    whole, history = fgd.fit(STEP, START, PROBLEM.data, **run)

    def place(leaf):
        wide = leaf.ndim == 2 and leaf.shape[1] == 4
        return jax.device_put(leaf, NamedSharding(mesh, P(None, "model") if wide else P()))

    for train in (fgd.fit, fgd.train):
        state, losses = train(STEP, jax.tree.map(place, START), PROBLEM.data, mesh=mesh, **run)
        close((state.params, losses), (whole.params, history), rtol=1e-5, atol=1e-6)
        placed = jax.tree.map(place, START)
        for leaf, before in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
            assert leaf.sharding.is_equivalent_to(before.sharding, leaf.ndim)


WIDTHS = {"f32": 4, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
COLLECTIVE = (
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)


def sent(step, state, data, mesh, **run):
    """The collectives in the compiled run, by kind, and the bytes of what each one sends."""
    from fgd._run.fit import run as whole
    from fgd.parallel._placement import within

    plan, state, data, _ = prepare("fit", step, state, data, Options(num_steps=4, mesh=mesh, **run))
    program = step.program(whole, static_argnames=("plan", "records"))
    with within(plan.mesh):
        text = program.lower(state, data, plan=plan, records=4).compile().as_text()
    for shapes, kind, _ in re.findall(COLLECTIVE, text):
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            yield kind, WIDTHS[dtype] * int(np.prod([int(n) for n in sides.split(",") if n]))


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize(("batch_size", "shuffle"), [(None, True), (96, True), (96, False)])
def test_a_step_sends_its_gradient_and_its_loss(devices, batch_size, shuffle):
    model = fgd.models.mlp([784, 3, 10])
    loss_fn = fgd.supervised(model, fgd.losses.cross_entropy, preprocess=fgd.data.normalize)
    step = fgd.train_step(loss_fn, fgd.adam(1e-3))
    state = step.init(model.init(jax.random.key(0)))
    data = np.zeros([192, 784], np.uint8), np.zeros(192, np.int32)
    collectives = list(
        sent(step, state, data, mesh_of(devices), batch_size=batch_size, shuffle=shuffle)
    )
    assert {kind for kind, _ in collectives} == {"all-reduce"}
    gradient = sum(x.nbytes for x in jax.tree.leaves(state.params))
    assert sum(size for _, size in collectives) == gradient + 4


@pytest.mark.slow
def test_a_convolutional_network_is_split_too():
    """It learns what it learns on one device, and sends its gradient and its loss alone."""
    model = fgd.models.cnn([20, 20], [2, 3], [5, 2], kernel_size=[5, 3], padding="VALID")
    step = fgd.train_step(fgd.supervised(model, fgd.losses.cross_entropy), fgd.adam(1e-2))
    state = step.init(model.init(jax.random.key(0)))
    draw = np.random.default_rng(0)
    data = draw.normal(size=(48, 20, 20)).astype(np.float32), draw.integers(0, 2, 48)
    run = {"batch_size": 24, "shuffle": True}
    one, many = (
        fgd.fit(step, state, data, num_steps=4, mesh=mesh, **run) for mesh in (None, mesh_of(8))
    )
    close(many[1], one[1], rtol=1e-4)
    collectives = list(sent(step, state, data, mesh_of(8), **run))
    assert {kind for kind, _ in collectives} == {"all-reduce"}
    gradient = sum(x.nbytes for x in jax.tree.leaves(state.params))
    assert sum(size for _, size in collectives) == gradient + 4


def test_statistics_are_of_the_whole_batch(x64):
    """A mean over the batch, as BatchNorm's, is over every device's rows; it equals NumPy's."""

    def loss_fn(params, model_state, x):
        mean = x.mean(0)
        return jnp.mean((x - mean - params) ** 2), 0.9 * model_state + 0.1 * mean

    x = np.random.default_rng(0).normal(size=(32, 3)) + 1
    step = fgd.train_step(loss_fn, fgd.sgd(0.1))
    start = step.init(jnp.zeros([1, 3]), model_state=jnp.zeros(3))
    with jax.numpy_rank_promotion("allow"):
        state, history = fgd.fit(step, start, x, num_steps=5, mesh=MESH)
    np.testing.assert_allclose(state.model_state, (1 - 0.9**5) * x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(history["loss"], x.var(0).mean(), rtol=1e-12)


def test_compile_once(compiled):
    """A second call compiles nothing: neither with a fresh state, nor with the first one's."""
    step, data = PROBLEM.step(), PROBLEM.data
    start = PROBLEM.start(step)

    def everything(state, num_steps):
        fgd.train(step, state, data, num_steps=num_steps, mesh=MESH, **PROBLEM.run)
        return fgd.fit(step, state, data, num_steps=3, mesh=MESH, **PROBLEM.run)[0]

    state = everything(start, 5)
    before = compiled()
    assert before > 0
    everything(start, 5)
    everything(state, 11)
    assert compiled() == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mesh": 4}, TypeError, r"mesh must be a jax.sharding.Mesh, got 4; jax.make_mesh"),
        ({"mesh": jax.devices()}, TypeError, "mesh must be a jax.sharding.Mesh"),
        (
            {"mesh": jax.make_mesh((2,), ("model",))},
            ValueError,
            r"mesh has axes \('model',\), expected one named \"data\"",
        ),
        ({"batch_size": 18}, ValueError, "batch_size=18 does not divide over the 4 devices"),
        (
            {"batch_size": None, "data": np.ones([63, 3])},
            ValueError,
            "a batch of all 63 rows does not divide over the 4 devices of the mesh's",
        ),
    ],
)
@pytest.mark.parametrize("train", [fgd.fit, fgd.train])
def test_bad_meshes(train, change, error, message, as_users):
    step = PROBLEM.step()
    call = {"data": PROBLEM.data, "batch_size": 16, "num_steps": 2, "mesh": MESH} | change
    with pytest.raises(error, match=f"{train.__name__}: {message}"):
        train(step, PROBLEM.start(step), **call)


def test_bad_streams():
    step = PROBLEM.step()
    odd = iter([(np.ones([18, 3]), np.ones([18, 2]))])
    with pytest.raises(ValueError, match="batch of 18 rows does not divide over the 4 devices"):
        fgd.train(step, PROBLEM.start(step), odd, num_steps=1, mesh=MESH)


def test_too_few_devices():
    """jax.make_mesh says it itself."""
    with pytest.raises(
        ValueError, match="Number of devices 8 must be >= the product of mesh_shape"
    ):
        mesh_of(16)


def test_a_mesh_of_some_devices():
    some = Mesh(np.array(jax.devices())[[5, 2]], ("data",))
    state, _ = fgd.fit(STEP, START, PROBLEM.data, num_steps=2, mesh=some, **PROBLEM.run)
    assert {d.id for d in state.step.sharding.device_set} == {2, 5}


@pytest.mark.parametrize("by", ["step", "fit", "sweep"])
def test_within_shard_map_each_device_has_runs_of_its_own(by):
    """Descent on (w − 1)² from 0: the loss after t steps is (1 − 2·rate)²ᵗ."""

    def losses(rate):
        step = fgd.train_step(lambda w, x: jnp.mean((w - x) ** 2), fgd.sgd(rate))
        start = step.init(jnp.zeros_like(rate))
        if by == "step":
            return step(start, jnp.ones(4))[1]["loss"][None]
        return fgd.fit(step, start, jnp.ones(4), num_steps=3)[1]["loss"]

    def of_a_device(rates):
        return fgd.sweep(losses, rate=rates) if by == "sweep" else losses(rates[0])[None]

    rates = np.linspace(0.1, 0.4, 4, dtype=np.float32)
    spread = jax.shard_map(
        of_a_device, mesh=mesh_of(4, AxisType.Auto), in_specs=P("data"), out_specs=P("data")
    )
    found = jax.jit(spread)(rates)
    expected = (1 - 2 * rates[:, None]) ** (2 * np.arange(found.shape[1]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
