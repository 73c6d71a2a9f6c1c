"""Sizes of resized images, computed by hand and by the reference implementations."""

import numpy as np
import pytest

from retinanet_jax.data.sizes import resized_size, resized_sizes, round_up

SIDES = {"short_side": 800, "long_side": 1333}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 640 * 800 / 480 = 1066.7
        ((640, 480), (1067, 800)),
        ((300, 600), (667, 1333)),  # limited by the long side: 300 * 1333 / 600 = 666.5, half up
        ((1000, 1000), (800, 800)),
        ((1, 2000), (1, 1333)),  # at least a pixel
    ],
)
def test_resized_sizes_computed_by_hand(size, expected):
    assert resized_size(*size, **SIDES, resize="bilinear") == expected


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((480, 640), "bilinear_float", (800, 1066)),  # 1066.7, rounded down
        ((300, 600), "bilinear_float", (666, 1333)),
        # 800 / 289 is not a float64, and 289 times the nearest one is below 800.
        ((289, 300), "bilinear_float", (799, 830)),
        ((1, 2000), "bilinear_float", (1, 1333)),
        ((480, 640), "pillow", (800, 1067)),
        ((640, 480), "pillow", (1067, 800)),
        ((300, 600), "pillow", (667, 1333)),  # 800 * (1333 / 1600) is 666.5
        ((620, 210), "pillow", (1333, 451)),  # 451.5, but 800 * (1333 / 2361.9) is just below
        ((612, 612), "pillow", (800, 800)),
    ],
)
def test_sizes_equal_those_of_torchvision_and_detectron2(size, resize, expected):
    """Computed with torchvision 0.28 and detectron2 0.6."""
    assert resized_size(*size, **SIDES, resize=resize) == expected


@pytest.mark.parametrize("resize", ["bilinear", "bilinear_float", "pillow"])
def test_sizes_of_many_images_are_those_of_each(resize):
    sizes = np.random.default_rng(0).integers(1, 2000, (100, 2))
    expected = [resized_size(*size, **SIDES, resize=resize) for size in sizes.tolist()]
    assert resized_sizes(sizes, **SIDES, resize=resize).tolist() == [
        list(size) for size in expected
    ]


def test_sides_are_rounded_up_to_a_multiple():
    assert [round_up(side) for side in (1, 32, 33)] == [32, 32, 64]
    assert round_up(np.array([[31, 65]])).tolist() == [[32, 96]]
    assert round_up(9, 8) == 16


def test_an_unknown_resize_method_is_an_error():
    with pytest.raises(ValueError, match="resize='bicubic' must be one of 'bilinear', 'bilinear_f"):
        resized_size(480, 640, **SIDES, resize="bicubic")
