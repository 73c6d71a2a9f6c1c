"""Verification: which differences between two lists of detections are measured."""

import numpy as np
import pytest
from export_examples import EXPECTED

from retinanet_jax.export import verification
from retinanet_jax.export.verification import DetectionArrays


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
def test_the_largest_differences_and_the_unmatched_detections_are_measured(changed, expected):
    actual = EXPECTED._replace(**changed)
    difference = verification.compare_detections(EXPECTED, actual, certain_score=0.1)
    assert difference[2:] == expected
    assert difference.num_detections == 2


def test_order_does_not_matter_and_each_detection_has_one_counterpart():
    compare = verification.compare_detections
    reversed_order = DetectionArrays(*(x[::-1] for x in EXPECTED))
    assert compare(EXPECTED, reversed_order, 0.1).num_unmatched == 0
    duplicated = DetectionArrays(*(np.concatenate([x, x[:1]]) for x in EXPECTED))
    assert compare(EXPECTED, duplicated, 0.1).num_unmatched == 1
    assert compare(duplicated, EXPECTED, 0.1).num_unmatched == 1


def test_detections_that_rounding_decides_about_need_no_counterpart(servable):
    compare = verification.compare_detections
    first = DetectionArrays(*(x[:1] for x in EXPECTED))
    assert compare(EXPECTED, first, certain_score=0.4).num_unmatched == 1
    assert compare(EXPECTED, first, certain_score=0.6).num_unmatched == 0
    limits = servable.config.detections
    limits.update(score_threshold=0.3, max_detections=3)
    assert verification.certain_score(EXPECTED, servable) == pytest.approx(0.3 + 1e-4)
    limits.max_detections = 2
    assert verification.certain_score(EXPECTED, servable) == pytest.approx(0.5 + 1e-4)
