"""detectron2's converted classifiers as our backbone: torchvision's arrays under other names."""

import re

import jax
import numpy as np
import pytest

from retinanet_jax.weights import detectron2, torchvision


def converted(arrays):
    """What detectron2's converter calls a classifier's arrays, written down from its file."""
    renamed = {}
    for name, value in arrays.items():
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
        renamed[name if name.startswith("res") else f"stem.{name}"] = value
    return renamed


@pytest.fixture(scope="module")
def arrays(state_dict):
    return state_dict("resnet18")


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
def test_the_same_network_under_other_names_is_the_same_tree(arrays, norm):
    renamed = converted(arrays)
    assert {"stem.fc.weight", "res2.1.conv2.norm.running_var", "res3.0.shortcut.weight"} < set(
        renamed
    )
    ours = detectron2.backbone(renamed, architecture="resnet18", norm=norm)
    theirs = torchvision.backbone(arrays, architecture="resnet18", norm=norm)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_another_architecture_s_file_is_told_by_its_name(zeros):
    message = "detectron2's weights of resnet101, and the backbone is resnet50; change config.model"
    with pytest.raises(ValueError, match=message):
        detectron2.backbone(converted(zeros("resnet101")), architecture="resnet50", norm="batch")


def test_an_unknown_array_and_another_norm_are_refused(arrays):
    wrong = converted(arrays) | {"stem.conv2.weight": np.zeros(1)}
    with pytest.raises(ValueError, match=r"not detectron2's resnet18: unknown: stem\.conv2\.weigh"):
        detectron2.backbone(wrong, architecture="resnet18", norm="batch")
    with pytest.raises(ValueError, match="norm='group' cannot hold"):
        detectron2.backbone(converted(arrays), architecture="resnet18", norm="group")
