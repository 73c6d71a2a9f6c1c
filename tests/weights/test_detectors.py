"""Whole detectors in and out: every array has its place, every channel its meaning, both ways."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import modeling, weights
from retinanet_jax.configs import detectron2 as detectron2_config
from retinanet_jax.configs import torchvision as torchvision_config
from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.weights import detectors, torchvision

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torchvision_detectors.json"
SOURCES = {"torchvision_v1": 91, "torchvision_v2": 91, "detectron2": 80}
SMALL = "toy"


@pytest.fixture(scope="module", autouse=True)
def small():
    """The architecture "toy" has four residual blocks: state dicts of 8 million numbers."""
    with pytest.MonkeyPatch.context() as patch:
        described = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False}
        patch.setitem(ARCHITECTURES, SMALL, described)
        yield


@pytest.fixture
def zero_arrays(detector_shapes_of):
    """`zero_arrays(source, architecture, num_outputs)`: a state dict that takes no memory."""

    def zero_arrays(source, architecture, num_outputs):
        shapes = detector_shapes_of(source, architecture, num_outputs)
        return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}

    return zero_arrays


@pytest.fixture(scope="module")
def arrays_of(detector_shapes_of, parity_arrays):
    """`arrays_of(source, num_outputs)`: a seeded state dict of the small architecture."""

    @functools.cache
    def made(source, num_outputs):
        return parity_arrays(detector_shapes_of(source, SMALL, num_outputs))

    return lambda source, num_outputs=None: dict(made(source, num_outputs or SOURCES[source]))


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    return request.param


def load(source, arrays, *, num_outputs=None, architecture=SMALL, norm="frozen_batch"):
    return weights.DETECTOR_SOURCES[source](
        arrays,
        architecture=architecture,
        norm=norm,
        num_outputs=SOURCES[source] if num_outputs is None else num_outputs,
    )


def save(target, variables, num_outputs, architecture=SMALL):
    return weights.DETECTOR_TARGETS[target](
        variables, architecture=architecture, num_outputs=num_outputs
    )


def config_of(source):
    """The recipe's config, with what the published weights need."""
    if source == "detectron2":
        config = detectron2_config.get_config().unlock()
    else:
        config = torchvision_config.get_config(source.removeprefix("torchvision_")).unlock()
    config.model.update(weights.DETECTOR_FORMATS[source].model)
    return config


def assert_equal_arrays(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], strict=True, err_msg=name)


def described(tree):
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
def test_the_state_dicts_are_the_libraries_own(test_data, detector_shapes_of, file, source):
    with np.load(test_data / "parity" / f"{file}.npz") as golden:
        theirs = dict(zip(golden["sd_names"].tolist(), golden["sd_shapes"].tolist(), strict=True))
    ours = detector_shapes_of(source, "resnet50", SOURCES[source])
    assert {name: "x".join(map(str, shape)) for name, shape in ours.items()} == theirs


@pytest.mark.parametrize(
    ("source", "architecture"),
    [
        *((source, architecture) for source in SOURCES for architecture in ("resnet50", SMALL)),
        ("detectron2", "resnet101"),
    ],
)
def test_the_tree_is_the_detector_s(zero_arrays, source, architecture):
    """Of the network that the recipe's config builds; nothing is missing, nothing left over."""
    config = config_of(source)
    config.model.backbone = architecture
    model = modeling.build_model(config, num_classes=SOURCES[source])
    inputs = jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    expected = jax.eval_shape(lambda: model.init(*inputs, train=False))
    variables = load(
        source,
        zero_arrays(source, architecture, SOURCES[source]),
        architecture=architecture,
        norm=config.model.norm,
    )
    assert described(variables) == described(expected)


@pytest.mark.parametrize(
    ("source", "parameters"), [("torchvision_v1", 34_014_999), ("torchvision_v2", 38_198_935)]
)
def test_the_parameters_are_as_many_as_published(zero_arrays, source, parameters):
    norm = weights.DETECTOR_FORMATS[source].model["norm"]
    arrays = zero_arrays(source, "resnet50", 91)
    assert size(load(source, arrays, architecture="resnet50", norm=norm)["params"]) == parameters


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
@pytest.mark.parametrize("num_outputs", [None, 3])
def test_out_again_every_bit_is_as_it_was(arrays_of, source, norm, num_outputs):
    arrays = arrays_of(source, num_outputs)
    num_outputs = num_outputs or SOURCES[source]
    variables = load(source, arrays, num_outputs=num_outputs, norm=norm)
    assert_equal_arrays(save(source, variables, num_outputs), arrays)


