"""Importing and exporting whole detectors keeps the meaning of every array and channel."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detector_examples import SMALL, SOURCES, config_of, to_arrays, to_variables
from state_dicts import detector_shapes

from retinanet_jax import modeling, weights
from retinanet_jax.config import load_config
from retinanet_jax.data.sources.coco import COCO_IDS
from retinanet_jax.weights import detectors
from retinanet_jax.weights.presets import PRESETS

pytestmark = pytest.mark.usefixtures("small_architecture")

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torchvision_detectors.json"


def preset_norm(source):
    return weights.DETECTOR_FORMATS[source].model["norm"]


def assert_equal_arrays(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        np.testing.assert_array_equal(value, expected[name], strict=True, err_msg=name)


def shapes_and_types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("torchvision_v1_128x160", "torchvision_v1"),
        ("torchvision_v2_128x160", "torchvision_v2"),
        ("detectron2_r50_stride_in_1x1_128x160", "detectron2"),
    ],
)
def test_the_state_dicts_are_those_of_the_libraries(test_data, file, source):
    with np.load(test_data / "parity" / f"{file}.npz") as golden:
        listed = zip(golden["sd_names"].tolist(), golden["sd_shapes"].tolist(), strict=True)
        reference = dict(listed)
    shapes = detector_shapes(source, "resnet50", SOURCES[source])
    assert {name: "x".join(map(str, shape)) for name, shape in shapes.items()} == reference


@pytest.mark.parametrize(
    ("source", "architecture"),
    [
        *((source, architecture) for source in SOURCES for architecture in ("resnet50", SMALL)),
        ("detectron2", "resnet101"),
    ],
)
def test_the_variables_are_those_of_the_detector(zero_arrays, source, architecture):
    """They are exactly those of the network that the preset's config builds."""
    config = config_of(source, backbone=architecture, norm=preset_norm(source))
    model = modeling.build_model(config, num_classes=SOURCES[source])
    inputs = jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    expected = jax.eval_shape(lambda: model.init(*inputs, train=False))
    variables = to_variables(source, zero_arrays(source, architecture, SOURCES[source]), config)
    assert shapes_and_types(variables) == shapes_and_types(expected)


@pytest.mark.parametrize(
    ("source", "parameters"), [("torchvision_v1", 34_014_999), ("torchvision_v2", 38_198_935)]
)
def test_the_number_of_parameters_is_the_published_one(zero_arrays, source, parameters):
    config = config_of(source, backbone="resnet50", norm=preset_norm(source))
    variables = to_variables(source, zero_arrays(source, "resnet50", 91), config)
    assert size(variables["params"]) == parameters


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
@pytest.mark.parametrize("num_outputs", [None, 3])
def test_exporting_an_import_returns_the_same_bits(arrays_of, source, norm, num_outputs):
    arrays, config = arrays_of(source, num_outputs), config_of(source, norm=norm)
    exported = to_arrays(source, to_variables(source, arrays, config), config)
    if source == "torchvision_v1" and norm == "batch":  # the file's norms have no counters
        exported = {name: x for name, x in exported.items() if not name.endswith("tracked")}
    assert_equal_arrays(exported, arrays)


