"""The sheet shows training images with each augmentation, and their boxes."""

import io

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import datasets, visualize
from retinanet_jax.augmentation_presets import PRESETS
from retinanet_jax.data_report import augmentation_sheet, sheet


@pytest.fixture
def config(tmp_path, make_dataset, make_config):
    """Return a config that reads three images with a box."""
    dataset = make_dataset(tmp_path / "train")
    for _ in range(3):
        dataset.add_box(dataset.add_image(), [30, 20, 40, 50], "dog")
    fields = dataset.write()
    return make_config(fields, fields, batch_size=2, flip=False)


def test_there_is_a_section_for_the_config_and_for_each_other_preset(config):
    def presets(config):
        return [part.data.augmentation for _, part in augmentation_sheet.augmentations(config)]

    assert presets(config) == ["", *PRESETS]
    config.data.augmentation = "medium"
    assert presets(config) == ["medium", "light", "strong"]


def test_each_image_of_the_first_steps_is_on_the_sheet_without_padding(config, tmp_path):
    """Also of an epoch that is shorter than the sheet, of which the last batch has a filler."""
    source = datasets.open_training(config, tmp_path)
    see = augmentation_sheet.compiled_input(config)
    examples = list(augmentation_sheet.first_images(config, source, see))
    assert {int(batch.index[example]) for _, batch, example in examples} == {0, 1, 2}
    for image, batch, example in examples:
        assert image.size == (85, 64)
        original = Image.fromarray(source.image(int(batch.index[example])))
        expected = np.asarray(original.resize((85, 64), Image.Resampling.BILINEAR), float)
        assert np.abs(np.asarray(image) - expected).mean() < 40


def test_a_box_has_the_color_of_its_category(config, tmp_path):
    source = datasets.open_training(config, tmp_path)
    see = augmentation_sheet.compiled_input(config)
    image, batch, example = next(augmentation_sheet.first_images(config, source, see))
    image_with_box = np.asarray(augmentation_sheet.draw(image, batch, example))
    scale = augmentation_sheet.HEIGHT / 64
    assert image_with_box.shape[0] == augmentation_sheet.HEIGHT
    y1, x1, y2, _ = (batch.boxes[example, 0] * scale).astype(int)
    dog = int(batch.classes[example, 0])
    assert (image_with_box[(y1 + y2) // 2, x1] == visualize.class_color(dog)).all()


def test_the_sheet_is_a_png_of_all_sections(config, tmp_path):
    source = datasets.open_training(config, tmp_path)
    data = augmentation_sheet.augmentation_sheet(config, source)
    with Image.open(io.BytesIO(data)) as image:
        sections = 1 + len(PRESETS)
        row = visualize.LINE + augmentation_sheet.HEIGHT + sheet.GAP
        assert image.format == "PNG"
        assert image.height == sections * row