@pytest.mark.parametrize("num_classes", [80, 3])
def test_in_again_every_bit_is_as_it_was(arrays_of, source, num_classes):
    """80 classes are written among the 91 outputs that torchvision has, and found there."""
    variables = load(source, arrays_of(source, num_classes), num_outputs=num_classes)
    outputs = SOURCES[source] if num_classes == 80 else num_classes
    again = load(source, save(source, variables, outputs), num_outputs=num_classes)
    assert described(again) == described(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_a_cell_s_anchors_and_deltas_are_ours(arrays_of, source):
    """Written out: which row of theirs is scale 2^(1/3), ratio 2 of class 5, and its dh."""
    arrays, variables = arrays_of(source), load(source, arrays_of(source))
    outputs = SOURCES[source]
    # Scale 1 of (0, 1, 2), ratio 2 of (0, 1, 2): ours are by scale first, and so are detectron2's.
    ours, theirs = 1 * 3 + 2, (1 * 3 + 2 if source == "detectron2" else 2 * 3 + 1)
    classes, boxes = (
        ("head.cls_score", "head.bbox_pred")
        if source == "detectron2"
        else ("head.classification_head.cls_logits", "head.regression_head.bbox_reg")
    )
    head = variables["params"]["classification_head"]["predict"]
    assert head["bias"][ours * outputs + 5] == arrays[f"{classes}.bias"][theirs * outputs + 5]
    np.testing.assert_array_equal(
        head["kernel"][2, 0, :, ours * outputs + 5],
        arrays[f"{classes}.weight"][theirs * outputs + 5, :, 2, 0],
    )
    head = variables["params"]["box_head"]["predict"]
    for dy_dx_dh_dw, dx_dy_dw_dh in ((0, 1), (1, 0), (2, 3), (3, 2)):
        row = theirs * 4 + dx_dy_dw_dh
        assert head["bias"][ours * 4 + dy_dx_dh_dw] == arrays[f"{boxes}.bias"][row]
        np.testing.assert_array_equal(
            head["kernel"][1, 2, :, ours * 4 + dy_dx_dh_dw], arrays[f"{boxes}.weight"][row, :, 1, 2]
        )


@pytest.mark.parametrize("source", ["torchvision_v1", "torchvision_v2"])
def test_of_91_outputs_the_80_of_coco_are_kept_in_the_order_of_their_ids(arrays_of, source):
    arrays = arrays_of(source)
    every, kept = load(source, arrays), load(source, arrays, num_outputs=80)
    head = ("classification_head", "predict", "bias")
    every, kept = (
        tree["params"][head[0]][head[1]][head[2]].reshape(9, -1) for tree in (every, kept)
    )
    # person, bicycle, stop sign (12 was never given), toothbrush
    for number, id_ in ((0, 1), (1, 2), (11, 13), (79, 90)):
        np.testing.assert_array_equal(kept[:, number], every[:, id_])
    assert kept.shape == (9, 80)


def test_coco_s_ids_are_those_of_its_official_files(test_data):
    instances = json.loads((test_data / "coco21" / "instances.json").read_text())
    ids = sorted(one["id"] for one in instances["categories"])
    assert tuple(ids) == detectors.COCO_IDS


@pytest.mark.parametrize("source", ["torchvision_v1", "torchvision_v2"])
def test_outputs_without_a_class_never_fire(arrays_of, source):
    arrays = save(source, load(source, arrays_of(source), num_outputs=80), 91)
    bias = arrays["head.classification_head.cls_logits.bias"].reshape(9, 91)
    kernel = arrays["head.classification_head.cls_logits.weight"].reshape(9, 91, -1)
    unused = sorted(set(range(91)) - set(detectors.COCO_IDS))
    assert unused == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert (bias[:, unused] == detectors.NEVER).all()
    assert not kernel[:, unused].any()
    # No score at all, and yet what a loss makes of it is finite.
    assert float(jax.nn.sigmoid(detectors.NEVER)) < 1e-38
    assert np.isfinite(jax.grad(jax.nn.log_sigmoid)(detectors.NEVER))
    # The boxes and the 80 are as they were.
    original = arrays_of(source)
    bias_before = original["head.classification_head.cls_logits.bias"].reshape(9, 91)
    used = list(detectors.COCO_IDS)
    np.testing.assert_array_equal(bias[:, used], bias_before[:, used])
    name = "head.regression_head.bbox_reg.weight"
    np.testing.assert_array_equal(arrays[name], original[name])


def older_name(name):
    """As v1's published file, of 2021, has it."""
    if name.startswith(("backbone.fpn.inner_blocks", "backbone.fpn.layer_blocks")):
        return name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    head, found, rest = name.partition("_head.conv.")
    if not found:
        return name
    index, _, leaf = rest.split(".")
    return f"{head}_head.conv.{2 * int(index)}.{leaf}"


def test_the_names_of_v1_s_published_file_are_understood(arrays_of):
    arrays = arrays_of("torchvision_v1")
    older = {older_name(name): value for name, value in arrays.items()}
    assert "backbone.fpn.inner_blocks.0.weight" in older
    assert "head.regression_head.conv.6.bias" in older
    assert len(older) == len(arrays)
    assert len(older.keys() - arrays.keys()) == 12 + 16
    ours, theirs = load("torchvision_v1", older), load("torchvision_v1", arrays)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_what_a_network_has_no_use_for_may_be_there(arrays_of):
    arrays = arrays_of("detectron2")
    extra = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors.4")
    load("detectron2", arrays | dict.fromkeys(extra, np.zeros(3)))
    with pytest.raises(ValueError, match=r"not detectron2 weights of toy: unknown: proposal\.a;"):
        load("detectron2", arrays | {"proposal.a": np.zeros(3)})


def test_counters_are_written_where_batch_norms_have_them(arrays_of, source):
    arrays = save(source, load(source, arrays_of(source)), SOURCES[source])
    counters = [value for name, value in arrays.items() if name.endswith("num_batches_tracked")]
    assert len(counters) == (12 if source == "torchvision_v2" else 0)
    assert all(value.dtype == np.int64 and value.shape == () for value in counters)


@pytest.mark.parametrize(
    ("source", "suffix"),
    [
        ("torchvision_v1", "npz"),
        ("detectron2", "npz"),
        ("torchvision_v2", "safetensors"),
        ("torchvision_v2", "pth"),
    ],
)
def test_a_file_s_round_trip(tmp_path, arrays_of, source, suffix):
    pytest.importorskip({"pth": "torch", "safetensors": "safetensors"}.get(suffix, "numpy"))
    variables = load(source, arrays_of(source), num_outputs=80)
    path = tmp_path / "deep" / f"weights.{suffix}"
    weights.save_detector(source, path, variables, architecture=SMALL)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    again = weights.load_detector(source, path, architecture=SMALL, norm="frozen_batch")
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    held = {"outputs": "all", "architecture": SMALL}
    if source != "detectron2":
        every = weights.load_detector(source, path, norm="frozen_batch", **held)
        assert detectors.num_classes(every) == 91
    weights.save_detector(source, path, variables, **held)
    as_many = weights.load_detector(source, path, norm="frozen_batch", **held)
    jax.tree.map(np.testing.assert_array_equal, as_many, variables)


def test_nothing_is_written_where_writing_fails(tmp_path, arrays_of, monkeypatch):
    variables = load("detectron2", arrays_of("detectron2"))
    target = tmp_path / "weights.txt"
    with pytest.raises(ValueError, match=r"weights\.txt must end in one of \.npz, \.pth"):
        weights.save_detector("detectron2", target, variables, architecture=SMALL)

    def interrupted(path, **arrays):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.save_detector("detectron2", tmp_path / "weights.npz", variables, architecture=SMALL)
    assert not list(tmp_path.iterdir())


def test_another_library_s_file_is_told_by_its_name(tmp_path, zero_arrays):
    for held in SOURCES:
        arrays = zero_arrays(held, SMALL, 2)
        weights.check_source(arrays, held)
        for asked in SOURCES.keys() - {held}:
            message = rf"{held} weights, and the source is {asked}; ask for {held}\."
            with pytest.raises(ValueError, match=message):
                weights.check_source(arrays, asked)
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **arrays)
    with pytest.raises(ValueError, match=r"weights\.npz: detectron2 weights, and the source is t"):
        weights.load_detector("torchvision_v1", path, architecture=SMALL, norm="batch")


