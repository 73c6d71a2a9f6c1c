"""A preset of augmentation fills the fields that are off, and no others."""

import pathlib
import re

import jax
import numpy as np
import pytest

from retinanet_jax.augmentation_presets import PRESETS, augmented_data
from retinanet_jax.config import default_config, flatten
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.batch import Batch
from retinanet_jax.modeling import network_input


def test_without_a_preset_all_fields_are_those_of_the_config():
    config = default_config()
    assert dict(flatten(augmented_data(config))) == dict(flatten(config.data))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_the_fields_that_are_off_and_keeps_the_others(name):
    config = default_config()
    preset, before = dict(flatten(PRESETS[name])), dict(flatten(config.data))
    config.data.augmentation = name
    check_fields(config)
    after = dict(flatten(augmented_data(config)))
    assert after == before | {"augmentation": name} | preset
    assert dict(flatten(config.data)) == before | {"augmentation": name}
    config.data.affine.scale = (0.9, 1.0)
    config.data.color_jitter.hue = 0.4
    data = augmented_data(config)
    assert data.affine.scale == (0.9, 1.0)
    assert data.color_jitter.hue == 0.4
    assert data.color_jitter.contrast == preset["color_jitter.contrast"]


def test_each_preset_is_at_least_as_strong_as_the_one_before():
    light, medium, strong = (dict(flatten(PRESETS[name])) for name in ("light", "medium", "strong"))
    for weaker, stronger in ((light, medium), (medium, strong)):
        assert set(weaker) <= set(stronger)
        for field, value in weaker.items():
            low, high = np.broadcast_to(value, 2)
            lower, higher = np.broadcast_to(stronger[field], 2)
            assert high <= higher
            assert field != "affine.scale" or lower <= low


def test_an_unknown_preset_is_an_error():
    config = default_config()
    config.data.augmentation = "heavy"
    message = r"^data.augmentation='heavy' must be one of light, medium, strong\.$"
    for check in (check_fields, augmented_data):
        with pytest.raises(ValueError, match=message):
            check(config)


def test_the_network_sees_the_colors_of_the_preset_in_training_only():
    config = default_config()
    config.input.update(mean=(0.0, 0.0, 0.0))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    batch = Batch.of_images(pixels, np.full((2, 2), 8, np.float32), np.ones((2, 2), np.float32))
    batch = batch._replace(colors=np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.float32))
    np.testing.assert_array_equal(network_input(batch, config, train=True), pixels[..., ::-1])
    config.data.augmentation = "strong"
    gray, colored = jax.jit(lambda batch: network_input(batch, config, train=True))(batch)
    assert (gray == gray[..., :1]).all()
    luma = pixels[0] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray[..., 0], luma, atol=1e-3)
    np.testing.assert_array_equal(colored, pixels[1, ..., ::-1])
    config.data.augmentation = ""
    config.data.gray = 0.5
    by_field = jax.jit(lambda batch: network_input(batch, config, train=True))(batch)
    np.testing.assert_array_equal(by_field, [gray, colored])
    by_eval = network_input(batch, config, train=False)
    np.testing.assert_array_equal(by_eval, pixels[..., ::-1])


def test_the_documentation_has_the_values_of_the_presets():
    """In a table of which a line may contain several fields."""
    text = (pathlib.Path(__file__).parent.parent / "docs" / "data.md").read_text()
    lines = text.partition("| `light` | `medium` | `strong` |")[2].partition("\n\n")[0].splitlines()
    documented = {name: {} for name in PRESETS}
    for line in lines[2:]:
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        first, *others = re.findall("`([a-z_.]+)`", names)
        section = first.rpartition(".")[0]
        for preset, cell in zip(PRESETS, cells, strict=True):
            numbers = [float(number) for number in (cell or "0").split(" to ")]
            value = tuple(numbers) if len(numbers) > 1 else numbers[0]
            documented[preset][first] = value
            documented[preset] |= {f"{section}.{other}": value for other in others}
    off = dict(flatten(default_config().data))
    for name, preset in PRESETS.items():
        values = {field: off[field] for field in documented[name]} | dict(flatten(preset))
        assert documented[name] == values
