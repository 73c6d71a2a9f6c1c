"""Exporting detectors: the error for what the target cannot build names the config field."""

import pathlib

import numpy as np
import pytest
from flax import traverse_util
from state_dicts import detector_shapes

from retinanet_jax import checkpoint
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.weights import convert, presets, targets
from retinanet_jax.weights.presets import PRESETS
from retinanet_jax.weights.targets import FREE_FIELDS, check_expressible

OWN = (Category(1, "egg"), Category(2, "hen"))


@pytest.fixture
def trained(tmp_path):
    """`trained(target, categories)`: a checkpoint with the config of the target's preset."""

    def trained(target, categories=COCO_CATEGORIES):
        config = presets.preset_config(target)
        return Checkpoint({}, config, categories, 3, tmp_path / "run")

    return trained


@pytest.mark.parametrize("target", list(PRESETS))
@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("anchors", "rounding", "floor", r"anchors\.rounding=floor, only with (torchv|exact)"),
        ("anchors", "offset", 0.5, r"anchors\.offset=0\.5, only with 0\.0;"),
        ("anchors", "max_level", 6, r"anchors\.max_level=6, only with 7;"),
        ("model", "p6_from", "p4", r"model\.p6_from=p4, only with (c5 or p5|c5);"),
        ("model", "norm", "group", r"model\.norm=group, only with (frozen_)?batch;"),
        ("model", "norm_epsilon", 1e-3, r"model\.norm_epsilon=0\.001, only with 1e-05;"),
        ("model", "head_depth", 3, r"model\.head_depth=3, only with 4;"),
        ("model", "fpn_channels", 48, r"model\.fpn_channels=48, only with multiples of 32;"),
        ("model", "backbone_width", 32, r"model\.backbone_width=32, only with 64;"),
        ("model", "head_norm", "batch", r"model\.head_norm=batch, only with (none|group);"),
        ("input", "order", "gbr", r"input\.order=gbr, only with "),
    ],
)
def test_the_error_names_the_field_that_the_target_cannot_have(
    trained, target, section, field, value, message
):
    if FREE_FIELDS[target].get(f"{section}.{field}") == () and (target, field) != (
        "torchvision_v2",
        "fpn_channels",
    ):
        return  # any value is possible
    example = trained(target)
    example.config[section][field] = value
    message = rf"run: {target} has no network with config\.{message}"
    with pytest.raises(ValueError, match=message) as error:
        check_expressible(example, target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", list(PRESETS))
def test_fields_that_do_not_concern_the_network_are_free(trained, target):
    example = trained(target)
    example.config.model.update(frozen_stages=0, prior_probability=0.5, backbone="resnet101")
    example.config.data.short_sides = (64,)
    example.config.detections.max_detections = 7
    for norm in ("batch", "frozen_batch"):
        example.config.model.norm = norm
        check_expressible(example, target)


def test_fields_that_only_some_targets_leave_free(trained):
    example = trained("detectron2")
    example.config.model.stride_in_1x1 = False
    example.config.input.update(order="rgb", mean=(1.0, 2.0, 3.0))
    check_expressible(example, "detectron2")
    assert targets.target_settings("detectron2", example)[:3] == [
        "MODEL.RETINANET.NUM_CLASSES 80 of RetinaNet with FPN on resnet50",
        "MODEL.RESNETS.STRIDE_IN_1X1 False",
        "INPUT.FORMAT RGB MODEL.PIXEL_MEAN [1.0, 2.0, 3.0] MODEL.PIXEL_STD [1.0, 1.0, 1.0]",
    ]
    other = trained("torchvision_v1")
    other.config.model.stride_in_1x1 = True
    with pytest.raises(ValueError, match=r"stride_in_1x1=True, only with False;"):
        check_expressible(other, "torchvision_v1")


@pytest.mark.parametrize("target", list(PRESETS))
def test_where_c5_has_as_many_channels_as_the_pyramid_the_target_has_one_input_of_p6(
    trained, target
):
    example = trained(target)
    example.config.model.update(backbone="resnet18", fpn_channels=512)
    possible, other = ("c5", "p5") if target == "detectron2" else ("p5", "c5")
    example.config.model.p6_from = possible
    check_expressible(example, target)
    example.config.model.p6_from = other
    with pytest.raises(ValueError, match=rf"p6_from={other}, only with {possible}"):
        check_expressible(example, target)


def test_the_settings_of_detectron2_for_other_anchors(trained):
    example = trained("detectron2", OWN)
    example.config.anchors.update(base_scale=2.0, scales=(1.0,), ratios=(0.5, 1.0))
    example.config.model.update(head_depth=3, fpn_channels=64)
    check_expressible(example, "detectron2")
    assert targets.target_settings("detectron2", example)[3:] == [
        "MODEL.ANCHOR_GENERATOR.SIZES [[16.0], [32.0], [64.0], [128.0], [256.0]]",
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS [[0.5, 1.0]]",
        "MODEL.FPN.OUT_CHANNELS 64",
        "MODEL.RETINANET.NUM_CONVS 3",
        "labels: 0 egg, 1 hen",
    ]


def test_the_settings_with_which_torchvision_loads_the_file(trained):
    built, epsilon, labels = targets.target_settings("torchvision_v1", trained("torchvision_v1"))
    assert built == "retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)"
    assert epsilon.startswith("then eps = 0.0 in every norm of its backbone")
    assert labels == "labels: COCO's, with the target's own indices"
    built, labels = targets.target_settings("torchvision_v2", trained("torchvision_v2", OWN))
    assert built.startswith("retinanet_resnet50_fpn_v2(")
    assert built.endswith("num_classes=2)")
    assert labels == "labels: 0 egg, 1 hen"


def test_eighty_classes_that_are_not_cocos_keep_their_indices(trained):
    eighty = tuple(Category(k, f"class {k}") for k in range(80))
    assert targets.has_coco_categories(trained("torchvision_v1"))
    assert not targets.has_coco_categories(trained("torchvision_v1", eighty))


# ---- whole exports


@pytest.fixture
def loaded(monkeypatch, trained):
    """The checkpoint that is read from every path."""
    example = trained("torchvision_v1")
    monkeypatch.setattr(checkpoint, "load", lambda path: example)
    return example


def test_an_existing_file_is_not_overwritten(loaded, tmp_path):
    (tmp_path / "w.npz").write_text("mine")
    (tmp_path / "link.npz").symlink_to("nowhere")
    for name in ("w.npz", "link.npz"):
        with pytest.raises(FileExistsError, match=rf"{name} exists; give another file"):
            convert.export_weights("torchvision_v1", "run", tmp_path / name)
    assert (tmp_path / "w.npz").read_text() == "mine"
    assert (tmp_path / "link.npz").readlink() == pathlib.Path("nowhere")


@pytest.mark.parametrize(
    ("target", "name", "message"),
    [
        ("torchvision", "w.npz", "target='torchvision' must be one of torchvision_v1, torchvi"),
        (
            "torchvision_v2",
            "w.npz",
            r"torchvision_v2 has no network with config\.model\.head_norm=none",
        ),
        ("torchvision_v1", "w.npz", "missing: backbone.*; it has levels up to P7"),
        ("torchvision_v1", "w.txt", "must end in one of"),
    ],
)
def test_a_mistake_writes_nothing(loaded, monkeypatch, tmp_path, target, name, message):
    variables = {"params": {"classification_head": {"predict": {"bias": np.zeros(720)}}}}
    monkeypatch.setattr(checkpoint, "load", lambda path: loaded._replace(variables=variables))
    if name == "w.txt":
        monkeypatch.setattr(convert, "detector_arrays", lambda *_: {})
    with pytest.raises(ValueError, match=message) as error:
        convert.export_weights(target, "run", tmp_path / name)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        convert.export_weights("detectron2", str(tmp_path), tmp_path / "w.npz")


@pytest.mark.slow
def test_exporting_an_imported_detector_returns_the_same_bits(program, tmp_path):
    """Both commands are run, on a whole detector of two classes."""
    rng = np.random.default_rng(0)
    shapes = detector_shapes("torchvision_v2", "resnet50", 2)
    arrays = {
        name: np.zeros(shape, np.int64) if not shape else rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }
    np.savez(tmp_path / "w.npz", **arrays)
    status, stdout, stderr = program.run(
        "import-weights",
        "--source=torchvision_v2",
        f"--input={tmp_path / 'w.npz'}",
        f"--output={tmp_path / 'run'}",
        "--categories=egg,hen",
    )
    assert status == 0, stderr
    trained = checkpoint.load(tmp_path / "run")
    assert [tuple(category) for category in trained.categories] == [(0, "egg"), (1, "hen")]
    trained_arrays = [name for name, shape in shapes.items() if shape]
    assert len(traverse_util.flatten_dict(trained.variables)) == len(trained_arrays)
    status, stdout, stderr = program.run(
        "export-weights",
        "--target=torchvision_v2",
        f"--checkpoint={tmp_path / 'run'}",
        f"--output={tmp_path / 'back.npz'}",
    )
    assert status == 0, stderr
    assert "num_classes=2)" in stdout
    with np.load(tmp_path / "back.npz") as back:
        assert set(back.files) == set(arrays)
        for name, value in arrays.items():
            np.testing.assert_array_equal(back[name], value)
