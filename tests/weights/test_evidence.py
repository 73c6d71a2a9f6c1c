"""What the arrays of a state dict show is taken from them; what they do not show is asked for."""

import functools

import numpy as np
import pytest
import state_dicts
from detector_examples import SMALL, SOURCES, config_of

from retinanet_jax import weights
from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.weights import convert, detectors
from retinanet_jax.weights.buffers import check_buffers
from retinanet_jax.weights.evidence import Evidence, detect_source
from retinanet_jax.weights.presets import preset_config


def evidence_of(source, architecture="resnet50", num_outputs=3, **network):
    shapes = state_dicts.detector_shapes(source, architecture, num_outputs, **network)
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    return Evidence(arrays, weights.DETECTOR_FORMATS[source])


def network_of(*args, **network):
    return {fact.field: fact.value for fact in evidence_of(*args, **network).network()}


# ---- the network


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_backbone_is_the_one_of_these_shapes(source, architecture):
    assert network_of(source, architecture)["model.backbone"] == architecture


def test_the_backbone_is_recognized_although_some_of_its_arrays_are_missing(zero_arrays):
    """Then the error lists those, and not all in which another backbone differs."""
    arrays = zero_arrays("torchvision_v2", "resnet101", 3)
    del arrays["backbone.body.layer3.20.conv1.weight"]
    config = preset_config("torchvision_v2")
    library_format = weights.DETECTOR_FORMATS["torchvision_v2"]
    config.update_from_flattened_dict(
        {fact.field: fact.value for fact in Evidence(arrays, library_format).network()}
    )
    message = r"of resnet101: missing: backbone\.body\.layer3\.20\.conv1\.weight; give"
    with pytest.raises(ValueError, match=message):
        detectors.to_variables(arrays, library_format, config)


@pytest.mark.parametrize("channels", [64, 256, 512])
@pytest.mark.parametrize("p6_from", ["c5", "p5"])
def test_the_input_of_p6_is_known_by_its_channels(source, channels, p6_from):
    """If C5 has as many channels as the pyramid, torchvision takes P5 and detectron2 takes C5."""
    fields = network_of(source, "resnet18", channels=channels, p6_from=p6_from)
    assert fields["model.fpn_channels"] == channels
    expected = p6_from if channels != 512 else ("c5" if source == "detectron2" else "p5")
    assert fields["model.p6_from"] == expected


def test_the_number_of_convolutions_in_the_heads(zero_arrays):
    arrays = zero_arrays("detectron2", "resnet18", 3)
    for tower in ("cls_subnet", "bbox_subnet"):
        for leaf in ("weight", "bias"):
            arrays[f"head.{tower}.8.{leaf}"] = arrays[f"head.{tower}.6.{leaf}"]
    library_format = weights.DETECTOR_FORMATS["detectron2"]
    facts = Evidence(arrays, library_format).network()
    fields = {fact.field: fact.value for fact in facts}
    assert fields["model.head_depth"] == 5
    config = config_of("detectron2", backbone="resnet18", model__head_depth=5)
    variables = detectors.to_variables(arrays, library_format, config)
    assert "conv4" in variables["params"]["box_head"]


@pytest.mark.parametrize("num_anchors", [3, 9, 15, 12])
def test_anchors_and_outputs_are_counted(source, num_anchors):
    evidence = evidence_of(source, "resnet18", num_outputs=7, num_anchors=num_anchors)
    assert (evidence.num_anchors(), evidence.num_outputs()) == (num_anchors, 7)


def test_each_fact_has_a_reason():
    facts = evidence_of("torchvision_v1", "resnet101", p6_from="c5", counters=True).network()
    assert [str(fact) for fact in facts] == [
        "config.model.backbone=resnet101: stages of 3, 4, 23, 3 bottlenecks",
        "config.model.fpn_channels=256: P6 has 256 channels",
        "config.model.p6_from=c5: P6 is computed from 2048 channels",
        "config.model.head_depth=4: 4 convolutions before each output",
        "config.model.head_norm=none: the heads of torchvision_v1",
    ]


