"""The convolutions for CPUs have the results and gradients of XLA's, with little more rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from retinanet_jax.compilation import memory_options
from retinanet_jax.models import convolution

DIMENSIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
PADDING_OF_ONE = ((1, 1), (1, 1))
EPS = np.finfo(np.float32).eps


def plain(images, kernel, strides=(1, 1), padding=PADDING_OF_ONE, **options):
    return lax.conv_general_dilated(images, kernel, strides, padding, **DIMENSIONS, **options)


def fast(images, kernel, strides=(1, 1), padding=PADDING_OF_ONE, **options):
    return convolution.conv_general_dilated(
        images, kernel, strides, padding, **DIMENSIONS, **options
    )


def random_arrays(*shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.array(rng.normal(size=shape), dtype) for shape in shapes]


winograd = jax.jit(convolution.winograd)


def plain_in_float64(images, kernel):
    with jax.enable_x64(True):
        return np.asarray(plain(images.astype(float), kernel.astype(float)))


def rounding_bound(monkeypatch, images, kernel):
    """Return a bound on the error of each float32 result of `winograd`.

    A result is a sum of products of pixels, taps and entries of the transforms. Each is rounded by
    a few eps of its size, in either direction, so that the errors add up to less than eps times the
    sum of all magnitudes: `winograd` of absolute values by absolute transforms.
    """
    with monkeypatch.context() as patch, jax.enable_x64(True):
        for name in ("PIXELS", "KERNEL", "RESULTS"):
            patch.setattr(convolution, name, np.abs(getattr(convolution, name)))
        magnitudes = (jnp.abs(x).astype(float) for x in (images, kernel))
        return EPS * np.asarray(convolution.winograd(*magnitudes))


@functools.partial(jax.jit, static_argnums=0)
def gradients(function, images, kernel, cotangent):
    result, pull_back = jax.vjp(function, images, kernel)
    return result, *pull_back(cotangent)


def is_winograd(images, kernel, strides=(1, 1), padding=PADDING_OF_ONE):
    return convolution.fits_winograd(images, kernel, strides, padding)


def always_winograd(patch):
    """Set the limits so that Winograd's algorithm computes whatever it can."""
    for name in ("MIN_CHANNELS", "MIN_FEATURES"):
        patch.setattr(convolution, name, 1)
    patch.setattr(convolution, "CHANNELS_PER_TILE", 1000)


def test_winograd_of_an_impulse_is_the_reversed_kernel(monkeypatch):
    images = jnp.zeros((1, 5, 6, 1)).at[0, 2, 3, 0].set(1)
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    expected = np.zeros((5, 6))
    expected[1:4, 2:5] = [[8, 7, 6], [5, 4, 3], [2, 1, 0]]
    errors = np.abs(winograd(images, kernel)[0, :, :, 0] - expected)
    assert (errors <= rounding_bound(monkeypatch, images, kernel)[0, :, :, 0]).all()


