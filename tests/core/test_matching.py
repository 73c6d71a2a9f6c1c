import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_boxes import boxes

from retinanet_jax.core import (
    BACKGROUND,
    IGNORE,
    assign_targets,
    match,
    max_crowd_ioa,
    pyramid_anchors,
    xyxy_to_yxyx,
)
from retinanet_jax.core.matching import BOXES_PER_ITERATION

THRESHOLDS = dict(foreground_iou=0.5, background_iou=0.4)
MATCHING = dict(THRESHOLDS, low_quality=True)
TARGETS = dict(MATCHING, crowd_ioa=None, ignore_padding=False)
EVERYWHERE = np.array([1000, 1000], np.float32)
NO_CROWD = (np.zeros((1, 4), np.float32), np.array([False]))


def all_real(array):
    return np.ones(len(array), bool)


def random_boxes(generator, *shape, limit=60):
    """Return integer boxes, so that an IoU is the same float however it is computed."""
    corner = generator.integers(0, limit, (*shape, 2))
    sides = generator.integers(1, limit, (*shape, 2))
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def match_by_matrix(anchors, gt_boxes, gt_mask, eligible, low_quality):
    """Return the result of the definition, with an A x M matrix in numpy, as the reference."""
    top_left = np.maximum(anchors[:, None, :2], gt_boxes[None, :, :2])
    bottom_right = np.minimum(anchors[:, None, 2:], gt_boxes[None, :, 2:])
    overlap = np.prod(np.maximum(bottom_right - top_left, 0), axis=-1)
    area_a, area_b = (np.prod(b[:, 2:] - b[:, :2], axis=-1) for b in (anchors, gt_boxes))
    iou = np.where(gt_mask, overlap / (area_a[:, None] + area_b - overlap), 0)  # A M
    best = iou.max(axis=1)
    foreground = best >= 0.5
    if low_quality:
        highest = np.where(eligible[:, None], iou, 0).max(axis=0)
        foreground |= np.any((iou == highest) & (highest > 0), axis=1)
    matches = np.where(foreground, iou.argmax(axis=1), np.where(best < 0.4, BACKGROUND, IGNORE))
    return np.where(eligible, matches, IGNORE)


def test_thresholds_by_hand():
    gt = boxes([0, 0, 10, 10])
    # Slices of the object: their IoU is their height / 10. The last is disjoint.
    heights = [10, 5, 4.9, 4, 3.9]
    anchors = boxes(*([0, 0, height, 10] for height in heights), [50, 50, 60, 60])
    matches = match(anchors, gt, all_real(gt), **THRESHOLDS, low_quality=False)
    assert matches.tolist() == [0, 0, IGNORE, IGNORE, BACKGROUND, BACKGROUND]
    assert matches.dtype == np.int32


def test_low_quality_matches_every_tied_best_anchor():
    gt = boxes([0, 0, 10, 10])
    anchors = boxes([0, 0, 3, 10], [7, 0, 10, 10], [0, 0, 2, 10])
    forced = match(anchors, gt, all_real(gt), **THRESHOLDS, low_quality=True)
    assert forced.tolist() == [0, 0, BACKGROUND]
    plain = match(anchors, gt, all_real(gt), **THRESHOLDS, low_quality=False)
    assert plain.tolist() == [BACKGROUND] * 3


def test_a_forced_match_is_with_the_anchors_own_best_ground_truth():
    # The anchor is the best of both ground truths, and its own best is the large one.
    gt = boxes([0, 0, 2, 10], [0, 0, 10, 10])
    anchors = boxes([0, 0, 8, 10])
    assert match(anchors, gt, all_real(gt), **MATCHING).tolist() == [1]


def test_the_first_of_equal_ground_truths_is_matched():
    gt = boxes([0, 0, 8, 10], [0, 0, 10, 10], [0, 0, 10, 10])
    assert match(boxes([0, 0, 10, 10]), gt, all_real(gt), **MATCHING).tolist() == [1]


