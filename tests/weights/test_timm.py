"""ResNets that timm or OpenMMLab trained by "ResNet strikes back" are read as torchvision's are."""

import hashlib

import jax
import numpy as np
import pytest
from state_dicts import classifier_shapes

from retinanet_jax.weights import BACKBONE_SOURCES, download, load_backbone, named, save_arrays

NAME = "timm_resnet50_a1"
# The size of the published file, and so of any with the names, shapes and types of its arrays.
PUBLISHED_BYTES = 102_469_840


def numbered_arrays(architecture):
    """Return a classifier's state dict: the first array has ones, the second twos, and so on."""
    return {
        name: np.full(shape, number, np.float32 if shape else np.int64)
        for number, (name, shape) in enumerate(classifier_shapes(architecture).items(), 1)
    }


def assert_equal(variables, expected):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), variables, expected)


def test_the_published_file_is_downloaded_and_read(server, places, monkeypatch):
    pytest.importorskip("safetensors")
    arrays = numbered_arrays("resnet50")
    save_arrays(places / "host.safetensors", arrays)
    content = (places / "host.safetensors").read_bytes()
    assert len(content) == PUBLISHED_BYTES
    server.files["model.safetensors"] = content
    known = download.KNOWN[download.TIMM_RESNET50]._replace(
        url=server.url("good/model.safetensors"), prefix=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(download.KNOWN, download.TIMM_RESNET50, known)
    path = named.locate(NAME)
    assert path.name == "resnet50.a1_in1k.safetensors"
    source = named.BACKBONES[NAME].source
    variables = load_backbone(source, path, architecture="resnet50", norm="frozen_batch")
    expected = BACKBONE_SOURCES["torchvision"](arrays, architecture="resnet50", norm="frozen_batch")
    assert_equal(variables, expected)


def test_the_network_is_the_one_that_timm_trained():
    network = named.network_of(NAME)
    assert network["model"] == {
        "backbone": "resnet50",
        "norm_epsilon": 1e-5,
        "stride_in_1x1": False,  # timm's bottleneck has its stride in conv2
    }
    assert network["input"]["order"] == "rgb"
    np.testing.assert_allclose(np.divide(network["input"]["mean"], 255), [0.485, 0.456, 0.406])
    np.testing.assert_allclose(np.divide(network["input"]["std"], 255), [0.229, 0.224, 0.225])


def test_the_backbone_of_a_classifier_of_openmmlab_is_read(tmp_path):
    arrays = numbered_arrays("resnet18")
    to_name = {name: f"backbone.{name}" for name in arrays if not name.startswith("fc.")}
    to_name |= {"fc.weight": "head.fc.weight", "fc.bias": "head.fc.bias"}
    path = tmp_path / "resnet18_8xb32_in1k.pth"
    save_arrays(path, {to_name[name]: array for name, array in arrays.items()})
    variables = load_backbone("torchvision", path, architecture="resnet18", norm="batch")
    expected = BACKBONE_SOURCES["torchvision"](arrays, architecture="resnet18", norm="batch")
    assert_equal(variables, expected)
