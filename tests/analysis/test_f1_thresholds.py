"""The thresholds of the highest F1, and precision, recall and F1 at every threshold."""

import numpy as np
import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis.evaluated import IGNORED, NONE, evaluate_detections
from retinanet_jax.analysis.thresholds import (
    OperatingPoint,
    find_thresholds,
    threshold_curve,
    thresholds_to_store,
)

BOX, ELSEWHERE = [0, 0, 100, 100], [120, 120, 60, 60]  # xywh
CAT, DOG = 1, 2


def evaluate(content, detections):
    return evaluate_detections(MemorySource(content), detections)


def cats(*correct_or_not, num_objects=4):
    """Return detections of cats with scores .9, .8, ..., each on an object or on background."""
    content = truth(*((n, CAT, BOX) for n in range(1, num_objects + 1)), num_images=9)
    scores = [0.9 - 0.1 * i for i in range(len(correct_or_not))]
    boxes = [BOX if correct else ELSEWHERE for correct in correct_or_not]
    detections = [(n, CAT, box, s) for n, (box, s) in enumerate(zip(boxes, scores, strict=True), 1)]
    return evaluate(content, results(*detections))


def test_the_threshold_of_the_highest_f1():
    """F1 is 2/5, 2/6, 4/7, 6/8, 6/9 at the five scores."""
    point = find_thresholds(cats(True, False, True, True, False)).categories[0]
    assert point == pytest.approx((0.6, 3 / 4, 3 / 4, 3 / 4))
    assert find_thresholds(cats(True, False, True, True, False)).overall == point


def test_of_equal_f1_the_highest_threshold_is_chosen():
    """F1 is 2/3 for one correct of one detection, and for two of four."""
    content = truth((1, CAT, BOX), (4, CAT, BOX), num_images=4)
    detections = results(*((n, CAT, BOX, 1 - n / 10) for n in (1, 2, 3, 4)))
    point = find_thresholds(evaluate(content, detections)).categories[0]
    assert point == pytest.approx((0.9, 2 / 3, 1, 1 / 2))


def test_detections_of_equal_score_are_all_left_out_or_none():
    content = truth((1, CAT, BOX), (2, CAT, BOX), num_images=4)
    scores = {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.4}
    detections = [(n, CAT, BOX, score) for n, score in scores.items()]
    point = find_thresholds(evaluate(content, results(*detections))).categories[0]
    assert point == pytest.approx((0.5, 4 / 5, 2 / 3, 1))


def test_categories_without_objects_or_without_correct_detections_have_no_threshold():
    content = truth((1, CAT, BOX), (1, 3, BOX), names=("cat", "dog", "cow", "hen"))
    detections = results((1, CAT, ELSEWHERE, 0.9), (1, DOG, ELSEWHERE, 0.9))
    thresholds = find_thresholds(evaluate(content, detections))
    nothing_correct = OperatingPoint(threshold=None, F1=0.0, precision=None, recall=0.0)
    no_objects = OperatingPoint(None, None, None, None)
    assert thresholds.categories == (nothing_correct, no_objects, nothing_correct, no_objects)
    assert thresholds.overall == nothing_correct
    assert find_thresholds(evaluate(truth(), [])).overall == no_objects


def test_crowd_regions_and_detections_in_them_do_not_count():
    content = truth((1, CAT, BOX), crowds=[(1, CAT, ELSEWHERE)])
    detections = results((1, CAT, [130, 130, 20, 20], 0.9), (1, CAT, BOX, 0.8))
    assert find_thresholds(evaluate(content, detections)).categories[0] == (0.8, 1, 1, 1)


def brute_force(score, is_correct, num_objects):
    """Return every (F1, threshold, precision, recall) of a list of detections."""
    for threshold in set(score.tolist()):
        counted = score >= threshold
        correct = int((is_correct & counted).sum())
        f1 = 2 * correct / (int(counted.sum()) + num_objects)
        yield f1, threshold, correct / int(counted.sum()), correct / num_objects


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_has_a_higher_f1(seed):
    evaluated = evaluate(*random_case(seed))
    columns, objects = evaluated.detections, evaluated.objects
    thresholds = find_thresholds(evaluated)
    for k, point in enumerate((*thresholds.categories, thresholds.overall)):
        is_overall = k == len(thresholds.categories)
        mask = (columns.error != IGNORED) & (is_overall | (columns.class_index == k))
        num_objects = int(((is_overall | (objects.class_index == k)) & ~objects.is_crowd).sum())
        every = brute_force(columns.score[mask], columns.error[mask] == NONE, num_objects)
        f1, threshold, precision, recall = max(every)
        assert point == (threshold, f1, precision, recall)


def test_the_curve_has_precision_recall_and_f1_of_101_thresholds():
    evaluated = cats(True, False, True, False)
    curve = threshold_curve(evaluated)
    assert {name: len(values) for name, values in curve.items()} == dict.fromkeys(
        ("threshold", "precision", "recall", "F1"), 101
    )
    at = {round(threshold, 2): n for n, threshold in enumerate(curve["threshold"])}

    def values(threshold):
        return [curve[name][at[threshold]] for name in ("precision", "recall", "F1")]

    assert values(0) == [1 / 2, 1 / 2, 1 / 2]
    assert values(0.65) == pytest.approx([2 / 3, 1 / 2, 4 / 7])
    assert values(0.85) == pytest.approx([1, 1 / 4, 2 / 5])
    assert values(1) == [None, 0, 0]
    assert max(curve["F1"]) <= find_thresholds(evaluated).overall.F1


def test_the_curve_without_objects_or_without_detections():
    curve = threshold_curve(evaluate(truth(), results((1, CAT, BOX, 0.5))))
    assert curve["precision"][:51] == [0] * 51
    assert set(curve["recall"]) == set(curve["F1"]) == {None}
    curve = threshold_curve(evaluate(truth((1, CAT, BOX)), []))
    assert set(curve["precision"]) == {None}
    assert set(curve["recall"]) == set(curve["F1"]) == {0}


def test_stored_thresholds_return_just_the_detections_that_count():
    """A checkpoint's threshold is exceeded. Categories without one have that of all."""
    content = truth(*((n, CAT, BOX) for n in range(1, 4)), num_images=4, names=("cat", "dog"))
    scores = [np.float32(score).item() for score in (0.7, 0.3, 0.2)]
    boxes = (BOX, BOX, ELSEWHERE)
    detections = [(n, CAT, box, s) for n, box, s in zip((1, 2, 3), boxes, scores, strict=True)]
    evaluated = evaluate(content, results(*detections))
    stored = thresholds_to_store(find_thresholds(evaluated), evaluated.source.categories)
    assert list(stored.categories) == ["cat"]
    assert [score > stored.categories["cat"] for score in scores] == [True, True, False]
    assert stored.categories["cat"] == stored.overall == pytest.approx(0.3)
    assert stored.by_class(evaluated.source.categories) == (stored.overall, stored.overall)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_stored_thresholds_of_extreme_scores_are_valid(score):
    evaluated = evaluate(truth((1, CAT, BOX)), results((1, CAT, BOX, score)))
    stored = thresholds_to_store(find_thresholds(evaluated), evaluated.source.categories)
    assert 0 <= stored.overall < 1


def test_without_a_correct_detection_there_is_nothing_to_store():
    evaluated = evaluate(truth((1, CAT, BOX)), results((1, CAT, ELSEWHERE, 0.5)))
    with pytest.raises(ValueError, match="no detection is correct, so that there is no score"):
        thresholds_to_store(find_thresholds(evaluated), evaluated.source.categories)
