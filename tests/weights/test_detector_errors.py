"""Detectors that cannot be imported or exported are errors that name the reason."""

import numpy as np
import pytest
from detector_examples import SMALL, SOURCES, config_of, to_arrays, to_variables

from retinanet_jax import weights
from retinanet_jax.weights.convert import read_detector
from retinanet_jax.weights.evidence import detect_source

pytestmark = pytest.mark.usefixtures("small_architecture")


def test_an_interrupted_or_impossible_export_writes_nothing(tmp_path, arrays_of, monkeypatch):
    arrays = arrays_of("detectron2")
    target = tmp_path / "weights.txt"
    with pytest.raises(ValueError, match=r"weights\.txt must end in one of \.npz, \.pth"):
        weights.save_arrays(target, arrays)

    def interrupted(path, **arrays):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.save_arrays(tmp_path / "weights.npz", arrays)
    assert not list(tmp_path.iterdir())


def test_the_error_for_another_library_names_it(tmp_path, zero_arrays):
    for actual in SOURCES:
        arrays = zero_arrays(actual, SMALL, 2)
        assert detect_source(arrays) == detect_source(arrays, actual) == actual
        for requested in SOURCES.keys() - {actual}:
            message = (
                rf"{actual} weights, but the source is {requested}; give the source {actual}\."
            )
            with pytest.raises(ValueError, match=message):
                detect_source(arrays, requested)
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **arrays)
    with pytest.raises(ValueError, match=r"weights\.npz: these are detectron2 weights, but the so"):
        read_detector(path, "torchvision_v1")


@pytest.mark.parametrize(
    ("actual", "requested"), [("resnet101", "resnet50"), ("resnet50", "resnet101")]
)
def test_the_error_for_another_architecture_names_it(zero_arrays, source, actual, requested):
    message = (
        rf"{source} weights of {actual}, but config\.model\.backbone is {requested}; change it to "
        rf"{actual}, or"
    )
    with pytest.raises(ValueError, match=message):
        to_variables(
            source,
            zero_arrays(source, actual, SOURCES[source]),
            config_of(source, backbone=requested),
        )


def test_missing_unexpected_misshapen_and_infinite_arrays_are_listed_in_one_line(arrays_of):
    wrong = arrays_of("torchvision_v2")
    del wrong["head.regression_head.conv.3.1.bias"]
    wrong["roi_heads.box.weight"] = np.zeros(1)
    wrong["backbone.fpn.extra_blocks.p6.weight"] = np.zeros((256, 256, 3, 3), np.float32)
    wrong["backbone.fpn.extra_blocks.p7.bias"] = np.full(256, np.nan)
    with pytest.raises(ValueError, match="not torchvision_v2 weights of toy: ") as caught:
        to_variables("torchvision_v2", wrong)
    message = str(caught.value)
    assert "missing: head.regression_head.conv.3.1.bias;" in message
    assert "unexpected: roi_heads.box.weight;" in message
    assert "of another shape: backbone.fpn.extra_blocks.p6.weight;" in message
    assert "not finite: backbone.fpn.extra_blocks.p7.bias;" in message
    assert "\n" not in message


def test_a_classification_output_of_odd_length_is_an_error(arrays_of):
    wrong = arrays_of("detectron2")
    wrong["head.cls_score.bias"] = np.zeros(721, np.float32)
    with pytest.raises(ValueError, match=r"of another shape: head\.cls_score\.bias; give"):
        to_variables("detectron2", wrong)


def test_variables_of_another_network_are_an_error(arrays_of):
    variables = to_variables("torchvision_v1", arrays_of("torchvision_v1"))
    with pytest.raises(ValueError, match=r"detectron2 with this config: of another shape: fpn/p6/"):
        to_arrays("detectron2", variables)
    config = config_of("torchvision_v1", backbone="resnet18")
    with pytest.raises(ValueError, match=r"torchvision_v1 with this config: missing: backbone"):
        to_arrays("torchvision_v1", variables, config)
    message = r"torchvision_v2 has no network with config\.model\.head_norm=none, only with group\."
    with pytest.raises(ValueError, match=message):
        to_arrays("torchvision_v2", variables, config_of("torchvision_v1"))
    with pytest.raises(ValueError, match="has 91 classes, but COCO has 80; export each"):
        to_arrays("torchvision_v1", variables, as_coco=True)


def test_unknown_names_are_errors(tmp_path, zero_arrays):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **zero_arrays("detectron2", SMALL, 2))
    with pytest.raises(ValueError, match="outputs='91' must be 'coco' or 'all'"):
        read_detector(path, outputs="91")


def test_a_norm_without_running_statistics_is_an_error(arrays_of):
    with pytest.raises(ValueError, match="norm='group' has no batch norm statistics"):
        to_variables("detectron2", arrays_of("detectron2"), config_of("detectron2", norm="group"))
