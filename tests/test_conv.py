"""fgd.conv: lax's convolution in every derivative, compiled canonically; pooling as PyTorch's."""

import re
from functools import partial

import flax.linen as linen
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax import lax
from problems import close, examples

from fgd.conv import avg_pool, conv_general_dilated, max_pool

DRAW = np.random.default_rng(0)
LAYOUT = ("NHWC", "HWIO", "NHWC")


def draws(*shape):
    return jnp.asarray(DRAW.normal(size=shape), float)


def derivatives(conv):
    """Value, gradient, directional derivative and Hessian-vector product of a nonlinear loss."""

    def loss(x, w):
        return jnp.sum(jnp.sin(conv(x, w)))

    @jax.jit
    def every(x, w, dx, dw):
        gradient = jax.grad(loss, (0, 1))
        products = jax.jvp(gradient, (x, w), (dx, dw))
        return conv(x, w), jax.jvp(loss, (x, w), (dx, dw)), products, jax.grad(
            lambda w: sum(jnp.sum(g**3) for g in gradient(x, w))
        )(w)  # fmt: skip

    return every


def arrange(spec, sizes):
    return [sizes[axis] for axis in spec]


@st.composite
def convolutions(draw):
    """The shapes and arguments of a convolution that has a result."""
    space = draw(st.sampled_from(["W", "HW", "HW", "DHW"]))
    n = len(space)
    ints = partial(st.integers, 1)

    def each(strategy):
        return draw(st.tuples(*[strategy] * n))

    sizes = dict(zip(space, each(ints(6)), strict=True))
    windows = dict(zip(space, each(ints(3)), strict=True))
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    x = sizes | {"N": draw(ints(3)), "C": draw(ints(5)) * groups}
    w = windows | {"I": x["C"] // groups, "O": draw(ints(3)) * groups}
    specs = [
        "".join(draw(st.permutations(f"{a}{b}{space}")))
        for a, b in (("N", "C"), ("I", "O"), ("N", "C"))
    ]
    lhs_dilation, rhs_dilation = each(ints(2)), each(ints(2))
    padding = each(st.tuples(st.integers(-1, 3), st.integers(-1, 3)))
    fits = all(
        (sizes[s] - 1) * a + 1 + sum(pad) > (windows[s] - 1) * b
        for s, a, b, pad in zip(space, lhs_dilation, rhs_dilation, padding, strict=True)
    )
    if not fits or draw(st.booleans()):
        padding, lhs_dilation = "SAME", None
    arguments = {
        "window_strides": each(ints(3)),
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": tuple(specs),
        "feature_group_count": groups,
    }
    return arrange(specs[0], x), arrange(specs[1], w), arguments


@pytest.mark.usefixtures("x64")
@examples(4, 12)
@given(convolutions())
def test_every_derivative_is_laxs(convolution):
    shape, kernel, arguments = convolution
    operands = [draws(*s) for s in (shape, kernel, shape, kernel)]
    found, expected = (
        derivatives(partial(conv, **arguments))(*operands)
        for conv in (conv_general_dilated, lax.conv_general_dilated)
    )
    close(found, expected, rtol=1e-11, atol=1e-11)


LAYERS = {  # images, kernel, strides: ways in which kernels' gradients are found
    "one channel": ((8, 14, 14, 1), (5, 5, 1, 6), (1, 1)),
    "three channels": ((8, 14, 14, 3), (3, 3, 3, 6), (1, 1)),
    "strided": ((8, 15, 14, 3), (4, 3, 3, 6), (2, 3)),
    "in parts": ((24, 21, 21, 2), (5, 5, 2, 7), (1, 1)),
    "in parts, strided": ((64, 31, 20, 2), (5, 4, 2, 8), (2, 1)),
}


def convolve(strides, conv=conv_general_dilated):
    return lambda x, w: conv(x, w, strides, "SAME", dimension_numbers=LAYOUT)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, x64):
    images, kernel, strides = LAYERS[name]
    operands = [draws(*s) for s in (images, kernel, images, kernel)]
    found, expected = (
        derivatives(convolve(strides, conv))(*operands)
        for conv in (conv_general_dilated, lax.conv_general_dilated)
    )
    close(found, expected, rtol=1e-9, atol=1e-9)


def kinds(conv, layer, layout, platform, models=None):
    """How the convolutions of a step of training in a loop are written, for a platform."""
    images, kernel, strides = LAYERS[layer]
    x = jnp.zeros([images["NHWC".index(axis)] for axis in layout[0]])
    w = jnp.zeros([kernel["HWIO".index(axis)] for axis in layout[1]])

    def loss(x, w):
        return jnp.sum(conv(x, w, strides, "SAME", dimension_numbers=layout) ** 2)

    step = jax.grad(loss, (0, 1))
    if models:
        x, w, step = jnp.stack([x] * models), jnp.stack([w] * models), jax.vmap(step)

    def run(x, w):
        return lax.scan(lambda xw, _: (step(*xw), None), (x, w), length=3)[0]

    program = jax.jit(run).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(
        r"dim_numbers = (.*?), window.*?batch_group_count = (\d+).*?feature_group_count = (\d+)",
        program,
    )


