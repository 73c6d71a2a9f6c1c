"""Recipes feed imported weights what they were trained with."""

import importlib
import pathlib

import pytest

import retinanet_jax.configs
from retinanet_jax.weights import BACKBONE_SOURCES, keras, msra, torchvision

FOLDER = pathlib.Path(retinanet_jax.configs.__path__[0])
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
# Source -> what the network must be fed, and be.
NEEDED = {
    "keras_resnet50": (keras.KERAS_INPUT, keras.KERAS_MODEL),
    "torchvision": (torchvision.TORCHVISION_INPUT, torchvision.TORCHVISION_MODEL),
    "msra": (msra.MSRA_INPUT, msra.MSRA_MODEL),
    "detectron2": (torchvision.TORCHVISION_INPUT, torchvision.TORCHVISION_MODEL),  # converted
}
FAIR = (msra.FAIR_INPUT, msra.FAIR_MODEL)  # the ResNeXt among MSRA's


@pytest.mark.parametrize("name", NAMES)
def test_the_input_and_the_network_are_those_of_the_weights(name):
    config = importlib.import_module(f"retinanet_jax.configs.{name}").get_config()
    source = config.init.source
    if not source:
        return
    fair = source == "msra" and config.model.backbone.startswith("resnext")
    needed_input, needed_model = FAIR if fair else NEEDED[source]
    assert config.input.to_dict() == needed_input
    assert {field: config.model[field] for field in needed_model} == needed_model
    assert config.model.backbone_width == 64


def test_every_source_is_held_to_what_it_needs():
    assert set(NEEDED) == set(BACKBONE_SOURCES)
    assert "keras_resnet50" in {
        importlib.import_module(f"retinanet_jax.configs.{name}").get_config().init.source
        for name in NAMES
    }