@pytest.mark.parametrize("num_classes", [80, 3])
def test_importing_an_export_returns_the_same_bits(arrays_of, source, num_classes):
    """80 classes are written among torchvision's 91 outputs, and read from there."""
    variables = to_variables(source, arrays_of(source, num_classes))
    as_coco = num_classes == 80
    outputs = weights.DETECTOR_FORMATS[source].coco_outputs if as_coco else None
    again = to_variables(source, to_arrays(source, variables, as_coco=as_coco), outputs=outputs)
    assert shapes_and_types(again) == shapes_and_types(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_a_cell_s_anchors_and_deltas_get_our_order(arrays_of, source):
    """Written out for scale 2^(1/3) and ratio 2: the logit of class 5, and the four deltas."""
    arrays, variables = arrays_of(source), to_variables(source, arrays_of(source))
    outputs = SOURCES[source]
    # Scale 1 of (0, 1, 2), ratio 2 of (0, 1, 2): our order is by scale first, like detectron2's.
    anchor, reference = 1 * 3 + 2, (1 * 3 + 2 if source == "detectron2" else 2 * 3 + 1)
    classes, boxes = (
        ("head.cls_score", "head.bbox_pred")
        if source == "detectron2"
        else ("head.classification_head.cls_logits", "head.regression_head.bbox_reg")
    )
    head = variables["params"]["classification_head"]["predict"]
    assert head["bias"][anchor * outputs + 5] == arrays[f"{classes}.bias"][reference * outputs + 5]
    np.testing.assert_array_equal(
        head["kernel"][2, 0, :, anchor * outputs + 5],
        arrays[f"{classes}.weight"][reference * outputs + 5, :, 2, 0],
    )
    head = variables["params"]["box_head"]["predict"]
    for dy_dx_dh_dw, dx_dy_dw_dh in ((0, 1), (1, 0), (2, 3), (3, 2)):
        channel = reference * 4 + dx_dy_dw_dh
        assert head["bias"][anchor * 4 + dy_dx_dh_dw] == arrays[f"{boxes}.bias"][channel]
        np.testing.assert_array_equal(
            head["kernel"][1, 2, :, anchor * 4 + dy_dx_dh_dw],
            arrays[f"{boxes}.weight"][channel, :, 1, 2],
        )


@pytest.mark.parametrize("source", ["torchvision_v1", "torchvision_v2"])
def test_of_91_outputs_the_80_of_coco_remain_in_the_order_of_their_ids(arrays_of, source):
    arrays = arrays_of(source)
    everything, only_coco = (
        to_variables(source, arrays),
        to_variables(source, arrays, outputs=COCO_IDS),
    )
    head = ("classification_head", "predict", "bias")
    everything, only_coco = (
        tree["params"][head[0]][head[1]][head[2]].reshape(9, -1) for tree in (everything, only_coco)
    )
    # person, bicycle, stop sign (no category has the id 12), toothbrush
    for index, id_ in ((0, 1), (1, 2), (11, 13), (79, 90)):
        np.testing.assert_array_equal(only_coco[:, index], everything[:, id_])
    assert only_coco.shape == (9, 80)


def test_coco_s_ids_are_those_of_its_annotations(test_data):
    instances = json.loads((test_data / "coco21" / "instances.json").read_text())
    ids = sorted(category["id"] for category in instances["categories"])
    assert tuple(ids) == COCO_IDS


@pytest.mark.parametrize("source", ["torchvision_v1", "torchvision_v2"])
def test_outputs_without_a_class_have_no_detections(arrays_of, source):
    arrays = to_arrays(
        source, to_variables(source, arrays_of(source), outputs=COCO_IDS), as_coco=True
    )
    bias = arrays["head.classification_head.cls_logits.bias"].reshape(9, 91)
    kernel = arrays["head.classification_head.cls_logits.weight"].reshape(9, 91, -1)
    unused = sorted(set(range(91)) - set(COCO_IDS))
    assert unused == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert (bias[:, unused] == detectors.NEVER).all()
    assert not kernel[:, unused].any()
    # The score is practically 0, and yet a loss of it is finite.
    assert float(jax.nn.sigmoid(detectors.NEVER)) < 1e-38
    assert np.isfinite(jax.grad(jax.nn.log_sigmoid)(detectors.NEVER))
    # The boxes and the 80 outputs have not changed.
    original = arrays_of(source)
    bias_before = original["head.classification_head.cls_logits.bias"].reshape(9, 91)
    used = list(COCO_IDS)
    np.testing.assert_array_equal(bias[:, used], bias_before[:, used])
    name = "head.regression_head.bbox_reg.weight"
    np.testing.assert_array_equal(arrays[name], original[name])


def older_name(name):
    """Return the name in v1's published file, which is of 2021."""
    if name.startswith(("backbone.fpn.inner_blocks", "backbone.fpn.layer_blocks")):
        return name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    head, separator, rest = name.partition("_head.conv.")
    if not separator:
        return name
    index, _, leaf = rest.split(".")
    return f"{head}_head.conv.{2 * int(index)}.{leaf}"


def test_the_names_of_v1_s_published_file_are_known(arrays_of):
    arrays = arrays_of("torchvision_v1")
    older = {older_name(name): value for name, value in arrays.items()}
    assert "backbone.fpn.inner_blocks.0.weight" in older
    assert "head.regression_head.conv.6.bias" in older
    assert len(older) == len(arrays)
    assert len(older.keys() - arrays.keys()) == 12 + 16
    actual, expected = to_variables("torchvision_v1", older), to_variables("torchvision_v1", arrays)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_arrays_that_a_network_does_not_need_are_allowed(arrays_of):
    arrays = arrays_of("detectron2")
    extra = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors.4")
    to_variables("detectron2", arrays | dict.fromkeys(extra, np.zeros(3)))
    with pytest.raises(
        ValueError, match=r"not detectron2 weights of toy: unexpected: proposal\.a;"
    ):
        to_variables("detectron2", arrays | {"proposal.a": np.zeros(3)})


def test_anchors_that_a_wrapper_has_saved_are_allowed(arrays_of):
    arrays = arrays_of("torchvision_v2")
    to_variables("torchvision_v2", arrays | {"anchor_generator.cell_anchors.0": np.zeros((9, 4))})


def test_counters_are_written_if_the_norms_have_them(arrays_of, source):
    arrays = to_arrays(source, to_variables(source, arrays_of(source)))
    counters = [value for name, value in arrays.items() if name.endswith("num_batches_tracked")]
    assert len(counters) == (12 if source == "torchvision_v2" else 0)
    assert all(value.dtype == np.int64 and value.shape == () for value in counters)


def test_the_presets_have_the_settings_of_the_formats(source):
    """The exception is v1's epsilon: torchvision trains with 1e-5 and publishes weights for 0."""
    preset, library_format = load_config(PRESETS[source]), weights.DETECTOR_FORMATS[source]
    differing = {
        field for field, value in library_format.model.items() if preset.model[field] != value
    }
    assert differing == ({"norm_epsilon"} if source == "torchvision_v1" else set())
    assert preset.input.to_dict() == library_format.input
    assert weights.DETECTOR_FORMATS["torchvision_v1"].model["norm_epsilon"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("source", ["torchvision_v1", "torchvision_v2"])
def test_the_outputs_equal_torchvision_s_golden_ones(parity_arrays, source):
    golden = json.loads(GOLDEN.read_text())["outputs"][source]
    config = config_of(source, backbone="resnet18", norm=preset_norm(source))
    config.model.norm_epsilon = 1e-5
    arrays = parity_arrays(detector_shapes(source, "resnet18", 91))
    variables = to_variables(source, arrays, config)
    images = np.random.default_rng(3).standard_normal((1, 64, 96, 3), np.float32)
    # Like the golden outputs, ours are in float64, so that no rounding of a processor counts.
    config.dtype = "float64"
    with jax.enable_x64(True):
        model = modeling.build_model(config, num_classes=91)
        inputs = jax.tree.map(lambda x: np.asarray(x, np.float64), (variables, images))
        outputs = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(*inputs)
    for field, delta_order in (("logits", slice(None)), ("deltas", [1, 0, 3, 2])):
        ours = np.concatenate(getattr(outputs, field), axis=1)
        # torchvision orders a cell's anchors by ratio first.
        reordered = ours.reshape(-1, 3, 3, ours.shape[-1]).swapaxes(1, 2)[..., delta_order]
        np.testing.assert_allclose(np.sqrt((reordered**2).mean()), golden[field]["rms"], rtol=1e-8)
        values = reordered.ravel()[7 :: reordered.size // 40 + 1]
        # The golden values have seven digits.
        np.testing.assert_allclose(values, golden[field]["values"], rtol=1e-6, atol=1e-6)
