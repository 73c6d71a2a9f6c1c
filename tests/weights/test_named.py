"""Published weights by name: the registry, the config fields they require, and fine-tuning."""

import pathlib
import sys

import pytest

from retinanet_jax import checkpoint
from retinanet_jax import config as config_module
from retinanet_jax.cli.initial_weights import finetune_config
from retinanet_jax.config import load_config
from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.stored_config import differences, network_differences
from retinanet_jax.training.initialization import start_from
from retinanet_jax.training.transfer import PADDING_FIELDS
from retinanet_jax.weights import BACKBONE_SOURCES, named
from retinanet_jax.weights.download import KERAS_RESNET50, KNOWN
from retinanet_jax.weights.named import BACKBONES, DETECTORS, NAMES
from retinanet_jax.weights.presets import PRESETS, preset_config

FINETUNE = "configs/finetune.py"


# ---- the registry


def test_each_published_file_has_one_name():
    files = [known.file for known in NAMES.values()]
    assert sorted(files) == sorted(KNOWN)
    assert not set(DETECTORS) & set(BACKBONES)
    for known in DETECTORS.values():
        assert known.source in PRESETS
    for known in BACKBONES.values():
        assert known.source in BACKBONE_SOURCES
        assert known.backbone in ARCHITECTURES


def test_the_names_and_the_published_results():
    assert {name: known.ap for name, known in DETECTORS.items()} == {
        "torchvision_v1": 36.4,
        "torchvision_v2": 41.5,
        "detectron2_r50_1x": 37.4,
        "detectron2_r50_3x": 38.7,
        "detectron2_r101_3x": 40.4,
    }
    assert DETECTORS["detectron2_r101_3x"].backbone == "resnet101"
    assert BACKBONES["torchvision_resnet50_v2"].file == "resnet50-11ad3fa6.pth"
    assert BACKBONES["torchvision_resnext101_64x4d"].backbone == "resnext101_64x4d"
    assert BACKBONES["resnet50"].file == KERAS_RESNET50


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("torchvision_v2", "torchvision_v2"),
        ("weights/R-101.pkl", "resnet101"),
        ("weights/resnet50.npz", "resnet50"),
        (pathlib.Path("model_final_971ab9.pkl"), "detectron2_r101_3x"),
        ("runs/torchvision_v2", None),
        ("resnet50.pth", None),
        ("", None),
    ],
)
def test_an_argument_may_be_a_name_or_end_in_a_published_file(argument, name):
    assert named.find_name(argument) == name


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("torchvision_v3", "did you mean torchvision_v2? The names are torchvision_v1, "),
        ("detectron2", "did you mean detectron2_r50_3x? The names are "),
        ("absent", "of published weights; the names are torchvision_v1, torchvision_v2, "),
    ],
)
def test_an_unknown_name_is_one_line_with_the_names_and_the_most_similar(places, argument, hint):
    with pytest.raises(FileNotFoundError) as error:
        named.locate(argument)
    line = str(error.value)
    assert line.startswith(f"{argument} does not exist, and is no name of published weights; ")
    assert hint in line
    assert all(name in line for name in NAMES)
    assert "\n" not in line


# ---- the network that weights require


def test_the_error_about_a_missing_path_lists_what_can_be_given_and_not_all_names(places):
    (places / "mine").mkdir()
    for argument in ("mine.pth", "runs/mine", "~/mine"):
        message = str(named.unknown_name(argument))
        assert message == (
            f"{argument} does not exist, and is no name of published weights; give the path of an "
            "existing file, a URL, or a name such as torchvision_v2 or resnet50."
        )
    assert str(named.unknown_name("mine")) == "mine is a folder; give a file of weights in it."


@pytest.mark.parametrize("name", NAMES)
def test_fine_tuning_has_the_network_of_every_name(name):
    config = finetune_config(name)
    if name in DETECTORS:
        required = preset_config(DETECTORS[name].source)
        required.model.backbone = DETECTORS[name].backbone
        differing = {field for field, *_ in network_differences(required, config)}
        assert differing <= set(PADDING_FIELDS)
        assert config.init.to_dict() == {"source": "checkpoint", "path": name}
        assert (config.model.norm, config.model.frozen_stages) == ("frozen_batch", 3)
    else:
        backbone = BACKBONES[name]
        assert config.model.backbone == backbone.backbone
        assert config.model.fpn_channels == 128
        assert {field: config.model[field] for field in backbone.model} == backbone.model
        assert config.input.to_dict() == backbone.input
        assert config.init.to_dict() == {"source": backbone.source, "path": name}
    assert config.model.padding == "masked"
    start_from(config, name)  # is no error: the network fits