@pytest.mark.parametrize(("held", "asked"), [("resnet101", "resnet50"), ("resnet50", "resnet101")])
def test_another_architecture_s_file_is_told_by_its_name(zero_arrays, source, held, asked):
    message = f"{source} weights of {held}, and the backbone is to be {asked}; ask for {held}"
    with pytest.raises(ValueError, match=message):
        load(source, zero_arrays(source, held, SOURCES[source]), architecture=asked)


def test_every_kind_of_wrong_array_is_listed_in_one_line(arrays_of):
    wrong = arrays_of("torchvision_v2")
    del wrong["head.regression_head.conv.3.1.bias"]
    wrong["roi_heads.box.weight"] = np.zeros(1)
    wrong["backbone.fpn.extra_blocks.p6.weight"] = np.zeros((256, 256, 3, 3), np.float32)
    wrong["backbone.fpn.extra_blocks.p7.bias"] = np.full(256, np.nan)
    with pytest.raises(ValueError, match="not torchvision_v2 weights of toy: ") as caught:
        load("torchvision_v2", wrong)
    message = str(caught.value)
    assert "missing: head.regression_head.conv.3.1.bias;" in message
    assert "unknown: roi_heads.box.weight;" in message
    assert "misshapen: backbone.fpn.extra_blocks.p6.weight;" in message
    assert "not finite: backbone.fpn.extra_blocks.p7.bias;" in message
    assert "\n" not in message


