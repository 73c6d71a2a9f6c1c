"""detectron2's converted classifiers: torchvision's arrays with other names."""

import jax
import numpy as np
import pytest
from state_dicts import detectron2_name

from retinanet_jax.weights import BACKBONE_SOURCES

backbone = BACKBONE_SOURCES["detectron2"]


def converted(arrays):
    """Return a classifier's arrays by the names that detectron2's converter gives them."""
    return {detectron2_name(name): value for name, value in arrays.items()}


@pytest.fixture(scope="module")
def arrays(state_dict):
    return state_dict("resnet18")


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
def test_the_same_network_with_other_names_has_the_same_variables(arrays, norm):
    renamed = converted(arrays)
    assert {"stem.fc.weight", "res2.1.conv2.norm.running_var", "res3.0.shortcut.weight"} < set(
        renamed
    )
    from_detectron2 = backbone(renamed, architecture="resnet18", norm=norm)
    from_torchvision = BACKBONE_SOURCES["torchvision"](arrays, architecture="resnet18", norm=norm)
    jax.tree.map(np.testing.assert_array_equal, from_detectron2, from_torchvision)


def test_the_error_for_another_architecture_names_it(zeros):
    message = (
        r"these are detectron2 weights of resnet101, but config\.model\.backbone is resnet50; chang"
    )
    with pytest.raises(ValueError, match=message):
        backbone(converted(zeros("resnet101")), architecture="resnet50", norm="batch")


def test_an_unexpected_array_and_another_norm_are_errors(arrays):
    wrong = converted(arrays) | {"stem.conv2.weight": np.zeros(1)}
    message = r"not detectron2 weights of resnet18: unexpected: stem\.conv2\.weight"
    with pytest.raises(ValueError, match=message):
        backbone(wrong, architecture="resnet18", norm="batch")
    with pytest.raises(ValueError, match="norm='group' has no batch norm statistics"):
        backbone(converted(arrays), architecture="resnet18", norm="group")
