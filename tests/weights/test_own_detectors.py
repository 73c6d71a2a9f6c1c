"""Detectors of one's own have torchvision's detections, whatever file they are in.

The golden file has torchvision's detections of small detectors (scripts/make_golden.py).
"""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import state_dicts
import torch_pickles
from torch_pickles import Call, Name

from retinanet_jax import weights
from retinanet_jax.detector import Detector
from retinanet_jax.weights import convert, targets
from retinanet_jax.weights.convert import read_detector
from retinanet_jax.weights.presets import preset_config

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torchvision_own_detectors.json"
CASES = json.loads(GOLDEN.read_text())["cases"]
EPSILON = "model.norm_epsilon"
# What must be given in addition to the file, since no array shows it.
ANCHORS = {
    "5 ratios": ["anchors.ratios"],
    "2 scales of smaller anchors": ["anchors.base_scale", "anchors.scales"],
}
FROZEN = {name for name, case in CASES.items() if case["fields"]["model.norm"] == "frozen_batch"}


@functools.cache
def arrays_of(name):
    return state_dicts.own_detector(CASES[name])


def read_case(name, path):
    """Return the imported detector of a case with all its outputs, given what no array shows."""
    case = CASES[name]
    config = None
    if name in ANCHORS:
        config = preset_config(case["source"])
        config.update_from_flattened_dict({field: case["fields"][field] for field in ANCHORS[name]})
    return read_detector(
        path,
        category_names=[f"class {index}" for index in range(case["outputs"])],
        norm_epsilon=case["fields"][EPSILON] if name in FROZEN else None,
        config=config,
    )


@pytest.fixture
def read(tmp_path):
    """`read(name)`: the imported detector of a case, from a file of PyTorch."""

    def read(name):
        path = tmp_path / "w.pth"
        weights.save_arrays(path, arrays_of(name))
        return read_case(name, path)

    return read


def unmatched_scores(trained, case, *, box_tolerance=0.05, score_tolerance=1e-4):
    """Return the scores of torchvision's detections without a counterpart among ours."""
    trained.config.data.update(eval_short_side=128, long_side=160)  # the image is not resized
    image = np.random.default_rng(5).integers(0, 256, (128, 160, 3), np.uint8)
    ours = Detector(trained, max_detections=40)(image)
    assert len(ours) == len(case["scores"]) == 40
    unmatched = []
    for box, score, label in zip(case["boxes"], case["scores"], case["labels"], strict=True):
        same = np.abs(ours.boxes - box).max(axis=1) < box_tolerance
        same &= np.abs(ours.scores - score) < score_tolerance
        if not (same & (ours.classes == label)).any():
            unmatched.append(score)
    return unmatched


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "5 ratios")) for name in CASES]
)
def test_the_detections_are_torchvision_s(read, name):
    case, imported = CASES[name], read(name)
    assert imported.source == case["source"]
    unmatched = unmatched_scores(imported.checkpoint, case)
    # If scores are equal up to rounding, another detection may be the last one.
    assert len(unmatched) <= 1
    assert all(score < min(case["scores"]) + 1e-4 for score in unmatched)


@pytest.mark.parametrize("name", CASES)
def test_the_config_is_the_one_that_torchvision_s_model_was_built_with(read, name):
    config = read(name).checkpoint.config
    for field, value in CASES[name]["fields"].items():
        section, _, last = field.partition(".")
        actual = config[section][last]
        assert (list(actual) if isinstance(actual, tuple) else actual) == value, field


@pytest.mark.slow
def test_another_epsilon_would_have_other_detections(read):
    """The golden detectors have small variances, so they show which epsilon the network has."""
    trained = read("v1 for 2 classes").checkpoint
    trained.config.model.norm_epsilon = 0.0
    assert len(unmatched_scores(trained, CASES["v1 for 2 classes"])) > 20


# ---- files as people have them


def data_parallel(tensors):
    return {f"module.{name}": value for name, value in tensors.items()}


def reference_script(tensors):
    """Return a checkpoint as torchvision's references/detection/train.py writes it."""
    arguments = Call(
        Name("argparse", "Namespace"), state={"model": "retinanet_resnet50_fpn_v2"}, new=True
    )
    optimizer = {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]}
    scheduler = {"milestones": [16, 22], "last_epoch": 25}
    return {
        "model": torch_pickles.ordered_dict(tensors),
        "optimizer": optimizer,
        "lr_scheduler": scheduler,
        "args": arguments,
        "epoch": 25,
    }


def lightning(tensors):
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": torch_pickles.ordered_dict(
            {f"model.{name}": value for name, value in tensors.items()}
        ),
        "hyper_parameters": {"num_classes": 3},
        "optimizer_states": [{"state": {}, "param_groups": [{"params": [0]}]}],
    }