@pytest.mark.parametrize("models", [None, 4])
@pytest.mark.parametrize("layout", [LAYOUT, ("NCHW", "OIHW", "NCHW")])
@pytest.mark.parametrize("layer", LAYERS)
def test_programs_are_canonical_on_cpu(layer, layout, models):
    """XLA has fast code for these alone; lax's own are of other kinds."""
    canonical = {("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]", "1", "1")}
    assert set(kinds(conv_general_dilated, layer, layout, "cpu", models)) == canonical
    assert set(kinds(lax.conv_general_dilated, layer, layout, "cpu", models)) != canonical


@pytest.mark.parametrize("layout", [LAYOUT, ("NCHW", "OIHW", "NCHW")])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_are_laxs_elsewhere(platform, layout):
    ours, laxs = (
        sorted(kinds(conv, "in parts, strided", layout, platform))
        for conv in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert ours == laxs
    assert len(ours) >= 3


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (2, 3)])
def test_vmap_then_grad_and_grad_then_vmap(axes, x64):
    x, w = draws(3, 9, 8, 2), draws(2, 3, 2, 4)
    x, w = (
        a if axis is None else jnp.stack([a, a**2, 3 * a], axis=axis)
        for a, axis in zip((x, w), axes, strict=True)
    )

    def all_ways(conv):
        def loss(x, w):
            return jnp.sum(jnp.sin(convolve((1, 2), conv)(x, w)))

        mapped = jax.vmap(loss, axes)
        twice = jax.vmap(mapped, (0, None))
        return jax.jit(
            lambda x, w: (
                mapped(x, w),
                jax.vmap(jax.grad(loss, (0, 1)), axes)(x, w),
                jax.grad(lambda x, w: mapped(x, w).sum(), (0, 1))(x, w),
                jax.grad(lambda x, w: twice(jnp.stack([x, -x]), w).sum(), (0, 1))(x, w),
            )
        )(x, w)

    close(all_ways(conv_general_dilated), all_ways(lax.conv_general_dilated), 1e-11, 1e-11)


def test_what_it_leaves_to_lax(x64):
    x, w = draws(4, 6, 5, 4), draws(3, 3, 2, 6)
    options = {"dimension_numbers": LAYOUT}
    cases = [
        (x, w, {"feature_group_count": 2}),
        (x, draws(3, 3, 4, 6), {"batch_group_count": 2}),
        (x.astype(complex), draws(3, 3, 4, 2).astype(complex), {}),
        ((9 * x).astype(int), draws(3, 3, 4, 2).astype(int), {}),
        (x.astype(jnp.float16), draws(3, 3, 4, 2).astype(jnp.float16),
         {"preferred_element_type": jnp.float32}),
        (x[:0], draws(3, 3, 4, 2), {}),
    ]  # fmt: skip
    for lhs, rhs, more in cases:
        found, expected = (
            conv(lhs, rhs, (1, 2), "SAME", **options, **more)
            for conv in (conv_general_dilated, lax.conv_general_dilated)
        )
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    matrices = conv_general_dilated(draws(3, 4), jnp.ones((2, 4)), (), [])
    assert matrices.shape == (3, 2)


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize(
    "arguments",
    [
        ((1, 1), "SAME", None, None, ("NCHW", "HWIO", "NHWC")),  # 4 features in, not 5
        ((1,), "SAME", None, None, LAYOUT),
        ((1, 1), "NONE", None, None, LAYOUT),
        ((1, 1), [(1, 1)], None, None, LAYOUT),
        ((0, 1), "SAME", None, None, LAYOUT),
        ((1, 1), "VALID", None, (1, 0), LAYOUT),
    ],
)
def test_errors_are_laxs(arguments):
    x, w = jnp.ones((2, 5, 6, 4)), jnp.ones((3, 3, 4, 2))
    with pytest.raises(Exception) as expected:  # noqa: PT011
        lax.conv_general_dilated(x, w, *arguments)
    with pytest.raises(expected.type):
        conv_general_dilated(x, w, *arguments)


def test_explicit_sharding():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.reshard(draws(8, 6, 6, 2), jax.sharding.PartitionSpec("data"))
        w = draws(3, 3, 2, 3)
        found, expected = (
            jax.jit(convolve((1, 1), conv))(x, w)
            for conv in (conv_general_dilated, lax.conv_general_dilated)
        )
        assert found.sharding == expected.sharding
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_shard_map():
    """Inside it, kernels' gradients are summed over devices, as lax's are."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    x, w = draws(8, 6, 6, 2), draws(3, 3, 2, 3)

    def gradient(conv):
        def loss(x, w):
            return lax.psum(jnp.sum(jnp.sin(convolve((1, 1), conv)(x, w))), "data")

        mapped = jax.shard_map(loss, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
        return jax.jit(jax.grad(mapped, (0, 1)))(x, w)

    close(gradient(conv_general_dilated), gradient(lax.conv_general_dilated), 1e-5, 1e-5)


def test_export_with_any_number_of_rows(x64):
    x, w = draws(5, 6, 5, 2), draws(3, 3, 2, 4)
    rows = jax.export.symbolic_shape("rows, 6, 5, 2")
    step = jax.jit(jax.grad(lambda x, w: jnp.sum(convolve((1, 1))(x, w) ** 3), (0, 1)))
    spec = jax.ShapeDtypeStruct(rows, x.dtype)
    exported = jax.export.export(step, platforms=["cpu", "cuda"])(spec, w)
    close(exported.call(x, w), step(x, w), rtol=1e-12, atol=1e-12)


def test_a_window_larger_than_the_image(x64):
    """No place, so no result; gradients are zeros of the operands' shapes."""
    x, w = draws(2, 2, 2, 1), draws(5, 5, 1, 3)
    gradients = jax.grad(
        lambda x, w: jnp.sum(conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=LAYOUT)),
        (0, 1),
    )(x, w)
    close(gradients, (0 * x, 0 * w), rtol=0)


