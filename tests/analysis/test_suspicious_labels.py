"""Annotations that confident detections contradict."""

import json

import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.analysis.suspicious import suspicious_labels

BOX, ELSEWHERE, SHIFTED = [0, 0, 100, 100], [120, 120, 60, 60], [40, 0, 100, 100]  # xywh
CAT, DOG = 1, 2


def find(content, detections, threshold=0.5):
    return suspicious_labels(evaluate_detections(MemorySource(content), detections), threshold)


def test_a_missing_annotation():
    assert find(truth(), results((1, CAT, ELSEWHERE, 0.9))) == [
        {
            "reason": "missing annotation",
            "image_id": 1,
            "file_name": "1.jpg",
            "category": None,
            "detected_as": "cat",
            "box": [120, 120, 180, 180],
            "object_box": None,
            "score": 0.9,
            "iou": None,
        }
    ]


def test_a_wrong_category():
    (entry,) = find(truth((1, DOG, BOX)), results((1, CAT, [0, 0, 100, 90], 0.9)))
    assert entry == {
        "reason": "wrong category",
        "image_id": 1,
        "file_name": "1.jpg",
        "category": "dog",
        "detected_as": "cat",
        "box": [0, 0, 100, 90],
        "object_box": [0, 0, 100, 100],
        "score": 0.9,
        "iou": pytest.approx(0.9),
    }


def test_an_inaccurate_box():
    (entry,) = find(truth((1, CAT, BOX)), results((1, CAT, SHIFTED, 0.9)))
    assert (entry["reason"], entry["category"]) == ("inaccurate box", "cat")
    assert (entry["box"], entry["object_box"]) == ([40, 0, 140, 100], [0, 0, 100, 100])
    assert entry["iou"] == pytest.approx(60 / 140)


def test_a_duplicate():
    """The second annotation of a cat is missed because the first one is detected; so is a dog."""
    content = truth((1, CAT, BOX), (1, CAT, [0, 0, 100, 90]), (1, DOG, [0, 0, 100, 95]))
    (entry,) = find(content, results((1, CAT, BOX, 0.9)))
    assert (entry["reason"], entry["category"], entry["detected_as"]) == ("duplicate", "cat", "cat")
    assert (entry["box"], entry["object_box"]) == ([0, 0, 100, 100], [0, 0, 100, 90])
    assert (entry["score"], entry["iou"]) == (0.9, pytest.approx(0.9))


def test_a_detection_below_the_threshold_neither_contradicts_nor_detects():
    content = truth((1, DOG, BOX))
    wrong, right = (1, CAT, BOX, 0.9), (1, DOG, BOX, 0.3)
    assert [e["reason"] for e in find(content, results(wrong, right))] == ["wrong category"]
    assert find(content, results(wrong, right), threshold=0.3) == []
    assert find(content, results(wrong, right), threshold=0.95) == []
    assert find(content, results(wrong, right), threshold=None) == []


def test_an_object_that_is_detected_is_not_suspicious():
    content = truth((1, CAT, BOX), (1, DOG, ELSEWHERE))
    detections = results(
        (1, CAT, BOX, 0.9), (1, CAT, SHIFTED, 0.8), (1, DOG, BOX, 0.7), (1, DOG, ELSEWHERE, 0.6)
    )
    assert find(content, detections) == []


def test_crowd_regions_are_not_suspicious():
    content = truth(crowds=[(1, CAT, BOX)])
    assert find(content, results((1, CAT, [10, 10, 50, 50], 0.9))) == []
    content = truth((1, CAT, BOX), (1, DOG, ELSEWHERE), crowds=[(1, CAT, BOX)])
    assert find(content, results((1, DOG, ELSEWHERE, 0.9))) == []  # the cat is no duplicate of it


def test_a_small_overlap_with_a_missed_object_is_no_wrong_category():
    """The cat is on a detected dog; it overlaps another one by less than .5."""
    content = truth((1, DOG, BOX), (1, DOG, SHIFTED))
    detections = results((1, DOG, BOX, 0.9), (1, CAT, BOX, 0.8))
    assert find(content, detections) == []


def test_an_object_is_named_once_and_the_highest_score_is_first():
    content = truth((1, DOG, BOX), num_images=2)
    detections = results(
        (1, CAT, BOX, 0.7), (1, CAT, [0, 0, 100, 90], 0.8), (2, CAT, ELSEWHERE, 0.75)
    )
    entries = find(content, detections)
    assert [(e["reason"], e["score"]) for e in entries] == [
        ("wrong category", 0.8),
        ("missing annotation", 0.75),
    ]


def test_at_most_200_are_returned():
    detections = [(n, CAT, ELSEWHERE, 0.5 + n / 1000) for n in range(1, 251)]
    entries = find(truth(num_images=250), results(*detections))
    assert [entry["image_id"] for entry in entries] == list(range(250, 50, -1))
    json.dumps(entries, allow_nan=False)


@pytest.mark.parametrize("seed", range(5))
def test_missing_annotations_are_those_of_hotcoco(seed):
    content, detections = random_case(seed, crowds=False)
    evaluated = evaluate_detections(MemorySource(content), detections)
    flagged = evaluated.evaluation.image_diagnostics(0.5, 0.5)["label_errors"]
    expected = [e["dt_score"] for e in flagged if e["type"] == "missing_annotation"]
    entries = suspicious_labels(evaluated, 0.5)
    scores = [e["score"] for e in entries if e["reason"] == "missing annotation"]
    assert scores == expected
    assert len(scores) > 5


def test_a_detection_in_a_crowd_region_of_its_category_contradicts_nothing():
    """Nor does hotcoco flag it."""
    content = truth(crowds=[(1, CAT, BOX)])
    inside = results((1, CAT, [10, 10, 50, 50], 0.9), (1, DOG, [10, 10, 50, 50], 0.8))
    assert [entry["detected_as"] for entry in find(content, inside)] == ["dog"]