def test_a_classification_output_of_odd_length_is_told(arrays_of):
    wrong = arrays_of("detectron2")
    wrong["head.cls_score.bias"] = np.zeros(721, np.float32)
    with pytest.raises(ValueError, match=r"misshapen: head\.cls_score\.bias; give"):
        load("detectron2", wrong)


def test_another_number_of_outputs_is_refused(arrays_of):
    arrays = arrays_of("torchvision_v1", 7)
    with pytest.raises(ValueError, match="have 7 outputs and the network is to have 80; import"):
        load("torchvision_v1", arrays, num_outputs=80)
    variables = load("torchvision_v1", arrays, num_outputs=7)
    with pytest.raises(ValueError, match="has 7 classes and torchvision_v1's is to have 91 output"):
        save("torchvision_v1", variables, 91)


def test_a_network_that_the_library_has_not_is_refused(arrays_of):
    variables = load("torchvision_v1", arrays_of("torchvision_v1"))
    message = r"no detectron2 of toy: misshapen: fpn/p6/kernel; .*config\.model\.p6_from='c5', head"
    with pytest.raises(ValueError, match=message):
        save("detectron2", variables, 91)
    with pytest.raises(
        ValueError, match=r"no torchvision_v1 of resnet18: missing: backbone/stage2"
    ):
        save("torchvision_v1", variables, 91, architecture="resnet18")


def test_unknown_names_are_refused(tmp_path):
    message = "weights {}='mmdet' is unknown; use one of torchvision_v1, torchvision_v2, detectron2"
    with pytest.raises(ValueError, match=message.format("source")):
        weights.load_detector("mmdet", tmp_path, architecture=SMALL, norm="batch")
    with pytest.raises(ValueError, match=message.format("target")):
        weights.save_detector("mmdet", tmp_path, {}, architecture=SMALL)
    with pytest.raises(ValueError, match="outputs='91' must be 'coco' or 'all'"):
        weights.load_detector(
            "detectron2", tmp_path, architecture=SMALL, norm="batch", outputs="91"
        )


def test_a_norm_without_running_statistics_is_refused(arrays_of):
    with pytest.raises(ValueError, match="norm='group' cannot hold batch norm statistics"):
        load("detectron2", arrays_of("detectron2"), norm="group")


def test_the_recipes_are_the_formats_networks(source):
    """But for v1's epsilon: torchvision trains with 1e-5, and its published weights are of 0."""
    recipe = (
        detectron2_config.get_config()
        if source == "detectron2"
        else torchvision_config.get_config(source.removeprefix("torchvision_"))
    )
    form = weights.DETECTOR_FORMATS[source]
    differing = {field for field, value in form.model.items() if recipe.model[field] != value}
    assert differing == ({"norm_epsilon"} if source == "torchvision_v1" else set())
    assert recipe.input.to_dict() == form.input
    assert torchvision.TORCHVISION_V1.model["norm_epsilon"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("source", ["torchvision_v1", "torchvision_v2"])
def test_the_outputs_are_torchvision_s(detector_shapes_of, parity_arrays, source):
    golden = json.loads(GOLDEN.read_text())["outputs"][source]
    config = config_of(source)
    config.model.update(backbone="resnet18", norm_epsilon=1e-5)
    arrays = parity_arrays(detector_shapes_of(source, "resnet18", 91))
    variables = load(source, arrays, architecture="resnet18", norm=config.model.norm)
    model = modeling.build_model(config, num_classes=91)
    images = np.random.default_rng(3).standard_normal((1, 64, 96, 3), np.float32)
    outputs = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(
        variables, images
    )
    for field, their_order in (("logits", slice(None)), ("deltas", [1, 0, 3, 2])):
        ours = np.concatenate(getattr(outputs, field), axis=1).astype(np.float64)
        # The cells' anchors by ratio first.
        theirs = ours.reshape(-1, 3, 3, ours.shape[-1]).swapaxes(1, 2)[..., their_order]
        np.testing.assert_allclose(np.sqrt((theirs**2).mean()), golden[field]["rms"], rtol=1e-5)
        values = theirs.ravel()[7 :: theirs.size // 40 + 1]
        # float32 against float64.
        np.testing.assert_allclose(values, golden[field]["values"], rtol=0, atol=1e-4)