def test_a_ground_truth_without_overlap_forces_no_match():
    gt = boxes([80, 80, 90, 90])
    assert match(boxes([0, 0, 10, 10]), gt, all_real(gt), **MATCHING).tolist() == [BACKGROUND]


@pytest.mark.parametrize("rows", [0, 3])
def test_no_ground_truth_is_all_background(rows):
    gt = np.full((rows, 4), np.nan, np.float32)
    matches = match(boxes([0, 0, 10, 10], [0, 0, 0, 0]), gt, ~all_real(gt), **MATCHING)
    assert matches.tolist() == [BACKGROUND] * 2


def test_ineligible_anchors_are_ignored_and_never_best():
    gt = boxes([0, 0, 10, 10])
    anchors = boxes([0, 0, 10, 10], [0, 0, 3, 10], [50, 50, 60, 60])
    eligible = np.array([False, True, False])
    matches = match(anchors, gt, all_real(gt), **MATCHING, eligible=eligible)
    assert matches.tolist() == [IGNORE, 0, IGNORE]


jitted_match = jax.jit(match, static_argnames=("foreground_iou", "background_iou", "low_quality"))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.booleans())
def test_match_equals_the_matrix(seed, fraction, low_quality):
    generator = np.random.default_rng(seed)
    anchors, gt = random_boxes(generator, 200), random_boxes(generator, 9)
    gt_mask, eligible = generator.random(9) < fraction, generator.random(200) < 0.8
    matches = jitted_match(
        anchors, gt, gt_mask, **THRESHOLDS, low_quality=low_quality, eligible=eligible
    )
    expected = match_by_matrix(anchors, gt, gt_mask, eligible, low_quality)
    np.testing.assert_array_equal(matches, expected)


def test_low_quality_matches_the_best_anchor_of_inexact_boxes():
    # IoUs here are not exact: the maximum must be compared with the bits that it was taken from.
    generator = np.random.default_rng(0)
    anchors = np.concatenate(
        pyramid_anchors(
            (256, 256),
            min_level=3,
            max_level=7,
            base_scale=4.0,
            scales=(1.0, 2 ** (1 / 3)),
            ratios=(0.5, 1.0, 2.0),
            offset=0.5,
            rounding="exact",
            stride_rule="nominal",
        )
    )
    corner = generator.uniform(0, 200, (8, 50, 2))
    gt = np.concatenate([corner, corner + generator.uniform(3, 20, (8, 50, 2))], -1)
    function = functools.partial(match, foreground_iou=1.0, background_iou=0.0, low_quality=True)
    batched = jax.jit(jax.vmap(function, in_axes=(None, 0, 0)))
    matches = np.asarray(batched(anchors, gt.astype(np.float32), np.ones((8, 50), bool)))
    assert all(np.sum(row >= 0) >= 40 for row in matches)


@pytest.mark.parametrize("name", ["torchvision_v1", "detectron2_r50_stride_in_1x1"])
def test_matches_equal_torchvisions_and_detectron2s(test_data, name):
    golden = np.load(test_data / "parity" / f"{name}_128x160.npz")
    anchors, gt = xyxy_to_yxyx(golden["anchors"]), xyxy_to_yxyx(golden["gt_boxes"][0])
    expected = golden["matched_idxs"][0]
    if "detectron2" in name:  # 1 foreground, 0 background, -1 ignored
        expected = np.select(
            [golden["match_labels"][0] == 1, golden["match_labels"][0] == 0],
            [expected, BACKGROUND],
            IGNORE,
        )
    np.testing.assert_array_equal(match(anchors, gt, all_real(gt), **MATCHING), expected)


def test_targets_by_hand():
    anchors = boxes([0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60])
    gt = boxes([0, 0, 10, 9])
    targets = assign_targets(
        anchors, gt, np.array([7]), all_real(gt), *NO_CROWD, EVERYWHERE, **TARGETS
    )
    assert targets.labels.tolist() == [7, IGNORE, BACKGROUND]
    np.testing.assert_array_equal(targets.boxes, boxes([0, 0, 10, 9], *anchors[1:]))


