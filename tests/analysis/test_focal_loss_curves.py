"""The curves of the paper's figure 4, next to a computation of the same in float64."""

import functools
import sys

import jax
import numpy as np
import pytest

from retinanet_jax import input_pipeline
from retinanet_jax.analysis import focal_loss_curves
from retinanet_jax.analysis.focal_loss_curves import cumulative, draw_focal_loss
from retinanet_jax.data.sources.base import subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.modeling import build_model, image_anchors, initialize, network_input

GAMMAS = (0, 0.5, 1, 2)


@pytest.fixture(scope="module")
def source(synthetic_dataset):
    return CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")


VARIABLES = {}  # compiling what makes them takes longest


@pytest.fixture
def detector(toy_config, source):
    """Return a config and variables of which the scores of anchors differ."""
    toy_config.matching.low_quality = False
    toy_config.anchors.base_scale = 2.0
    if not VARIABLES:
        VARIABLES.update(jax.device_get(initialize(toy_config, len(source.categories), seed=3)))
        predict = VARIABLES["params"]["classification_head"]["predict"]
        predict["bias"] = np.random.default_rng(0).normal(-3, 1.5, predict["bias"].shape)
        predict["kernel"] = predict["kernel"] * 10
    return toy_config, VARIABLES


def curves_of(detector, source, **options):
    config, variables = detector
    return focal_loss_curves.focal_loss_curves(variables, config, source, **options)


# ---- a computation in float64


def ious(anchors, boxes):
    """Return the IoU of each anchor (A 4) with each box (n 4)."""
    corners = [
        np.maximum(anchors[:, None, :2], boxes[:, :2]),
        np.minimum(anchors[:, None, 2:], boxes[:, 2:]),
    ]
    overlaps = np.clip(corners[1] - corners[0], 0, None).prod(axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (anchors, boxes)]
    return overlaps / (areas[0][:, None] + areas[1] - overlaps)


def losses_in_float64(detector, source, index):
    """Return the losses (G A) of an image's anchors, and which are foreground and background."""
    config, variables = detector
    model = build_model(config, len(source.categories))
    single = subset(source, [index])
    config.data.loader = "numpy"
    plan = input_pipeline.eval_plan(config, single.sizes, batch_size=1)
    (batch,) = input_pipeline.host_batches(config, single, plan, range(1))
    pixels = network_input(batch, config, train=False)
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, pixels)
    logits = np.concatenate([level[0] for level in outputs.logits]).astype(np.float64)
    annotations = single.annotations(0)
    anchors = np.concatenate(image_anchors((64, 64), config)).astype(np.float64)
    overlaps = ious(anchors, annotations.boxes.astype(np.float64))
    foreground = overlaps.max(axis=1) >= 0.5
    background = overlaps.max(axis=1) < 0.4
    center_is_inside = ((anchors[:, :2] + anchors[:, 2:]) / 2 < 64).all(axis=1)
    true = np.zeros(logits.shape, bool)
    classes = annotations.classes[overlaps.argmax(axis=1)]
    true[foreground, classes[foreground]] = True
    p_t = 1 / (1 + np.exp(np.where(true, -logits, logits)))
    losses = [(-((1 - p_t) ** gamma) * np.log(p_t)).sum(axis=1) for gamma in GAMMAS]
    return np.stack(losses), foreground & center_is_inside, background & center_is_inside


def points(losses):
    """Return the curve at each percent, by hand: whole terms, and a part of the next."""
    losses = np.sort(losses)
    result = []
    for percent in range(101):
        position = percent * len(losses) / 100
        whole = int(position)
        part = (position - whole) * losses[whole] if whole < len(losses) else 0
        result.append((losses[:whole].sum() + part) / losses.sum())
    return result


def test_the_curves_are_those_of_a_computation_in_float64(detector, source):
    curves = curves_of(detector, source, num_images=3, seed=1)
    images = np.random.default_rng(1).choice(20, 3, replace=False)
    assert curves["images"] == 3
    assert curves["gammas"] == [0, 0.5, 1, 2]
    parts = [losses_in_float64(detector, source, index) for index in sorted(images.tolist())]
    for name, mask in (("foreground", 1), ("background", 2)):
        losses = np.concatenate([part[0][:, part[mask]] for part in parts], axis=1)
        assert curves["anchors"][name] == losses.shape[1] > 20
        assert list(curves[name]) == ["0", "0.5", "1", "2"]
        for row, curve in zip(losses, curves[name].values(), strict=True):
            np.testing.assert_allclose(curve, points(row), atol=2e-5)
    spread = [curve[50] for curve in curves["background"].values()]
    assert spread == sorted(spread, reverse=True)  # a higher gamma leaves less to easy anchors
    assert spread[0] > 2 * spread[-1]


def test_a_curve_by_hand():
    """Of the terms 1, 1, 2, 4: half of them have 2 of 8, and 60% have 2.8 of 8."""
    curve = cumulative(np.array([4.0, 1.0, 2.0, 1.0]))
    assert len(curve) == 101
    assert [curve[k] for k in (0, 25, 50, 60, 75, 100)] == [0, 0.125, 0.25, 0.35, 0.5, 1]
    assert cumulative(np.array([7.0])) == pytest.approx(np.linspace(0, 1, 101))


def test_of_too_many_background_anchors_a_random_part_has_the_same_curve(
    detector, source, monkeypatch
):
    everything = curves_of(detector, source, num_images=20)
    monkeypatch.setattr(focal_loss_curves, "MAX_BACKGROUND", 8_000)
    part = curves_of(detector, source, num_images=100)  # there are 20
    assert part["images"] == 20
    assert part["anchors"]["background"] < 8_000 < everything["anchors"]["background"]
    assert part["foreground"] == everything["foreground"]
    assert part["background"] != everything["background"]
    np.testing.assert_allclose(part["background"]["2"], everything["background"]["2"], atol=0.05)


def test_the_seed_chooses_the_images(detector, source):
    curves = [curves_of(detector, source, num_images=2, seed=seed) for seed in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize(
    ("labels", "at_gamma_2"),
    [
        ([-1, -2, -1], 1.0),  # no foreground
        ([0, -2, 3], 1.0),  # no background
        ([0, -1, -1], 0.0),  # losses that are rounded to 0
    ],
)
def test_curves_that_are_undefined(config, source, monkeypatch, labels, at_gamma_2):
    losses = np.ones((4, 3), np.float32)
    losses[3] = at_gamma_2
    images = [(losses, np.array(labels), 1.0)]
    monkeypatch.setattr(focal_loss_curves, "_anchor_losses", lambda *_: images)
    assert curves_of((config, {}), source) is None


def test_the_drawing_has_a_line_for_each_gamma_and_group():
    pytest.importorskip("matplotlib")
    gammas = [f"{gamma:g}" for gamma in GAMMAS]
    rows = np.linspace(0, np.arange(1, 9), 101).T.reshape(2, 4, 101) / 8
    groups = ("foreground", "background")
    curves = {g: dict(zip(gammas, row, strict=True)) for g, row in zip(groups, rows, strict=True)}
    figure = draw_focal_loss(curves)
    for axis, group, row in zip(figure.axes, groups, rows, strict=True):
        assert group in axis.get_xlabel()
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert labels == [f"gamma = {gamma}" for gamma in gammas]
        np.testing.assert_array_equal([line.get_ydata() for line in axis.lines], row)
    assert len({(line.get_linestyle(), line.get_color()) for line in figure.axes[0].lines}) == 4


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r'run `pip install "retinanet-jax\[analyze\]"`\.$'):
        draw_focal_loss({})
