"""The comparison of two lists of detections: which differences are measured."""

import functools

import numpy as np
import pytest
from export_examples import EXPECTED

from retinanet_jax.export.comparison import DetectionArrays, certain_mask, compare_detections


@pytest.fixture
def config(toy_config):
    """A config with a threshold below the scores of the examples."""
    toy_config.detections.update(score_threshold=0.1, max_detections=100)
    return toy_config


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, (0.0, 0.0, 0)),
        (
            {"boxes": EXPECTED.boxes + np.float32([[0, 0, 0, 0], [0, 0.25, 0, -0.125]])},
            (0.25, 0.0, 0),
        ),
        ({"scores": np.float32([0.9, 0.5078125])}, (0.0, 0.0078125, 0)),
        ({"categories": np.array([3, 3])}, (0.0, 0.0, 2)),
        ({"boxes": EXPECTED.boxes + 2}, (0.0, 0.0, 4)),
    ],
)
def test_the_largest_differences_and_the_unmatched_detections_are_measured(
    changed, expected, config
):
    actual = EXPECTED._replace(**changed)
    difference = compare_detections(EXPECTED, actual, config)
    assert (difference.box, difference.score, difference.num_unmatched) == expected
    assert difference.num_matched == 2 - difference.num_unmatched / 2
    assert difference.num_detections == 2


def test_order_does_not_matter_and_each_detection_has_one_counterpart(config):
    reversed_order = DetectionArrays(*(x[::-1] for x in EXPECTED))
    assert compare_detections(EXPECTED, reversed_order, config).num_unmatched == 0
    duplicated = DetectionArrays(*(np.concatenate([x, x[:1]]) for x in EXPECTED))
    assert compare_detections(EXPECTED, duplicated, config).num_unmatched == 1
    assert compare_detections(duplicated, EXPECTED, config).num_unmatched == 1


def test_detections_that_rounding_decides_about_need_no_counterpart(config):
    first = DetectionArrays(*(x[:1] for x in EXPECTED))
    assert compare_detections(EXPECTED, first, config).num_unmatched == 1
    config.detections.score_threshold = 0.49995  # of the second detection's score, 0.5
    assert compare_detections(EXPECTED, first, config).num_unmatched == 0
    config.detections.score_threshold = 0.3
    near = EXPECTED._replace(scores=np.float32([0.30009, 0.30011]))
    assert certain_mask(near, EXPECTED, config).tolist() == [False, True]
    config.detections.max_detections = 2  # the list is full: a third may have scored as much
    near = EXPECTED._replace(scores=np.float32([0.50009, 0.50011]))
    assert certain_mask(near, EXPECTED, config).tolist() == [False, True]


def test_rounding_decides_near_the_threshold_of_each_category(config):
    first = DetectionArrays(*(x[:1] for x in EXPECTED))
    compare = functools.partial(compare_detections, EXPECTED, first, config)
    assert compare({3: 0.2, 7: 0.49995}).num_unmatched == 0  # the second one scores 0.5
    assert compare({3: 0.49995, 7: 0.2}).num_unmatched == 1
    assert compare({3: 0.49995}).num_unmatched == 1  # the config's 0.1 is that of others