def test_anchors_with_centers_in_the_padding_are_ignored():
    # The image is 20 high and 30 wide. A center on the border is outside.
    anchors = boxes([5, 5, 15, 15], [15, 5, 25, 15], [5, 25, 15, 35], [14, 24, 24, 34])
    gt = boxes([12, 2, 20, 18])
    arguments = (
        anchors,
        gt,
        np.array([0]),
        all_real(gt),
        *NO_CROWD,
        np.array([20, 30], np.float32),
    )
    ignored = assign_targets(*arguments, **dict(TARGETS, ignore_padding=True))
    assert ignored.labels.tolist() == [0, IGNORE, IGNORE, BACKGROUND]
    not_ignored = assign_targets(*arguments, **TARGETS)
    assert not_ignored.labels.tolist() == [BACKGROUND, 0, BACKGROUND, BACKGROUND]


def test_background_anchors_in_crowd_regions_are_ignored():
    anchors = boxes([0, 0, 10, 10], [0, 6, 10, 16], [0, 5, 10, 15], [50, 50, 60, 60])
    gt = boxes([0, 0, 10, 10])
    crowd = boxes([0, 10, 10, 90], [0, 0, 90, 90])
    arguments = (
        anchors,
        gt,
        np.array([3]),
        all_real(gt),
        crowd,
        np.array([True, False]),
        EVERYWHERE,
    )
    ignored = assign_targets(*arguments, **dict(TARGETS, crowd_ioa=0.5))
    assert ignored.labels.tolist() == [3, IGNORE, BACKGROUND, BACKGROUND]  # 0, 0.6, 0.5 inside, 0
    not_ignored = assign_targets(*arguments, **TARGETS)
    assert not_ignored.labels.tolist() == [3, BACKGROUND, BACKGROUND, BACKGROUND]


def test_foreground_anchors_in_crowd_regions_are_foreground():
    gt = boxes([0, 0, 10, 10])
    crowd = boxes([0, 0, 90, 90])
    targets = assign_targets(
        gt, gt, np.array([3]), all_real(gt), crowd, all_real(crowd), EVERYWHERE,
        **dict(TARGETS, crowd_ioa=0.5),
    )  # fmt: skip
    assert targets.labels.tolist() == [3]


def test_crowd_ioa_is_a_fraction_of_the_anchor_and_of_one_region():
    crowd = boxes([0, 0, 10, 4], [0, 6, 10, 10], [0, 0, 10, 10])
    ioa = max_crowd_ioa(boxes([0, 0, 10, 10]), crowd, np.array([True, True, False]))
    np.testing.assert_allclose(ioa, [0.4], rtol=1e-6)


def scene(seed, num_gt=4, num_crowd=2):
    generator = np.random.default_rng(seed)
    return (
        random_boxes(generator, num_gt),
        generator.integers(0, 20, num_gt).astype(np.int32),
        all_real(range(num_gt)),
        random_boxes(generator, num_crowd),
        all_real(range(num_crowd)),
        np.array([70, 80], np.float32),
    )


ALL_ON = dict(MATCHING, crowd_ioa=0.5, ignore_padding=True)


def test_padding_changes_nothing():
    anchors = random_boxes(np.random.default_rng(9), 300)
    gt, classes, gt_mask, crowd, crowd_mask, size = scene(0)
    filler = np.tile(anchors[:1], (5, 1))
    padded = (
        np.concatenate([gt, filler]),
        np.pad(classes, (0, 5), constant_values=19),
        np.pad(gt_mask, (0, 5)),
        np.concatenate([crowd, filler]),
        np.pad(crowd_mask, (0, 5)),
        size,
    )
    expected = assign_targets(anchors, gt, classes, gt_mask, crowd, crowd_mask, size, **ALL_ON)
    result = assign_targets(anchors, *padded, **ALL_ON)
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.boxes, expected.boxes)