def deepforest(tensors):
    """Return a checkpoint with the prefix of its module and names of 2021, as DeepForest's."""
    return {"state_dict": {f"model.{older_name(name)}": x for name, x in tensors.items()}}


def older_name(name):
    if "inner_blocks" in name or "layer_blocks" in name:
        return name.replace(".0.", ".")
    head, separator, rest = name.partition("_head.conv.")
    if not separator:
        return name
    index, _, leaf = rest.split(".")
    return f"{head}_head.conv.{2 * int(index)}.{leaf}"


@pytest.mark.parametrize(
    ("name", "wrap", "suffix"),
    [
        ("v2 for 2 classes", data_parallel, ".pth"),
        ("v2 for 2 classes", reference_script, ".pth"),
        ("v2 for 2 classes", lightning, ".ckpt"),
        ("v1 for 2 classes", deepforest, ".pt"),
    ],
)
def test_a_checkpoint_of_a_training_script_is_the_same_detector(tmp_path, read, name, wrap, suffix):
    path = tmp_path / f"checkpoint{suffix}"
    tensors = dict(torch_pickles.tensors(arrays_of(name)))
    torch_pickles.write_zip(path, wrap(tensors))
    expected, actual = read(name).checkpoint, read_case(name, path).checkpoint
    assert actual.config.to_json() == expected.config.to_json()
    jax.tree.map(np.testing.assert_array_equal, actual.variables, expected.variables)


def test_a_file_of_safetensors_is_the_same_detector(tmp_path, read):
    pytest.importorskip("safetensors")
    weights.save_arrays(tmp_path / "w.safetensors", arrays_of("v2 for 2 classes"))
    actual = read_case("v2 for 2 classes", tmp_path / "w.safetensors").checkpoint
    expected = read("v2 for 2 classes").checkpoint
    jax.tree.map(np.testing.assert_array_equal, actual.variables, expected.variables)


# ---- the way back


@pytest.mark.parametrize("name", CASES)
def test_exporting_to_the_same_library_returns_the_file(read, name):
    imported = read(name)
    targets.check_expressible(imported.checkpoint, imported.source)
    exported = convert.detector_arrays(imported.source, imported.checkpoint)
    assert exported.keys() == arrays_of(name).keys()
    for array_name, value in exported.items():
        np.testing.assert_array_equal(value, arrays_of(name)[array_name], strict=True)


def test_the_statements_that_build_the_network_in_torchvision(read):
    *statements, labels = targets.target_settings("torchvision_v1", read("5 ratios").checkpoint)
    ratios = "(0.2, 0.5, 1.0, 2.0, 5.0)"
    sizes = "(32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812)"
    assert statements == [
        "body = resnet18(norm_layer=partial(FrozenBatchNorm2d, eps=1e-05))",
        "layers = {'layer2': '0', 'layer3': '1', 'layer4': '2'}",
        "p6p7 = LastLevelP6P7(64, 64)",
        "backbone = BackboneWithFPN(body, layers, [128, 256, 512], 64, p6p7)",
        f"anchors = AnchorGenerator(({sizes}), ({', '.join([ratios] * 5)}))",
        "head = RetinaNetHead(64, 15, 1)",
        "RetinaNet(backbone, 1, anchor_generator=anchors, head=head)",
    ]
    assert labels == "labels: 0 class 0"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_torchvision_s_network_of_these_statements_has_the_detections(read, name):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    namespace = {"partial": functools.partial}
    for module in (
        torchvision.models.resnet,
        torchvision.models.detection.retinanet,
        torchvision.models.detection.anchor_utils,
        torchvision.models.detection.backbone_utils,
        torchvision.ops,
        torchvision.ops.feature_pyramid_network,
        torch.nn,
    ):
        namespace |= vars(module)
    imported, case = read(name), CASES[name]
    *statements, network, _ = targets.target_settings(imported.source, imported.checkpoint)
    exec("\n".join(statements), namespace)
    model = eval(network, namespace).eval()
    arrays = convert.detector_arrays(imported.source, imported.checkpoint)
    model.load_state_dict({key: torch.tensor(value) for key, value in arrays.items()})
    model.transform.min_size, model.transform.max_size = (128,), 160
    pixels = np.random.default_rng(5).integers(0, 256, (128, 160, 3), np.uint8)
    with torch.no_grad():
        (detections,) = model([torch.from_numpy(pixels.transpose(2, 0, 1) / 255).float()])
    np.testing.assert_allclose(detections["scores"][:40].numpy(), case["scores"], atol=1e-4)