def test_the_arguments_of_finetune_are_the_detectors_and_imagenet():
    for name in DETECTORS:
        assert not differences(load_config(f"{FINETUNE}:{name}"), finetune_config(name))
    assert not differences(load_config(f"{FINETUNE}:imagenet"), finetune_config("resnet50"))


def test_fine_tuning_starts_from_torchvision_v2_by_default():
    config = load_config(FINETUNE)
    assert config.init.to_dict() == {"source": "checkpoint", "path": "torchvision_v2"}
    assert not differences(config, load_config(f"{FINETUNE}:torchvision_v2"))
    assert not differences(
        load_config(f"{FINETUNE}:detectron2"), load_config(f"{FINETUNE}:detectron2_r50_3x")
    )


def test_the_imagenet_start_of_earlier_versions_is_an_argument():
    """The fields in which it differed from the paper's config, by which old runs are resumed."""
    config = load_config(f"{FINETUNE}:imagenet")
    changed = {field: now for field, _, now in differences(config_module.default_config(), config)}
    assert {field: value for field, value in changed.items() if field.startswith("model.")} == {
        "model.fpn_channels": 128,
        "model.head_depth": 3,
        "model.head_norm": "group",
        "model.frozen_stages": 3,
    }
    assert not {field for field in changed if field.startswith(("anchors.", "input."))}
    assert config.init.to_dict() == {"source": "keras_resnet50", "path": "resnet50"}


def test_a_run_of_an_earlier_finetune_names_the_argument_that_resumes_it(tmp_path):
    saved, config = load_config(f"{FINETUNE}:imagenet"), load_config(FINETUNE)
    with pytest.raises(ValueError, match=r"before 0\.4\.0: configs/finetune\.py:imagenet\), or "):
        checkpoint.check_model(tmp_path, saved, config)
    checkpoint.check_model(tmp_path, saved, load_config(f"{FINETUNE}:imagenet"))
    with pytest.raises(ValueError, match=r"with \(--config\.anchors\.offset=0\.0\), or another"):
        checkpoint.check_model(tmp_path, config, saved)


def test_an_unknown_argument_of_finetune_lists_the_names():
    with pytest.raises(ValueError, match=r"'torchvision_v3' is unknown; .*torchvision_v2, .*tiny"):
        load_config(f"{FINETUNE}:torchvision_v3")


def test_weights_of_another_network_than_the_config_s_are_one_line_with_the_fields():
    config = load_config("configs/torchvision.py:v1").unlock()
    with pytest.raises(ValueError, match="require") as error:
        start_from(config, "torchvision_v2")
    assert str(error.value) == (
        "the weights torchvision_v2 require config.model.head_norm=group (this run has none), "
        "config.model.p6_from=c5 (this run has p5); give these values, or "
        "--config=configs/finetune.py --weights=torchvision_v2."
    )
    with pytest.raises(ValueError, match=r"config\.input\.mean=\[103\.939, .*\.stride_in_1x1"):
        start_from(config, "resnet50")


def test_weights_set_the_start_of_a_config_with_their_network():
    config = load_config("configs/r50_fpn.py").unlock()
    start_from(config, "weights/resnet50.npz")
    assert config.init.to_dict() == {"source": "keras_resnet50", "path": "weights/resnet50.npz"}
    config = load_config("configs/torchvision.py:v2").unlock()
    start_from(config, "torchvision_v2")
    assert config.init.to_dict() == {"source": "checkpoint", "path": "torchvision_v2"}
    start_from(config, "torchvision_resnet50_v1")
    assert config.init.to_dict() == {"source": "torchvision", "path": "torchvision_resnet50_v1"}


@pytest.mark.parametrize("weights", ["timm_resnet50_a1", "https://host/x.safetensors?download=1"])
def test_a_missing_library_is_noticed_before_the_download(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setattr(named.download, "locate", lambda file: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match=r"safetensors.* requires safetensors, .*pip install"):
        named.locate(weights)
