import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from retinanet_jax.core.color import jitter_color

settings.register_profile("jax", deadline=None, max_examples=30)
settings.load_profile("jax")

SAME = (1.0, 1.0, 1.0, 0.0)
jitter = jax.jit(jitter_color)


def photograph(seed=0):
    """Return pixels of all hues, grays and the corners of the color cube, "8 8 3"."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3))
    pixels[0] = np.stack(np.meshgrid(*[[0, 255]] * 3), axis=-1).reshape(8, 3)
    pixels[1] = np.arange(8)[:, None] * 36
    return pixels.astype(np.float32)


def adjust(image, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, valid=None):
    valid = np.ones(image.shape[:2], bool) if valid is None else valid
    factors = np.array([brightness, contrast, saturation, hue], np.float32)
    return np.asarray(jitter(image, valid, factors))


def row(*pixels):
    return np.array([pixels], np.float32)


def test_brightness_multiplies_and_is_clipped():
    assert adjust(row([10, 20, 200]), brightness=1.5).tolist() == [[[15, 30, 255]]]
    assert adjust(row([10, 20, 200]), brightness=0.0).tolist() == [[[0, 0, 0]]]


def test_contrast_scales_the_distance_from_the_mean_gray():
    # The gray values are 29.9, 58.7, 11.4 and 200: their mean is 75.
    image = row([100, 0, 0], [0, 100, 0], [0, 0, 100], [200, 200, 200])
    expected = np.clip(1.5 * image - 0.5 * 75, 0, 255)
    np.testing.assert_allclose(adjust(image, contrast=1.5), expected, atol=1e-4)
    np.testing.assert_allclose(adjust(image, contrast=0.0), np.full((1, 4, 3), 75), atol=1e-4)


def test_saturation_scales_the_distance_from_each_pixels_gray():
    image = row([100, 0, 0], [60, 60, 60])
    np.testing.assert_allclose(
        adjust(image, saturation=0.5), row([64.95, 14.95, 14.95], [60, 60, 60]), atol=1e-4
    )
    np.testing.assert_allclose(
        adjust(image, saturation=2.0), row([170.1, 0, 0], [60, 60, 60]), atol=1e-4
    )


def test_a_third_of_the_color_circle_leads_from_red_to_green_to_blue():
    image = row([200, 50, 80], [7, 7, 7])
    np.testing.assert_allclose(adjust(image, hue=1 / 3), row([80, 200, 50], [7, 7, 7]), atol=1e-3)
    np.testing.assert_allclose(adjust(image, hue=-1 / 3), row([50, 80, 200], [7, 7, 7]), atol=1e-3)
    np.testing.assert_allclose(adjust(row([255, 0, 0]), hue=0.5), row([0, 255, 255]), atol=1e-3)


def test_the_order_is_brightness_contrast_saturation_hue():
    image = photograph()
    step_by_step = adjust(adjust(image, brightness=1.3), contrast=0.6)
    step_by_step = adjust(adjust(step_by_step, saturation=1.4), hue=0.1)
    np.testing.assert_allclose(adjust(image, 1.3, 0.6, 1.4, 0.1), step_by_step, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_no_jitter_changes_nothing(dtype):
    image = (photograph() + 0.123).clip(0, 255).astype(dtype)
    result = adjust(image)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.7, 1.0, 1.3, 1.8])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_the_result_is_pillows_before_its_rounding(name, enhance, factor):
    image = photograph()
    expected = np.asarray(enhance(Image.fromarray(image.astype(np.uint8))).enhance(factor))
    # Pillow truncates its results: the fraction is 0.5 +- 0.5. It also rounds gray values by up to
    # 0.5, which the factor scales; rounding the mean of 64 rounded values adds about 0.05.
    tolerance = 0.5 + 0.6 * abs(1 - factor) + 1e-3
    result = adjust(image, **{name: factor})
    np.testing.assert_allclose(result, expected + 0.5, rtol=0, atol=tolerance)


@pytest.mark.parametrize("hue", [-0.5, -0.2, 0.05, 0.3, 0.5])
def test_hue_equals_colorsys(hue):
    image = photograph()
    expected = []
    for pixel in image.reshape(-1, 3) / 255:
        h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
        expected.append(colorsys.hsv_to_rgb((h + hue) % 1, s, v))
    expected = 255 * np.array(expected).reshape(image.shape)
    np.testing.assert_allclose(adjust(image, hue=hue), expected, atol=1e-2)


factors = st.tuples(*[st.floats(0, 2, width=32)] * 3, st.floats(-0.5, 0.5, width=32))


@given(factors, st.integers(0, 9))
def test_padding_is_unchanged_and_changes_nothing(factors, seed):
    image = photograph(seed)
    padded = np.full((11, 13, 3), 77, np.float32)
    padded[:8, :8] = image
    valid = np.zeros((11, 13), bool)
    valid[:8, :8] = True
    result = adjust(padded, *factors, valid=valid)
    np.testing.assert_allclose(result[:8, :8], adjust(image, *factors), atol=1e-3)
    assert (result[~valid] == 77).all()


@given(factors, st.integers(0, 9))
def test_the_result_is_finite_and_in_range(factors, seed):
    result = adjust(photograph(seed), *factors)
    assert (result >= 0).all()
    assert (result <= 255).all()


def test_an_image_that_is_all_padding_is_unchanged():
    image = photograph()
    result = adjust(image, 1.2, 0.5, 0.5, 0.1, valid=np.zeros((8, 8), bool))
    np.testing.assert_array_equal(result, image)


def test_bfloat16_is_computed_in_float32():
    image = photograph().astype(jnp.bfloat16)
    expected = adjust(image.astype(np.float32), 1.1, 1.3, 0.8, 0.07).astype(jnp.bfloat16)
    np.testing.assert_array_equal(adjust(image, 1.1, 1.3, 0.8, 0.07), expected)


def test_vmap_equals_a_loop():
    images = np.stack([photograph(seed) for seed in range(3)])
    valid = np.random.default_rng(0).random((3, 8, 8)) < 0.7
    factors = np.array([SAME, [0.5, 1.5, 1.2, -0.1], [1.2, 0.3, 0.0, 0.4]], np.float32)
    batched = jax.jit(jax.vmap(jitter_color))(images, valid, factors)
    for index in range(3):
        expected = jitter(images[index], valid[index], factors[index])
        np.testing.assert_allclose(batched[index], expected, atol=1e-3)
