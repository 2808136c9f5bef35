"""What fgd uses of JAX beyond its promises: when JAX changes one, the test of its name fails."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import jet
from jax.extend.core import Literal

import fgd
from fgd import _jax, _jaxpr

ADVICE = "JAX changed what fgd/_jax.py says of it; see there"


def test_keep_loop():
    """A loop of one step stays a loop in what is compiled; without the mark XLA unrolls it."""

    def loop(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, length=1)[0]

    def marked(x):
        with _jax.keep_loop():
            return loop(x)

    compiled = [jax.jit(f).lower(1.0).compile().as_text() for f in (loop, marked)]
    assert ["while(" in text for text in compiled] == [False, True], ADVICE


def test_closures_as_arguments():
    """A program of a closed-over array is as short for a million rows as for ten."""

    def size(rows):
        data = jnp.arange(float(rows))
        return len(_jax.ClosuresAsArguments(lambda x: x * data[2]).lower(jnp.ones(3)).as_text())

    assert abs(size(10**6) - size(10)) < 50, ADVICE


def test_closures_as_arguments_are_of_their_settings_and_places():
    data = jnp.arange(3.0)
    program = _jax.ClosuresAsArguments(lambda x: jax.random.normal(jax.random.key(0)) + x * data)
    x = jnp.ones(3)
    first = program(x)
    elsewhere = jax.device_put(x, jax.devices()[1])
    np.testing.assert_array_equal(program(elsewhere), first)
    with jax.threefry_partitionable(False):
        assert program(x)[0] == jax.random.normal(jax.random.key(0)) != first[0], ADVICE
    np.testing.assert_array_equal(program(x), first)
    with jax.disable_jit():
        np.testing.assert_allclose(program(x), first, rtol=1e-6)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_vmap_draws_otherwise(kind):
    """Of each kind of key: whether vmap is the loop, and whether it is said, however deep."""
    keys = jax.random.split(jax.random.key(0, impl=kind), 2)
    looped = jnp.stack([jax.random.bits(key) for key in keys])
    is_the_loop = bool((jax.vmap(jax.random.bits)(keys) == looped).all())
    assert is_the_loop == (kind == "threefry2x32"), ADVICE

    def within(x):
        return jax.lax.cond(
            x > 0, lambda: jax.random.normal(jax.random.key(x, impl=kind)), lambda: 0.0
        )

    checkpointed = jax.checkpoint(lambda x: jax.lax.map(jax.jit(within), x))
    for function, x in ((jax.random.bits, keys[0]), (checkpointed, jnp.arange(3))):
        jaxpr = jax.jit(jax.grad(lambda y, f=function, x=x: y * f(x).sum().astype(float)))
        assert _jaxpr.vmap_draws_otherwise(jaxpr.trace(1.0).jaxpr) != is_the_loop, ADVICE
    plain = jax.jit(lambda x: jax.lax.rng_bit_generator(x, (2,))).trace(jnp.zeros(4, jnp.uint32))
    assert _jaxpr.vmap_draws_otherwise(plain.jaxpr), ADVICE


def test_fingerprint_of_closures_as_arguments():
    """It sees code, shapes, and every value that is closed over; not which object it is."""

    def fingerprint(factor=2.0, data=np.arange(9.0), seed=0, x=jnp.ones(3)):  # noqa: B008
        known, key = jnp.asarray(data, jnp.float32), jax.random.key(seed)
        function = lambda x: factor * x + known[:3] + jax.random.normal(key)  # noqa: E731
        return _jax.ClosuresAsArguments(function).fingerprint(x)

    changes = {"factor": 3.0, "data": np.arange(9.0) + (np.arange(9) == 7), "seed": 1}
    found = [fingerprint(**{name: value}) for name, value in changes.items()]
    found += [fingerprint(), fingerprint(x=jnp.ones(1))]
    assert len(set(found)) == 5, ADVICE
    assert fingerprint() == fingerprint(), ADVICE


def test_trace_settings():
    named, others = _jax.trace_settings()
    with jax.default_matmul_precision("float32"):
        changed, _ = _jax.trace_settings()
        assert {n for n in named if named[n] != changed[n]} == {"jax_default_matmul_precision"}
    with jax.numpy_rank_promotion("allow"):
        assert _jax.trace_settings()[1] != others, ADVICE
    assert _jax.trace_settings() == (named, others)
    assert "0x" not in others, ADVICE  # an address, which differs between processes


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_is_tracing(transform):
    seen = []

    def function(x):
        seen.append(_jax.is_tracing())
        return x

    transform(function)(jnp.ones(2) if transform is jax.vmap else 1.0)
    assert seen[0], ADVICE
    assert not _jax.is_tracing(), ADVICE


def test_container():
    tree = {"a": [1, (2, None)], "b": optax.EmptyState(), "c": jax.tree_util.Partial(jnp.sin, 1)}
    found = []

    def walk(node):
        found.append(_jax.container(node))
        for child in node.children():
            walk(child)

    walk(jax.tree.structure(tree))
    assert found == [
        dict, list, None, tuple, None, type(None), optax.EmptyState, jax.tree_util.Partial, tuple,
        None, dict,
    ], ADVICE  # fmt: skip


def test_without_source_locations():
    def export():
        with _jax.without_source_locations():
            return jax.export.export(jax.jit(lambda x: jnp.sin(x)))(1.0).serialize()

    assert b".py" not in bytes(export()), ADVICE
    assert b".py" in bytes(jax.export.export(jax.jit(lambda x: jnp.sin(x)))(1.0).serialize())


def test_refusals_of_distributed_are_known(monkeypatch):
    """What `jax.distributed.initialize` says in a process that has computed, with no launcher."""
    with pytest.raises(RuntimeError) as late:
        jax.distributed.initialize("localhost:1", 2, 0)
    assert _jax.is_too_late_to_join(late.value), ADVICE
    from jax._src import distributed

    with pytest.raises(ValueError, match="coordinator") as alone:
        distributed.State().initialize()
    assert _jax.found_no_launcher(alone.value), ADVICE


def test_bilinear_primitive():
    """Every derivative of fgd's own convolution, forward, reverse and Taylor's, is lax's."""
    draw = np.random.default_rng(0)
    x, w = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in ((2, 5, 5, 3), (3, 3, 3, 4)))
    dx, dw = (jnp.asarray(draw.normal(size=a.shape), a.dtype) for a in (x, w))

    def of(convolution):
        def f(x, w):
            dims = ("NHWC", "HWIO", "NHWC")
            return convolution(jnp.sin(x), w, (1, 1), "SAME", dimension_numbers=dims)

        zero = [jnp.zeros_like(a) for a in (x, w)]
        series = jet.jet(f, (x, w), ([dx, zero[0], zero[0]], [dw, zero[1], zero[1]]))
        total = lambda x, w: jnp.sum(f(x, w) ** 2)  # noqa: E731
        return (
            jax.jvp(f, (x, w), (dx, dw)), jax.grad(total, (0, 1))(x, w), series,
            jax.vmap(f)(jnp.stack([x, dx]), jnp.stack([w, dw])), jax.vmap(f, (None, 0))(x, w[None]),
        )  # fmt: skip

    ours, laxs = of(fgd.conv.conv_general_dilated), of(jax.lax.conv_general_dilated)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(laxs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4, err_msg=ADVICE)


