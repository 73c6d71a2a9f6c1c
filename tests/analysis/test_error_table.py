"""Errors by type with the AP that each costs, and the confusion matrix."""

import numpy as np
import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis.errors import confusion, confusion_matrix, error_table
from retinanet_jax.analysis.evaluated import evaluate_detections

WHOLE, IOU_THIRD = [0, 0, 100, 100], [50, 0, 100, 100]  # xywh
ELSEWHERE, AWAY = [0, 150, 40, 40], [150, 150, 30, 30]
CAT, DOG = 1, 2


def evaluate(content, detections):
    return evaluate_detections(MemorySource(content), detections)


def half_detected(precision):
    """Return AP if half of the objects are detected first, the others with this precision."""
    return (51 + 50 * precision) / 101


# For each type: the objects, the detections, and AP50 before and after the correction.
CASES = {
    # The dog is detected as a cat: AP of cats rises from 1/2 to 1, that of dogs from 0 to 1.
    "class": (
        [(1, DOG, WHOLE), (2, CAT, WHOLE)],
        [(1, CAT, WHOLE, 0.9), (2, CAT, WHOLE, 0.8)],
        (1 / 4, 1),
    ),
    "localization": ([(1, CAT, WHOLE)], [(1, CAT, IOU_THIRD, 0.9)], (0, 1)),
    # The AP of dogs is 0 before and after.
    "both": (
        [(1, DOG, WHOLE), (2, CAT, WHOLE)],
        [(1, CAT, IOU_THIRD, 0.9), (2, CAT, WHOLE, 0.8)],
        (1 / 4, 1 / 2),
    ),
    "duplicate": (
        [(1, CAT, WHOLE), (2, CAT, WHOLE)],
        [(1, CAT, WHOLE, 0.9), (1, CAT, WHOLE, 0.8), (2, CAT, WHOLE, 0.7)],
        (half_detected(2 / 3), 1),
    ),
    "background": (
        [(1, CAT, WHOLE)],
        [(2, CAT, AWAY, 0.9), (1, CAT, WHOLE, 0.8)],
        (1 / 2, 1),
    ),
    "missed": ([(1, CAT, WHOLE), (2, CAT, WHOLE)], [(1, CAT, WHOLE, 0.9)], (half_detected(0), 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cost_of_an_error_is_the_ap_that_its_correction_gains(name):
    objects, detections, (before, after) = CASES[name]
    evaluated = evaluate(truth(*objects, num_images=2), results(*detections))
    rows = {row["type"]: row for row in error_table(evaluated)}
    assert list(rows) == ["class", "localization", "both", "duplicate", "background", "missed"]
    assert rows[name]["count"] == 1
    assert rows[name]["delta_ap"] == pytest.approx(after - before)
    assert evaluated.evaluation.tide_errors()["ap_base"] == pytest.approx(before)


def test_an_object_with_a_class_or_localization_error_is_not_missed_too():
    """The error is of the object that the detection overlaps most."""
    content = truth(
        (1, CAT, WHOLE), (1, CAT, [100, 100, 60, 60]), (1, DOG, ELSEWHERE), (1, DOG, AWAY)
    )
    detections = results((1, CAT, IOU_THIRD, 0.9), (1, CAT, ELSEWHERE, 0.8))
    rows = {row["type"]: row["count"] for row in error_table(evaluate(content, detections))}
    assert (rows["localization"], rows["class"], rows["missed"]) == (1, 1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_as_many_are_missed_as_hotcoco_counts(seed):
    evaluated = evaluate(*random_case(seed, num_detections=8, crowds=False))
    rows = {row["type"]: row["count"] for row in error_table(evaluated)}
    assert rows["missed"] == evaluated.evaluation.tide_errors()["counts"]["Miss"] > 0


def test_without_objects_no_error_costs_ap():
    rows = error_table(evaluate(truth(), results((1, CAT, WHOLE, 0.9))))
    assert {row["delta_ap"] for row in rows} == {None}
    assert [row["count"] for row in rows] == [0, 0, 0, 0, 1, 0]


def test_crowd_regions_are_not_missed():
    content = truth((1, CAT, WHOLE), crowds=[(1, DOG, ELSEWHERE)])
    assert [row["count"] for row in error_table(evaluate(content, []))] == [0, 0, 0, 0, 0, 1]


def confusion_of(evaluated, threshold):
    return confusion(evaluated, threshold, confusion_matrix(evaluated, threshold))


def test_the_confusion_matrix_of_a_few_detections():
    content = truth(
        (1, CAT, WHOLE),
        (1, DOG, ELSEWHERE),
        (2, DOG, WHOLE),
        (2, DOG, ELSEWHERE),
        num_images=2,
        crowds=[(2, DOG, [110, 0, 90, 90])],
    )
    detections = results(
        (1, CAT, WHOLE, 0.9),
        (1, CAT, WHOLE, 0.8),  # the same cat
        (1, CAT, ELSEWHERE, 0.8),  # a dog
        (2, CAT, WHOLE, 0.7),  # a dog
        (2, DOG, WHOLE, 0.6),  # which is taken
        (2, DOG, [120, 10, 50, 50], 0.6),  # in the crowd region of dogs: does not count
        (2, CAT, [120, 10, 50, 50], 0.6),  # a cat there is background
        (2, DOG, ELSEWHERE, 0.4),  # too low a score
    )
    entry = confusion_of(evaluate(content, detections), 0.5)
    assert entry["categories"] == ["cat", "dog"]
    assert entry["matrix"] == [[1, 0, 0], [2, 0, 1], [2, 1, 0]]
    assert entry["pairs"] == [
        {"object": "dog", "detected_as": "cat", "count": 2, "fraction": 2 / 3}
    ]
    assert (entry["score_threshold"], entry["num_omitted"]) == (0.5, 0)
    everything = confusion_matrix(evaluate(content, detections), None)
    np.testing.assert_array_equal(everything, [[1, 0, 0], [2, 1, 0], [2, 1, 0]])


@pytest.mark.parametrize("threshold", [None, 0.3, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_the_confusion_matrix_is_that_of_hotcoco_without_crowd_regions(seed, threshold):
    evaluated = evaluate(*random_case(seed, crowds=False))
    options = {"max_det": 10**6, "min_score": threshold}
    expected = evaluated.evaluation.confusion_matrix(iou_thr=0.5, **options)["matrix"]
    np.testing.assert_array_equal(confusion_matrix(evaluated, threshold), expected.astype(int))


def test_of_many_categories_the_matrix_has_those_with_the_most_confusions():
    """Category n of 1,000 is detected as its successor if n is a multiple of 50."""
    names = [f"category {n}" for n in range(1, 1001)]
    confused = range(50, 1000, 50)
    detections = [(n, n + 1, WHOLE, 0.9) for n in confused]
    objects = [(n, n, WHOLE) for n in range(1, 1001)]
    evaluated = evaluate(truth(*objects, num_images=1000, names=names), results(*detections))
    entry = confusion_of(evaluated, None)
    assert len(entry["categories"]) == 30
    assert entry["num_omitted"] == 970
    assert {f"category {n}" for n in confused if n < 750} <= set(entry["categories"])
    assert np.shape(entry["matrix"]) == (31, 31)
    assert len(entry["pairs"]) == 19
    assert entry["pairs"][0] == {
        **{"object": "category 50", "detected_as": "category 51", "count": 1, "fraction": 1.0}
    }


def test_a_matrix_without_objects_and_detections():
    entry = confusion_of(evaluate(truth(), []), None)
    assert entry["matrix"] == [[0, 0, 0]] * 3
    assert entry["pairs"] == []
