"""Keras' ResNet-50 as our backbone: nothing is changed, and errors name the arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax.models import ARCHITECTURES, ResNet
from retinanet_jax.weights import keras
from retinanet_jax.weights.keras import KERAS_INPUT, KERAS_MODEL

KEY = jax.random.key(0)
STAGES = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}


def _layer(arrays, rng, convolution, norm, kernel):
    channels = kernel[-1]
    fan_in = np.prod(kernel[:3])
    arrays[f"{convolution}/kernel"] = rng.standard_normal(kernel, np.float32) / fan_in**0.5
    arrays[f"{convolution}/bias"] = rng.standard_normal(channels, np.float32)
    arrays[f"{norm}/gamma"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
    arrays[f"{norm}/beta"] = rng.standard_normal(channels, np.float32)
    arrays[f"{norm}/moving_mean"] = rng.standard_normal(channels, np.float32)
    # Small, so that an epsilon of 1e-5 in place of 1e-3 makes a difference.
    arrays[f"{norm}/moving_variance"] = rng.uniform(0.01, 1, channels).astype(np.float32)


def keras_arrays(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    _layer(arrays, rng, "conv1", "bn_conv1", (7, 7, 3, 64))
    channels = 64
    for stage, letters in STAGES.items():
        inner = 2 ** (stage + 4)
        for letter in letters:
            block = f"{stage}{letter}_branch"
            kernels = {
                "2a": (1, 1, channels, inner),
                "2b": (3, 3, inner, inner),
                "2c": (1, 1, inner, 4 * inner),
            }
            if letter == "a":
                kernels["1"] = (1, 1, channels, 4 * inner)
            for branch, kernel in kernels.items():
                _layer(arrays, rng, f"res{block}{branch}", f"bn{block}{branch}", kernel)
            channels = 4 * inner
    arrays["fc1000/kernel"] = np.zeros((2048, 1000), np.float32)
    arrays["fc1000/bias"] = np.zeros(1000, np.float32)
    return arrays


def pad(x, amount):
    return np.pad(x, ((amount, amount), (amount, amount), (0, 0)))


def windows(x, size, stride):
    """Return the windows (h w C size size) of an (H, W, C) array."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]