# ---- the epsilon of the backbone's norms


@pytest.mark.parametrize(
    ("source", "architecture", "num_outputs", "network", "epsilon"),
    [
        ("torchvision_v1", "resnet50", 91, {}, 0.0),
        ("torchvision_v1", "resnet50", 91, {"counters": True}, 1e-5),
        ("torchvision_v1", "resnet18", 3, {"counters": True}, 1e-5),
        ("torchvision_v2", "resnet50", 91, {}, 1e-5),
        ("torchvision_v2", "resnet50", 3, {"counters": False}, 1e-5),
        ("detectron2", "resnet50", 80, {}, 1e-5),
        # Frozen norms of torchvision's v1 that are not those of the published file.
        ("torchvision_v1", "resnet50", 3, {}, None),
        ("torchvision_v1", "resnet101", 91, {}, None),
        ("torchvision_v1", "resnet50", 91, {"num_anchors": 15}, None),
        ("torchvision_v1", "resnet50", 91, {"p6_from": "c5"}, None),
    ],
)
def test_the_epsilon_by_evidence(source, architecture, num_outputs, network, epsilon):
    fact = evidence_of(source, architecture, num_outputs, **network).norm_epsilon()
    assert (fact and fact.value) == epsilon


def test_counters_show_that_the_norms_were_trained():
    for counters, norm in ((True, "batch"), (False, "frozen_batch")):
        assert evidence_of("torchvision_v1", counters=counters).norm().value == norm


def test_an_epsilon_that_the_file_does_not_show_must_be_given(detector_file, tmp_path):
    file = detector_file("torchvision_v1", 3)
    names = ["background", "egg", "hen"]
    message = r"w\.npz: frozen norms do not show their epsilon, .* --norm_epsilon=0 or .*=1e-5\."
    with pytest.raises(ValueError, match=message) as caught:
        convert.import_weights(None, file, tmp_path / "out", category_names=names)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    for epsilon in (0.0, 1e-5):
        imported = convert.read_detector(file, category_names=names, norm_epsilon=epsilon)
        assert imported.checkpoint.config.model.norm_epsilon == epsilon
        assert f"config.model.norm_epsilon={epsilon}: as given" in imported.reasons


def test_a_given_config_states_the_epsilon_and_a_contradiction_is_stated(detector_file):
    config = preset_config("torchvision_v2")
    config.model.norm_epsilon = 1e-3
    imported = convert.read_detector(detector_file("torchvision_v2", 91), config=config)
    assert imported.checkpoint.config.model.norm_epsilon == 1e-3
    (reason,) = [reason for reason in imported.reasons if "epsilon" in reason]
    assert reason == (
        "config.model.norm_epsilon=0.001: as in the given config, although 1e-05 is that of norms "
        "that count batches (BatchNorm2d)"
    )


@pytest.mark.parametrize("epsilon", [-1e-5, float("nan")])
def test_a_negative_epsilon_is_an_error(detector_file, epsilon):
    with pytest.raises(ValueError, match=r"norm_epsilon=.* must be 0 or positive"):
        convert.read_detector(detector_file("torchvision_v2", 91), norm_epsilon=epsilon)


# ---- the anchors


@pytest.mark.parametrize(
    ("num_anchors", "asked"),
    [
        (
            15,
            "its 5 ratios, --config.anchors.ratios='(RATIO, ...)' or "
            "its 5 scales, --config.anchors.scales='(SCALE, ...)'.",
        ),
        (4, "--config.anchors.scales='(SCALE, ...)' and --config.anchors.ratios='(RATIO, ...)'."),
    ],
)
def test_anchors_that_are_missing_are_asked_for(detector_file, num_anchors, asked):
    file = detector_file("torchvision_v2", 1, num_anchors=num_anchors)
    with pytest.raises(ValueError, match=f"has {num_anchors} anchors per cell") as caught:
        convert.read_detector(file, category_names=["egg"])
    message = str(caught.value)
    assert "but config.anchors has 3 scales and 3 ratios" in message
    assert message.endswith(asked)
    assert "--config=configs/torchvision.py:v2" in message
    assert "\n" not in message