def test_bind():
    """Equation by equation, of every kind, it is the function."""

    def function(x):
        y = jnp.linalg.norm(jax.nn.relu(jnp.sort(x)))  # custom_jvp, of several results, in jit
        return jax.lax.cond(y > 0, jnp.sin, jnp.cos, y), optax.safe_norm(x, 1.0)

    traced, x = jax.make_jaxpr(function)(jnp.arange(-3.0, 3.0)), jnp.arange(-3.0, 3.0)
    values = dict(zip(traced.jaxpr.invars, [x], strict=True))
    for equation in traced.jaxpr.eqns:
        operands = [v.val if isinstance(v, Literal) else values[v] for v in equation.invars]
        values |= zip(equation.outvars, _jaxpr.bind(equation, operands), strict=True)
    assert [values[v] for v in traced.jaxpr.outvars] == list(function(x)), ADVICE


@pytest.mark.parametrize("call", [jax.jit, jax.checkpoint])
def test_called_by(call):
    """Of what is called for its value; not of what is computed again for a derivative."""
    traced = jax.make_jaxpr(call(lambda x: jnp.sin(x) * x))(1.0)
    assert _jaxpr.closed(traced) is traced
    (equation,) = traced.jaxpr.eqns
    inner = _jaxpr.called_by(equation)
    assert jax.core.eval_jaxpr(inner.jaxpr, inner.consts, 1.0) == [jnp.sin(1.0)], ADVICE
    backward = jax.make_jaxpr(jax.grad(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))))(1.0)
    (again,) = (x for x in backward.jaxpr.eqns if "policy" in x.params)
    assert _jaxpr.called_by(again) is None, ADVICE