def test_masked_boxes_at_the_end_need_not_be_visited():
    anchors = random_boxes(np.random.default_rng(9), 300)
    scenes = [np.stack(arrays) for arrays in zip(*map(scene, range(3)), strict=True)]
    gt, classes, gt_mask, crowd, crowd_mask, size = scenes
    filler = np.tile(anchors[:1], (3, 20, 1))  # would be matched if it was real
    masked = np.zeros((3, 20), bool)
    padded = (
        np.concatenate([gt, filler], axis=1),
        np.pad(classes, ((0, 0), (0, 20))),
        np.concatenate([gt_mask, masked], axis=1),
        np.concatenate([crowd, filler], axis=1),
        np.concatenate([crowd_mask, masked], axis=1),
        size,
    )

    @jax.jit
    def assign(num_gt, num_crowd):
        counts = dict(num_gt=num_gt, num_crowd=num_crowd)
        function = functools.partial(assign_targets, **ALL_ON, **counts)
        return jax.vmap(function, in_axes=(None, *[0] * 6))(anchors, *padded)

    expected = assign(padded[0].shape[1], padded[3].shape[1])
    for num_gt, num_crowd in ((gt.shape[1], crowd.shape[1]), (gt.shape[1] + 1, crowd.shape[1] + 9)):
        jax.tree.map(np.testing.assert_array_equal, assign(num_gt, num_crowd), expected)


def test_boxes_after_the_given_number_are_not_visited():
    gt = boxes(*([10 * k, 0, 10 * k + 10, 10] for k in range(BOXES_PER_ITERATION + 1)))
    matches = match(gt, gt, all_real(gt), **MATCHING, num_gt=BOXES_PER_ITERATION)
    assert matches.tolist() == [*range(BOXES_PER_ITERATION), BACKGROUND]
    crowd = max_crowd_ioa(gt, gt, all_real(gt), BOXES_PER_ITERATION)
    assert crowd.tolist() == [1] * BOXES_PER_ITERATION + [0]


def test_jit_and_vmap_change_nothing():
    anchors = random_boxes(np.random.default_rng(9), 300)
    scenes = [scene(seed) for seed in range(3)]
    function = functools.partial(assign_targets, **ALL_ON)
    batched = jax.jit(jax.vmap(function, in_axes=(None, *[0] * 6)))
    result = batched(anchors, *map(np.stack, zip(*scenes, strict=True)))
    for index, arguments in enumerate(scenes):
        expected = function(anchors, *arguments)
        np.testing.assert_array_equal(result.labels[index], expected.labels)
        np.testing.assert_array_equal(result.boxes[index], expected.boxes)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.4), (-0.1, 0.5), (0.4, 1.5), (0.0, 0.0)])
def test_invalid_thresholds_are_refused_with_their_values(low, high):
    gt = boxes([0, 0, 10, 10])
    with pytest.raises(ValueError, match=f"background_iou={low} and foreground_iou={high}"):
        match(gt, gt, all_real(gt), foreground_iou=high, background_iou=low, low_quality=True)


def test_ground_truth_without_rows_is_refused():
    nothing = boxes()
    with pytest.raises(ValueError, match="gt_boxes has 0 rows"):
        assign_targets(
            boxes([0, 0, 1, 1]),
            nothing,
            np.zeros(0, int),
            all_real(nothing),
            *NO_CROWD,
            EVERYWHERE,
            **TARGETS,
        )


def test_memory_of_200000_anchors_and_100_ground_truths():
    batch = 4
    shapes = (
        jax.ShapeDtypeStruct((200_000, 4), np.float32),
        jax.ShapeDtypeStruct((batch, 100, 4), np.float32),
        jax.ShapeDtypeStruct((batch, 100), np.int32),
        jax.ShapeDtypeStruct((batch, 100), bool),
        jax.ShapeDtypeStruct((batch, 8, 4), np.float32),
        jax.ShapeDtypeStruct((batch, 8), bool),
        jax.ShapeDtypeStruct((batch, 2), np.float32),
    )
    function = jax.vmap(functools.partial(assign_targets, **ALL_ON), in_axes=(None, *[0] * 6))
    compiled = jax.jit(function).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < batch * 16e6  # measured: 18.4e6