def conv_norm(arrays, x, convolution, norm, stride=1):
    """Compute what Keras computes: a padded convolution, its bias, the norm with epsilon 1e-3."""
    kernel = arrays[f"{convolution}/kernel"].astype(np.float64)
    size = len(kernel)
    x = np.einsum("hwcyx,yxcd->hwd", windows(pad(x, size // 2), size, stride), kernel)
    x = x + arrays[f"{convolution}/bias"] - arrays[f"{norm}/moving_mean"]
    x = x / np.sqrt(arrays[f"{norm}/moving_variance"].astype(np.float64) + 1e-3)
    return x * arrays[f"{norm}/gamma"] + arrays[f"{norm}/beta"]


def block(arrays, x, name, stride):
    """Compute a stage's first block; its stride is in the first 1x1 and in the shortcut."""

    def branch(x, suffix, stride=1):
        return conv_norm(arrays, x, f"res{name}_branch{suffix}", f"bn{name}_branch{suffix}", stride)

    y = np.maximum(branch(x, "2a", stride), 0)
    y = np.maximum(branch(y, "2b"), 0)
    return np.maximum(branch(y, "2c") + branch(x, "1", stride), 0)


def first_layers(arrays, image):
    """Compute stem, res2a and res3a (without res2b and res2c) of an (H, W, 3) image in float64."""
    x = np.maximum(conv_norm(arrays, image, "conv1", "bn_conv1", 2), 0)
    x = windows(pad(x, 1), 3, 2).max((-2, -1))
    return block(arrays, block(arrays, x, "2a", 1), "3a", 2)


def resnet50_backbone(arrays, norm):
    return keras.backbone(arrays, architecture="resnet50", norm=norm)


@pytest.fixture(scope="module")
def arrays():
    return keras_arrays()


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
def test_the_variables_are_those_of_the_backbone(arrays, norm):
    model = ResNet(**ARCHITECTURES["resnet50"], norm=norm, **KERAS_MODEL)
    images = jnp.zeros((1, 32, 32, 3))
    expected = jax.eval_shape(lambda: model.init(KEY, images, train=False))
    variables = resnet50_backbone(arrays, norm)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), variables)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
def test_every_array_except_the_classifier_is_used_once(arrays, norm):
    values = sum(x.size for x in jax.tree.leaves(resnet50_backbone(arrays, norm)))
    # Everything except fc1000 and the 26,560 biases that are folded into the means.
    assert values == 25_636_712 - 2_049_000 - 26_560


def test_a_convolution_s_bias_is_folded_into_the_mean(arrays):
    stats = resnet50_backbone(arrays, "frozen_batch")["batch_stats"]["stage4_block5"]["norm2"]
    mean, bias = arrays["bn4f_branch2b/moving_mean"], arrays["res4f_branch2b/bias"]
    np.testing.assert_array_equal(stats["mean"], mean - bias)
    np.testing.assert_array_equal(stats["var"], arrays["bn4f_branch2b/moving_variance"])
    np.testing.assert_array_equal(stats["scale"], arrays["bn4f_branch2b/gamma"])
    np.testing.assert_array_equal(stats["bias"], arrays["bn4f_branch2b/beta"])


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
def test_the_first_layers_compute_what_keras_computes(arrays, norm):
    image = np.random.default_rng(1).uniform(-120, 150, (32, 48, 3)).astype(np.float32)
    # A network with one block per stage finds its variables in those of the whole backbone.
    model = ResNet((1, 1), bottleneck=True, norm=norm, **KERAS_MODEL)
    apply = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    (features,) = apply(resnet50_backbone(arrays, norm), image[None])
    expected = first_layers(arrays, image)
    assert features.shape == (1, *expected.shape) == (1, 4, 6, 512)
    assert np.count_nonzero(expected) > expected.size / 4  # the comparison is not of zeros
    # float32 against float64: sums of up to 576 products a convolution.
    np.testing.assert_allclose(features[0], expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_the_input_is_bgr_minus_the_mean():
    assert KERAS_INPUT == {
        "order": "bgr",
        "mean": (103.939, 116.779, 123.68),
        "std": (1.0, 1.0, 1.0),
    }


def test_the_classifier_is_optional(arrays):
    without = {name: x for name, x in arrays.items() if not name.startswith("fc1000")}
    resnet50_backbone(without, "batch")


def test_the_caller_s_arrays_are_not_changed(arrays):
    before = arrays["bn_conv1/moving_mean"].copy()
    resnet50_backbone(arrays, "frozen_batch")
    np.testing.assert_array_equal(arrays["bn_conv1/moving_mean"], before)


def test_missing_unexpected_misshapen_and_infinite_arrays_are_listed_in_one_line(arrays):
    wrong = dict(arrays)
    del wrong["res2a_branch1/bias"], wrong["bn5c_branch2c/gamma"]
    wrong["res2d_branch2a/kernel"] = np.zeros(1)
    wrong["conv1/kernel"] = wrong["conv1/kernel"].transpose(3, 2, 0, 1)
    wrong["bn3a_branch1/beta"] = np.full(512, np.nan)
    with pytest.raises(ValueError, match="not Keras weights of resnet50") as caught:
        resnet50_backbone(wrong, "frozen_batch")
    message = str(caught.value)
    assert "missing: bn5c_branch2c/gamma, res2a_branch1/bias;" in message
    assert "unexpected: res2d_branch2a/kernel;" in message
    assert "of another shape: conv1/kernel" in message
    assert "not finite: bn3a_branch1/beta" in message
    assert "\n" not in message


def test_a_norm_without_running_statistics_is_an_error(arrays):
    with pytest.raises(ValueError, match="norm='group' has no batch norm statistics"):
        resnet50_backbone(arrays, "group")


def test_another_architecture_is_an_error(arrays):
    message = (
        r"Keras weights of resnet50, but config\.model\.backbone is resnet101; change it to res"
    )
    with pytest.raises(ValueError, match=message):
        keras.backbone(arrays, architecture="resnet101", norm="batch")