def test_closed():
    open_one = jax.make_jaxpr(jax.jit(jnp.sin))(1.0).jaxpr
    closed = _jaxpr.closed(open_one)
    assert jax.core.eval_jaxpr(closed.jaxpr, closed.consts, 1.0) == [jnp.sin(1.0)], ADVICE


@pytest.mark.parametrize("carry", [(), (1.0,), (1.0, {"a": 2.0})])
def test_carried(carry):
    def function(x, y, xs):
        return jax.lax.scan(lambda c, z: (jax.tree.map(lambda a: a * x * y, c), z), carry, xs)

    (scan,) = jax.make_jaxpr(function)(1.0, 2.0, jnp.ones(3)).jaxpr.eqns
    assert len(_jaxpr.carried(scan.params)) == len(carry), ADVICE
    assert len(scan.invars) == _jaxpr.carried(scan.params).stop + 1, ADVICE


def test_carries():
    def function(x, n):
        step = jax.checkpoint(lambda c: (c[0] * x, c[1] + 1))
        inner = lambda c, _: (jax.lax.scan(lambda c, _: (step(c), n), c, length=2)[0], None)  # noqa: E731
        return jax.lax.scan(jax.jit(inner), (jnp.zeros((2, 3)), n), length=2)

    found = list(_jaxpr.carries(jax.make_jaxpr(function)(1.0, 2).jaxpr))
    assert [[x.shape for x in carry] for carry in found] == 2 * [[(2, 3), ()]], ADVICE


def test_contains():
    @jax.custom_batching.custom_vmap
    def double(x):
        return 2 * x

    double.def_vmap(lambda size, batched, x: (2 * x, True))
    looped = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: double(x), x))
    assert _jaxpr.contains(jax.make_jaxpr(looped)(1.0).jaxpr, "sin", "custom_vmap_call"), ADVICE
    mapped = jax.make_jaxpr(jax.vmap(looped))(jnp.ones(2)).jaxpr
    assert not _jaxpr.contains(mapped, "sin", "custom_vmap_call"), ADVICE


def test_each_use_has_its_test():
    """By its name, here; and the versions it was tried on are those of CI."""
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    # In processes of their own: test_distributed.py, test_cache.py
    of_processes = {"tell_processes", "told_processes", "reset_compilation_cache"}
    by_another_name = {"ClosuresAsArguments", "is_too_late_to_join", "found_no_launcher"}
    uses = {
        name
        for module in (_jax, _jaxpr)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    assert uses - of_processes - by_another_name <= tested
    (tried,) = re.findall(r"TRIED = (.*)", Path(inspect.getfile(_jax)).read_text())
    assert '"0.10.1"' in tried


FORKED = """
import os, sys, warnings
import jax.numpy as jnp, fgd

warnings.simplefilter("ignore")  # JAX's own, of any fork
step = fgd.train_step(lambda p, b: jnp.mean((p - b) ** 2), fgd.sgd(0.1))

def child(start):
    if os.fork() == 0:
        try:
            fgd.fit(step, *start(), num_steps=1)
        except RuntimeError as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.wait()[1])

print(child(lambda: (step.init(0.0), jnp.ones(3))))  # JAX is imported, and has computed nothing
state, data = step.init(0.0), jnp.ones(3)
print(child(lambda: (state, data)))
"""


def test_was_forked():
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60
    )
    before, said, after = done.stdout.splitlines()
    assert (before, after) == ("0", "1"), ADVICE
    assert re.match("fit: this process was forked from one in which JAX was at work, and wo", said)
