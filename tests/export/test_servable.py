"""The exported function: its inputs and how images are prepared for them."""

import numpy as np
import pytest

from retinanet_jax.export.servable import default_image_size


def test_the_default_size_holds_every_resized_image(config):
    assert default_image_size(config) == (1344, 1344)  # 1333 rounded up to a multiple of 32


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ((64, 64), (64, 64)),
        ((30, 40), (64, 85)),  # by the short side
        ((100, 300), (30, 90)),  # by the long side, which is 90
        ((40, 30), (64, 48)),  # a height of 85 would not fit
    ],
)
def test_images_are_resized_as_in_evaluation_and_fit_the_input(servable, original, expected):
    servable.config.data.update(eval_short_side=64, long_side=90)
    assert servable.resized_size(*original) == expected
    image, size = servable.prepare(np.full((*original, 3), 255, np.uint8))
    assert tuple(size) == expected
    assert image.shape == (64, 96, 3)
    assert image[: size[0], : size[1]].all()
    assert not image[size[0] :].any()
    assert not image[:, size[1] :].any()


def test_inputs_are_float_if_resizing_does_not_round(servable):
    assert servable.specs(1)[0].dtype == np.uint8
    servable.config.data.resize = "bilinear_float"
    assert servable.specs(1)[0].dtype == np.float32
