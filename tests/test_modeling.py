"""The network's input, outputs and initial variables, as the config specifies them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retinanet_jax import core, modeling
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.batch import Batch

SIZE = (64, 64)
NUM_CLASSES = 3


def make_batch(batch_size: int) -> Batch:
    """Return images of noise, 60 x 50 inside 64 x 64, with color jitter."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *SIZE, 3), np.uint8)
    sizes = np.tile(np.float32([60, 50]), (batch_size, 1))
    batch = Batch.of_images(images, sizes, np.full((batch_size, 2), 2, np.float32))
    return batch._replace(colors=np.tile(np.float32([1.2, 0.7, 1.3, 0.1]), (batch_size, 1)))


# ---- the input


def test_normalize_by_hand():
    image = np.array([[[[10, 20, 30]]]], np.uint8)
    numbers = {"mean": (1.0, 2.0, 3.0), "std": (1.0, 2.0, 4.0), "dtype": jnp.float32}
    sizes = np.ones((1, 2), np.float32)
    rgb = modeling.normalize(image, sizes, order="rgb", **numbers)
    bgr = modeling.normalize(image, sizes, order="bgr", **numbers)
    assert rgb.ravel().tolist() == [9, 9, 6.75]
    # The means are in the network's order: 30 - 1, (20 - 2) / 2, (10 - 3) / 4.
    assert bgr.ravel().tolist() == [29, 9, 1.75]


def test_normalize_zeroes_the_padding():
    images = np.full((2, 4, 6, 3), 200, np.uint8)
    sizes = np.array([[4, 6], [3, 2]], np.float32)
    normalize = functools.partial(
        modeling.normalize, order="rgb", mean=(100.0,) * 3, std=(10.0,) * 3, dtype=jnp.float32
    )
    result = np.asarray(normalize(images, sizes))
    np.testing.assert_array_equal(result[0], 10)
    np.testing.assert_array_equal(result[1, :3, :2], 10)
    assert result[1].sum() == 10 * 3 * 2 * 3
    np.testing.assert_array_equal(jax.jit(normalize)(images, sizes), result)


def test_normalize_rounds_once_at_the_end():
    image = np.full((1, 1, 1, 3), 255, np.uint8)
    result = modeling.normalize(
        image,
        np.ones((1, 2), np.float32),
        order="rgb",
        mean=(254.9,) * 3,
        std=(1.0,) * 3,
        dtype=jnp.bfloat16,
    )
    assert result.dtype == jnp.bfloat16
    # In bfloat16 254.9 would be 255 and the difference 0.
    np.testing.assert_allclose(result.astype(np.float32), 0.1, rtol=1e-2)


def test_an_unknown_channel_order_is_refused(config):
    config.input.order = "gbr"
    with pytest.raises(ValueError, match=r"input\.order='gbr' must be 'rgb' or 'bgr'"):
        modeling.network_input(make_batch(1), config, train=False)


def test_colors_are_jittered_only_in_training_and_only_if_the_config_has_a_strength(config):
    batch = make_batch(1)
    plain = modeling.network_input(batch, config, train=False)
    np.testing.assert_array_equal(modeling.network_input(batch, config, train=True), plain)
    config.data.color_jitter.hue = 0.1
    np.testing.assert_array_equal(modeling.network_input(batch, config, train=False), plain)
    jittered = np.array(modeling.network_input(batch, config, train=True))
    assert np.abs(jittered - plain).mean() > 1
    assert not jittered[:, 60:].any()
    assert not jittered[:, :, 50:].any()


# ---- the outputs and the variables


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "bf16", "int32", ""])
def test_a_dtype_without_support_is_refused_by_name(toy_config, dtype):
    toy_config.dtype = dtype
    message = rf"^dtype='{dtype}' must be one of float32, bfloat16, float64\.$"
    for check in (check_fields, functools.partial(modeling.build_model, num_classes=2)):
        with pytest.raises(ValueError, match=message):
            check(toy_config)


def test_float64_is_not_silently_float32(toy_config):
    toy_config.dtype = "float64"
    message = "dtype='float64' would be float32, since JAX disables it; .* JAX_ENABLE_X64=1"
    with pytest.raises(ValueError, match=message):
        modeling.network_input(make_batch(1), toy_config, train=False)
    with jax.enable_x64(True):
        images = modeling.network_input(make_batch(1), toy_config, train=False)
        assert images.dtype == "float64"


@pytest.mark.parametrize("last", [0, 7, 8, 19])
def test_a_ground_truth_is_matched_wherever_it_is_among_masked_ones(config, last):
    image = jnp.zeros((2, *SIZE, 3), jnp.uint8)
    sizes = jnp.full((2, 2), 64.0)
    batch = Batch.of_images(image, sizes, jnp.ones((2, 2)), num_boxes=20, num_crowd=1)
    anchors = jnp.asarray([[0, 0, 10, 10], [30, 30, 50, 50]], jnp.float32)
    batch = batch._replace(
        boxes=batch.boxes.at[1, last].set(anchors[1]),
        classes=batch.classes.at[1, last].set(2),
        mask=batch.mask.at[1, last].set(True),
    )
    labels = modeling.assign_batch_targets(anchors, batch, config.matching).labels
    assert labels.tolist() == [[core.BACKGROUND] * 2, [core.BACKGROUND, 2]]


def test_there_is_an_output_for_each_anchor(toy_config):
    model = modeling.build_model(toy_config, NUM_CLASSES)

    def apply(batch):
        variables = modeling.initialize(toy_config, NUM_CLASSES, seed=0)
        pixels = modeling.network_input(batch, toy_config, train=True)
        return model.apply(variables, pixels, train=False)

    outputs = jax.eval_shape(apply, make_batch(2))
    for logits, deltas, anchors in zip(
        *outputs, modeling.image_anchors(SIZE, toy_config), strict=True
    ):
        assert logits.shape == (2, len(anchors), NUM_CLASSES)
        assert deltas.shape == (2, len(anchors), 4)


@pytest.mark.slow
def test_a_seed_reproduces_the_variables_and_they_have_the_prior_probability(toy_config):
    first, again = (modeling.initialize(toy_config, NUM_CLASSES, seed=3) for _ in range(2))
    other = modeling.initialize(toy_config, NUM_CLASSES, seed=4)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, first, other)) > 1
    assert set(first) == {"params", "batch_stats"}
    biases = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            first["params"]["classification_head"]
        )
        if path[-1].key == "bias" and len(leaf) == 9 * NUM_CLASSES
    ]
    np.testing.assert_allclose(jax.nn.sigmoid(biases[0]), 0.01, rtol=1e-4)
