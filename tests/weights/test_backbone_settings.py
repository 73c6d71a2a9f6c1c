"""Configs give imported ImageNet weights the input and the network of their training."""

import pytest

from retinanet_jax.config import config_files, load_config
from retinanet_jax.weights import BACKBONE_SOURCES, keras, msra, torchvision

CONFIGS = {path.stem: load_config(str(path)) for path in config_files()}
CONFIGS["finetune:imagenet"] = load_config("configs/finetune.py:imagenet")
# Source -> config.input and the fields of config.model that its weights need.
NEEDED = {
    "keras_resnet50": (keras.KERAS_INPUT, keras.KERAS_MODEL),
    "torchvision": (torchvision.TORCHVISION_INPUT, torchvision.TORCHVISION_MODEL),
    "msra": (msra.MSRA_INPUT, msra.MSRA_MODEL),
    "detectron2": (torchvision.TORCHVISION_INPUT, torchvision.TORCHVISION_MODEL),  # converted
}
FAIR = (msra.FAIR_INPUT, msra.FAIR_MODEL)  # the ResNeXt in MSRA's format


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_input_and_the_network_are_those_of_the_weights(config):
    source = config.init.source
    if source in ("", "checkpoint"):
        return
    fair = source == "msra" and config.model.backbone.startswith("resnext")
    needed_input, needed_model = FAIR if fair else NEEDED[source]
    assert config.input.to_dict() == needed_input
    assert {field: config.model[field] for field in needed_model} == needed_model
    assert config.model.backbone_width == 64


def test_every_source_is_checked():
    assert set(NEEDED) == set(BACKBONE_SOURCES)
    assert "keras_resnet50" in {config.init.source for config in CONFIGS.values()}