def test_half_precision_rounds_once():
    """Within bfloat16's own error of the float32 result."""
    images, kernel, strides = LAYERS["strided"]
    x, w = draws(*images), draws(*kernel)

    def gradients(x, w):
        return jax.grad(lambda x, w: jnp.sum(convolve(strides)(x, w).astype(float) ** 2), (0, 1))(
            x, w
        )

    halves = [a.astype(jnp.bfloat16) for a in (x, w)]
    found = gradients(*halves)
    expected = gradients(*(a.astype(float) for a in halves))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        assert jnp.linalg.norm(a.astype(float) - b) < 2**-7 * jnp.linalg.norm(b)


def test_flax_layer():
    x = jnp.asarray(DRAW.normal(size=(4, 9, 8, 3)), jnp.float32)
    theirs = linen.Conv(5, (3, 2), strides=2)
    ours = linen.Conv(5, (3, 2), strides=2, conv_general_dilated=conv_general_dilated)
    params = theirs.init(jax.random.key(0), x)
    found, expected = (
        jax.value_and_grad(lambda p, layer=layer: jnp.sum(layer.apply(p, x) ** 2))(params)
        for layer in (ours, theirs)
    )
    close(found, expected, rtol=1e-5, atol=1e-5)


@examples(3, 8)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(3, 9), st.integers(3, 9), st.integers(1, 3)),
    window=st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.none() | st.integers(1, 4) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    levels=st.sampled_from([2, 10**6]),
)
def test_pooling_is_torchs(shape, window, strides, levels):
    """Values, and gradients also where values tie, which two levels make most windows do."""
    torch = pytest.importorskip("torch")
    x = DRAW.integers(0, levels, shape).astype(np.float32) / levels
    theirs = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    for ours, pool in ((max_pool, torch.nn.MaxPool2d), (avg_pool, torch.nn.AvgPool2d)):
        expected = pool(window, strides)(theirs)
        weights = torch.tensor(DRAW.normal(size=expected.shape), dtype=torch.float32)
        (gradient,) = torch.autograd.grad((expected * weights).sum(), theirs)
        found, back = jax.vjp(lambda x, ours=ours: ours(x, window, strides), jnp.asarray(x))
        np.testing.assert_allclose(
            found, expected.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-6
        )
        cotangent = jnp.asarray(weights.numpy().transpose(0, 2, 3, 1))
        np.testing.assert_allclose(
            back(cotangent)[0], gradient.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2)])
def test_pooling_in_forward_mode_and_under_vmap(window, stride, x64):
    x, change = draws(2, 7, 6, 3), draws(2, 7, 6, 3)
    pool = partial(max_pool, window=window, strides=stride)

    def by_hand(x):
        rows, columns = ((size - window) // stride * stride + 1 for size in x.shape[1:3])
        values = [
            x[:, i : i + rows : stride, j : j + columns : stride]
            for i in range(window)
            for j in range(window)
        ]
        return jnp.stack(values).max(axis=0)

    close(jax.jvp(pool, (x,), (change,)), jax.jvp(by_hand, (x,), (change,)), rtol=1e-14)
    curvature = jax.jvp(jax.grad(lambda x: jnp.sum(pool(x) ** 3)), (x,), (change,))
    close(curvature, jax.jvp(jax.grad(lambda x: jnp.sum(by_hand(x) ** 3)), (x,), (change,)), 1e-12)
    np.testing.assert_array_equal(jax.vmap(pool)(x[None])[0], pool(x))


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_pooling_of_nonsense(pool):
    x = jnp.ones((2, 4, 5, 1))
    for more, error, message in (
        ((5,), ValueError, "window=5 is larger than x, whose images are 4 × 5"),
        ((0,), ValueError, "window must be at least 1, got 0"),
        ((2.5,), TypeError, "window must be an int"),
        ((2, (1, 0)), ValueError, "strides must be at least 1"),
    ):
        with pytest.raises(error, match=rf"{pool.__name__}: .*{message}"):
            pool(x, *more)
    with pytest.raises(ValueError, match=r"x has shape \(4, 5\), expected \[rows, height"):
        pool(x[0, :, :, 0])