@pytest.mark.parametrize("size", [(7, 5), (2, 9)])
def test_winograd_and_its_gradients_equal_the_plain_convolution(size):
    with jax.enable_x64(True):
        arguments = random_arrays((2, *size, 3), (3, 3, 3, 5), (2, *size, 5), dtype=float)
        ours, expected = (gradients(f, *arguments) for f in (convolution.winograd, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, expected)


def test_winograd_under_vmap(monkeypatch):
    images, kernel = random_arrays((3, 1, 6, 6, 2), (3, 3, 2, 4))
    batched = jax.jit(jax.vmap(convolution.winograd, in_axes=(0, None)))(images, kernel)
    for image, result in zip(images, batched, strict=True):
        errors = np.abs(result - plain_in_float64(image, kernel))
        assert (errors <= rounding_bound(monkeypatch, image, kernel)).all()


def test_winograd_rounds_little_more_than_a_float32_sum():
    num_products = 9 * 256
    images, kernel = random_arrays((1, 16, 16, 256), (3, 3, 256, 8))
    kernel /= np.sqrt(num_products)  # results of size 1
    errors = np.abs(winograd(images, kernel) - plain_in_float64(images, kernel))
    # The error of a sum is a random walk with a step of at most eps per product, sqrt(n) eps.
    assert errors.max() < 3 * np.sqrt(num_products) * EPS


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_convolutions_with_one_by_one_kernels_equal_the_plain_ones(strides):
    def one_by_one(function):
        return functools.partial(function, strides=strides, padding=((0, 0), (0, 0)))

    rows, columns = 6 // strides[0], 8 // strides[1]
    arguments = random_arrays((2, 6, 8, 3), (1, 1, 3, 4), (2, rows, columns, 4))
    ours, expected = (gradients(one_by_one(f), *arguments) for f in (fast, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, expected)


def test_winograd_is_for_wide_kernels_on_large_maps_in_full_precision():
    large = jax.ShapeDtypeStruct((2, 32, 32, 128), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)
    assert is_winograd(large, kernel)
    # The mean of 128 and 32 channels is 64: 4 tiles are enough, and 8 of 128 channels.
    assert is_winograd(large.update(shape=(2, 4, 7, 128)), kernel.update(shape=(3, 3, 128, 32)))
    assert is_winograd(large.update(shape=(2, 7, 8, 128)), kernel)
    assert not is_winograd(large.update(shape=(1, 28, 4, 128)), kernel)
    assert not is_winograd(large, kernel.update(shape=(3, 3, 128, 31)))
    assert not is_winograd(large.update(shape=(2, 32, 32, 127)), kernel)
    assert not is_winograd(large, kernel.update(shape=(3, 3, 32, 128)))  # four groups
    assert not is_winograd(large, kernel.update(shape=(1, 1, 128, 128)))
    assert not is_winograd(large.update(dtype=jnp.bfloat16), kernel)
    assert not is_winograd(large, kernel, strides=(2, 2))
    assert not is_winograd(large, kernel, padding=((0, 0), (0, 0)))


def test_winograd_is_used_where_it_is_faster(monkeypatch):
    images, kernel = random_arrays((1, 64, 32, 128), (3, 3, 128, 128))
    result = jnp.zeros_like(images)
    monkeypatch.setattr(convolution, "winograd", lambda images, kernel: result)
    assert fast(images, kernel) is result


@pytest.mark.parametrize(
    ("kernel", "options"),
    [((3, 3, 4, 8), {}), ((3, 3, 2, 8), {"feature_group_count": 2})],
)
def test_other_convolutions_are_plain(kernel, options):
    images, kernel = random_arrays((1, 6, 7, 4), kernel)
    np.testing.assert_array_equal(
        fast(images, kernel, (2, 2), **options), plain(images, kernel, (2, 2), **options)
    )


CHANNELS_FIRST = {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}
OPTIONS = {  # the shapes of images and kernel, the padding, and options that are not those of Flax
    "dilated one-by-one input": ((1, 6, 7, 4), (1, 1, 4, 8), "none", {"lhs_dilation": (2, 3)}),
    "dilated one-by-one kernel": ((1, 6, 7, 4), (1, 1, 4, 8), "none", {"rhs_dilation": (2, 2)}),
    "padded one-by-one": ((1, 6, 7, 4), (1, 1, 4, 8), ((1, 0), (2, 3)), {}),
    "cropped one-by-one": ((1, 6, 7, 4), (1, 1, 4, 8), ((-1, 0), (0, -2)), {}),
    "one-by-one of this size": ((1, 6, 7, 4), (1, 1, 4, 8), "SAME", {}),
    "one-by-one without padding": ((1, 6, 7, 4), (1, 1, 4, 8), "VALID", {}),
    "one-by-one groups of images": ((4, 6, 7, 4), (1, 1, 4, 8), "none", {"batch_group_count": 2}),
    "one-by-one channels first": ((4, 4, 6, 7), (8, 4, 1, 1), "none", CHANNELS_FIRST),
    "named by default": ((2, 1, 6, 1), (1, 1, 1, 1), "none", {"dimension_numbers": None}),
    "one-by-one in full precision": ((1, 6, 7, 4), (1, 1, 4, 8), "none", {"precision": "highest"}),
    "dilated wide input": ((1, 17, 9, 4), (3, 3, 4, 8), PADDING_OF_ONE, {"lhs_dilation": (2, 2)}),
    "dilated wide kernel": ((1, 17, 9, 4), (3, 3, 4, 8), PADDING_OF_ONE, {"rhs_dilation": (2, 2)}),
    "wide groups of images": (
        (4, 17, 9, 4),
        (3, 3, 4, 8),
        PADDING_OF_ONE,
        {"batch_group_count": 2},
    ),
    "wide of this size": ((1, 17, 9, 4), (3, 3, 4, 8), "SAME", {}),
    "wide channels first": ((4, 4, 17, 9), (8, 4, 3, 3), PADDING_OF_ONE, CHANNELS_FIRST),
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_no_option_of_a_convolution_is_ignored(monkeypatch, case, strides):
    always_winograd(monkeypatch)
    images_shape, kernel_shape, padding, options = OPTIONS[case]
    images, kernel = random_arrays(images_shape, kernel_shape)
    padding = ((0, 0), (0, 0)) if padding == "none" else padding
    results = []
    for function in (convolution.conv_general_dilated, lax.conv_general_dilated):

        def convolve(images, kernel, function=function):
            return function(images, kernel, strides, padding, **{**DIMENSIONS, **options})

        result, pull_back = jax.vjp(convolve, images, kernel)
        results.append((result, *pull_back(jnp.cos(result))))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


def test_the_type_of_the_result_is_that_of_xla():
    images, kernel = random_arrays((1, 6, 7, 4), (1, 1, 4, 8), dtype=jnp.bfloat16)
    options = {"padding": ((0, 0), (0, 0)), "preferred_element_type": jnp.float32}
    ours, expected = (function(images, kernel, **options) for function in (fast, plain))
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, expected)
    with pytest.raises(TypeError, match="requires arguments to have the same dtypes"):
        fast(images, kernel.astype(jnp.float32), padding=((0, 0), (0, 0)))


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_random_convolutions_are_those_of_xla(data):
    """Shapes and options of all combinations, and errors where XLA's has one."""
    small = st.integers(1, 3)
    pairs = st.tuples(small, small)
    side = st.integers(-1, 2)
    channels, groups, batch_groups = (data.draw(st.sampled_from((1, 1, 2))) for _ in range(3))
    size = data.draw(st.sampled_from((1, 1, 3)))
    images, kernel = random_arrays(
        (2 * batch_groups, *data.draw(st.tuples(st.integers(4, 9), st.integers(4, 9))), 2 * groups),
        (size, size, 2 * channels, 4),
    )
    options = {
        "dimension_numbers": data.draw(
            st.sampled_from((("NHWC", "HWIO", "NHWC"), ("NWHC", "WHIO", "NHWC"), None))
        ),
        "lhs_dilation": data.draw(st.none() | st.just((1, 1)) | pairs),
        "rhs_dilation": data.draw(st.none() | st.just((1, 1)) | pairs),
        "feature_group_count": groups,
        "batch_group_count": batch_groups,
        "preferred_element_type": data.draw(st.sampled_from((None, jnp.float32, jnp.float16))),
    }
    padding = data.draw(
        st.sampled_from(("SAME", "VALID", ((1, 1), (1, 1)), ((0, 0), (0, 0))))
        | st.tuples(st.tuples(side, side), st.tuples(side, side))
    )
    strides = data.draw(pairs)

    def shape_or_error(function):
        try:
            return jax.eval_shape(
                lambda *arrays: function(*arrays, strides, padding, **options), images, kernel
            )
        except (TypeError, ValueError) as error:
            return type(error), str(error)

    expected = shape_or_error(lax.conv_general_dilated)
    with pytest.MonkeyPatch.context() as patch:
        always_winograd(patch)
        assert shape_or_error(convolution.conv_general_dilated) == expected
        if isinstance(expected, jax.ShapeDtypeStruct):
            ours, plain = (
                function(images, kernel, strides, padding, **options)
                for function in (convolution.conv_general_dilated, lax.conv_general_dilated)
            )
            np.testing.assert_allclose(ours, plain, rtol=2e-3, atol=1e-3)


TAPS = {  # the shapes of images and kernel, the number of groups, strides and padding
    "ResNeXt's": ((2, 6, 7, 128), (3, 3, 4, 128), 32, (1, 1), PADDING_OF_ONE),
    "strided": ((2, 7, 6, 12), (3, 3, 4, 6), 3, (2, 2), PADDING_OF_ONE),
    "one channel each": ((1, 5, 5, 6), (3, 3, 1, 12), 6, (1, 2), PADDING_OF_ONE),
    "one-by-one": ((1, 6, 7, 4), (1, 1, 2, 8), 2, (1, 1), ((0, 0), (0, 0))),
    "uneven padding": ((1, 9, 8, 4), (5, 2, 2, 2), 2, (3, 1), ((-1, 2), (0, -1))),
    "many channels each": ((1, 3, 3, 200), (3, 3, 100, 4), 2, (1, 1), PADDING_OF_ONE),
    "like the stem": ((1, 8, 8, 6), (7, 7, 3, 4), 2, (2, 2), ((3, 3), (3, 3))),
    "one group": ((2, 7, 6, 128), (3, 3, 128, 4), 1, (2, 2), PADDING_OF_ONE),
    "one group, uneven": ((1, 9, 8, 130), (3, 2, 130, 3), 1, (1, 3), ((0, 1), (-1, 0))),
}


@pytest.mark.parametrize("case", TAPS)
def test_groups_and_strides_have_the_results_and_gradients_of_xla(case):
    images_shape, kernel_shape, groups, strides, padding = TAPS[case]

    def of(function):
        return functools.partial(
            function, strides=strides, padding=padding, feature_group_count=groups
        )

    with jax.enable_x64(True):
        arguments = random_arrays(images_shape, kernel_shape, dtype=float)
        cotangent = jnp.cos(of(plain)(*arguments))
        ours, expected = (gradients(of(f), *arguments, cotangent) for f in (fast, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, expected)


@pytest.mark.parametrize(("groups", "strides"), [(32, (1, 1)), (1, (2, 2))])
def test_the_gradient_of_a_kernel_in_groups_or_with_a_stride_is_a_few_products(groups, strides):
    """XLA's own convolution for it takes a CPU about 60 times as long, or 1.4 times."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 128), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 128 // groups, 128), jnp.float32)

    def kernel_gradient(images, kernel):
        function = functools.partial(fast, strides=strides, feature_group_count=groups)
        return jax.grad(lambda kernel: jnp.sum(function(images, kernel) ** 2))(kernel)

    program = jax.jit(kernel_gradient).lower(images, kernel).as_text()
    assert program.count("stablehlo.convolution") == 1  # the forward pass
    assert "batch_group_count = 32" not in program


def test_winograd_multiplies_a_quarter_as_often():
    """36 matrix products replace 144, and as many again for each gradient."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 64, 64, 128), (3, 3, 128, 128))]

    def flops(function):
        def loss(*arguments):
            return jnp.sum(function(*arguments) ** 2)

        return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).cost_analysis()["flops"]

    assert flops(convolution.winograd) < 0.45 * flops(plain)


def temporaries(num_convolutions, images):
    """Return the bytes of the gradient of a chain of convolutions, besides its operands."""

    def total(kernels, images):
        for kernel in kernels:
            images = jax.nn.relu(winograd(images, kernel))
        return images.sum()

    kernels = [jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)] * num_convolutions
    gradient = jax.jit(jax.grad(total), compiler_options=memory_options("cpu"))
    program = gradient.lower(kernels, images).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_the_backward_pass_stores_one_map_for_each_convolution():
    images = jax.ShapeDtypeStruct((1, 64, 64, 128), jnp.float32)
    stored = (temporaries(6, images) - temporaries(4, images)) / 2
    assert stored <= 1.05 * 4 * images.size  # transformed pixels and kernels are 3.3 times as much


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_stays_where_it_is_in_gradients(number):
    images, kernel = random_arrays((1, 40, 40, 128), (3, 3, 128, 128))
    cotangent = jnp.ones((1, 40, 40, 128)).at[0, 0, 0, 0].set(number)
    _, of_images, of_kernel = gradients(winograd, images, kernel, cotangent)
    assert not jnp.isfinite(of_kernel[..., 0]).all()
    assert jnp.isfinite(of_kernel[..., 1:]).all()
    assert jnp.isfinite(of_images[:, 8:, 8:]).all()