def test_the_anchors_that_are_assumed_are_stated(detector_file):
    imported = convert.read_detector(detector_file("torchvision_v2", 91), outputs="all")
    assert imported.reasons[-1].startswith(
        "config.anchors=sides of 32, 40, 50 pixels at P3, ratios 0.5, 1, 2: the file shows "
        "only that they are 9"
    )


@pytest.mark.parametrize("ratio_outer", [True, False])
def test_channels_of_any_number_of_scales_and_ratios_get_our_order(ratio_outer):
    """Written out for 2 scales and 5 ratios, of which each channel is numbered."""
    source = "torchvision_v1" if ratio_outer else "detectron2"
    shapes = state_dicts.detector_shapes(source, "resnet18", 3, channels=32, num_anchors=10)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    bias = "head.classification_head.cls_logits.bias" if ratio_outer else "head.cls_score.bias"
    arrays[bias] = np.arange(30, dtype=np.float32)
    config = config_of(
        source,
        backbone="resnet18",
        model__fpn_channels=32,
        anchors__scales=(1.0, 1.5),
        anchors__ratios=(0.2, 0.5, 1.0, 2.0, 5.0),
    )
    library_format = weights.DETECTOR_FORMATS[source]
    variables = detectors.to_variables(arrays, library_format, config)
    ours = variables["params"]["classification_head"]["predict"]["bias"].reshape(2, 5, 3)
    for scale in range(2):
        for ratio in range(5):
            anchor = ratio * 2 + scale if ratio_outer else scale * 5 + ratio
            np.testing.assert_array_equal(ours[scale, ratio], 3 * anchor + np.arange(3))
    np.testing.assert_array_equal(
        detectors.to_arrays(variables, library_format, config)[bias], arrays[bias]
    )


# ---- the source


def test_the_source_is_known_by_the_names(zero_arrays, small_architecture):
    for source in SOURCES:
        assert detect_source(zero_arrays(source, SMALL, 2)) == source


def test_names_of_no_known_detector_are_one_bounded_line(tmp_path):
    names = ["fpn.P5_1.weight", *(f"regression.conv{index}.weight" for index in range(1000))]
    np.savez(tmp_path / "w.npz", **dict.fromkeys(names, np.zeros(1)))
    message = (
        r"w\.npz: these are not the arrays of a RetinaNet of torchvision_v1, torchvision_v2, "
        r"detectron2: the first are fpn\.P5_1\.weight, .*, and 996 more; give"
    )
    with pytest.raises(ValueError, match=message) as caught:
        convert.read_detector(tmp_path / "w.npz")
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


OTHERS = {
    "Faster R-CNN": ["backbone.body.layer1.0.conv1.weight", "roi_heads.box_head.fc6.weight"],
    "Mask R-CNN": ["backbone.bottom_up.res2.0.conv1.weight", "roi_heads.mask_head.predictor.bias"],
    "FCOS": [
        "head.classification_head.cls_logits.weight",
        "head.regression_head.bbox_ctrness.weight",
    ],
    "SSD": ["backbone.features.0.weight", "head.classification_head.module_list.0.weight"],
    "YOLO": ["model.0.conv.weight", "model.22.dfl.conv.weight"],
    "DETR": ["backbone.0.body.layer1.0.conv1.weight", "class_embed.weight"],
    "the RetinaNet of MMDetection": ["backbone.layer1.0.conv1.weight", "bbox_head.retina_cls.bias"],
    "the RetinaNet of yhenon/pytorch-retinanet": ["layer1.0.conv1.weight", "regressionModel.a"],
    "a ResNet without the heads of a detector": ["layer1.0.conv1.weight", "fc.weight"],
}


@pytest.mark.parametrize("network", OTHERS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_the_weights_of_another_network_are_named(tmp_path, caplog, network, prefix):
    np.savez(tmp_path / "w.npz", **{prefix + name: np.zeros(3) for name in OTHERS[network]})
    with pytest.raises(ValueError, match=rf"w\.npz: these are weights of {network}") as caught:
        convert.read_detector(tmp_path / "w.npz")
    assert "; give those of a RetinaNet" in str(caught.value)
    assert not caplog.records


def test_an_incomplete_retinanet_is_an_error_with_what_it_lacks(zero_arrays, small_architecture):
    arrays = zero_arrays("torchvision_v2", SMALL, 3)
    message = (
        "of torchvision_v2: missing: backbone.fpn.extra_blocks.p6.weight; give .* levels P3 to"
    )
    with pytest.raises(ValueError, match=message):
        detect_source(arrays.keys() - {"backbone.fpn.extra_blocks.p6.weight"})


def test_wrong_arrays_are_reported_before_anything_is_asked_for(tmp_path, zero_arrays):
    arrays = zero_arrays("torchvision_v2", "resnet18", 3)
    arrays["backbone.fpn.inner_blocks.0.0.weight"] = np.zeros((256, 100, 1, 1), np.float32)
    np.savez_compressed(tmp_path / "w.npz", **arrays)
    message = r"of another shape: backbone\.fpn\.inner_blocks\.0\.0\.weight; give"
    with pytest.raises(ValueError, match=message):
        convert.read_detector(tmp_path / "w.npz")


def test_everything_that_a_file_does_not_show_is_asked_for_at_once(detector_file):
    file = detector_file("torchvision_v1", 3, num_anchors=15)
    with pytest.raises(convert.MissingFactError) as caught:
        convert.read_detector(file)
    for flag in ("--config.anchors.ratios=", "--categories=NAME,NAME", "--norm_epsilon=1e-5"):
        assert flag in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- settings next to the weights

# Written out: anchors of detectron2 at P3, (x0, y0, x1, y1) of ratios 0.5, 1 and 2 on a side of 32.
SIDES = np.float32([[32 * 2**0.5, 32 / 2**0.5], [32, 32], [32 / 2**0.5, 32 * 2**0.5]])
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
SETTINGS = {
    "pixel_mean": np.float32([103.53, 116.28, 123.675]).reshape(3, 1, 1),
    "pixel_std": np.ones((3, 1, 1), np.float32),
    "anchor_generator.cell_anchors.0": np.concatenate(
        [np.tile([-0.5, 0.5], (3, 1)).repeat(2, 1) * np.tile(SIDES, 2) * scale for scale in SCALES]
    ),
}


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({}, None),
        ({"pixel_std": np.float32([57.4, 57.1, 58.4])}, "--config.input.order, .mean and .std"),
        ({"pixel_mean": SETTINGS["pixel_mean"][::-1]}, "--config.input.order, .mean and .std"),
        ({"anchor_generator.cell_anchors.0": np.zeros((9, 4))}, "--config.anchors.base_scale"),
        ({"anchor_generator.cell_anchors.0": np.zeros((3, 4))}, "--config.anchors.base_scale"),
    ],
)
def test_settings_in_a_file_of_detectron2_must_be_those_of_the_config(changes, flag):
    config = preset_config("detectron2")
    check = functools.partial(check_buffers, config=config, preset="configs/detectron2.py:3x")
    if not flag:
        check(SETTINGS)
        check({})
        return
    with pytest.raises(
        ValueError, match=f"its {next(iter(changes))} is .*:3x give {flag}"
    ) as caught:
        check(SETTINGS | changes)
    assert len(str(caught.value)) < 400
