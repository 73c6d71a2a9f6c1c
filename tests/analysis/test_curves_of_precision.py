"""Precision-recall curves and calibration."""

import json

import numpy as np
import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis.curves import calibration, precision_recall_curves
from retinanet_jax.analysis.evaluated import IGNORED, NONE, evaluate_detections
from retinanet_jax.analysis.thresholds import find_thresholds
from retinanet_jax.evaluation.coco_metrics import coco_metrics

BOX, ELSEWHERE = [0, 0, 100, 100], [120, 120, 60, 60]  # xywh
CAT, DOG = 1, 2


def evaluate(content, detections):
    return evaluate_detections(MemorySource(content), detections)


def curves(evaluated):
    return precision_recall_curves(evaluated, find_thresholds(evaluated))


def test_the_curve_of_a_few_detections():
    """One of two cats is first, the other after a false one; the dog is missed; there is no cow."""
    objects = (1, CAT, BOX), (2, CAT, BOX), (1, DOG, BOX)
    content = truth(*objects, num_images=2, names=("cat", "dog", "cow"))
    detections = results((1, CAT, BOX, 0.9), (1, CAT, ELSEWHERE, 0.8), (2, CAT, BOX, 0.7))
    overall, dog, cat = curves(evaluate(content, detections))
    assert [overall["category"], dog["category"], cat["category"]] == [None, "dog", "cat"]
    assert cat["recall"] == pytest.approx([i / 100 for i in range(101)])
    assert cat["precision"] == pytest.approx([1] * 51 + [2 / 3] * 50)
    assert dog["precision"] == [0] * 101
    assert overall["precision"] == pytest.approx([1 / 2] * 51 + [1 / 3] * 50)
    thresholds = [entry["f1_threshold"] for entry in (overall, dog, cat)]
    assert thresholds == [0.7, None, 0.7]


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_precision_is_ap50(seed):
    content, detections = random_case(seed)
    overall, *_ = curves(evaluate(content, detections))
    expected = coco_metrics(content, detections)[0]["AP50"]
    assert np.mean(overall["precision"]) == pytest.approx(expected, abs=1e-12)


def test_the_thirty_categories_of_the_lowest_ap_have_curves():
    """Category k has k correct detections after 50 - k false ones."""
    pairs = [(n, k) for k in range(1, 51) for n in range(1, 51)]
    detections = [(n, k, BOX if n > 50 - k else ELSEWHERE, 1 - n / 100) for n, k in pairs]
    content = truth(
        *((n, k, BOX) for n, k in pairs),
        num_images=50,
        names=[f"category {k}" for k in range(1, 51)],
    )
    evaluated = evaluate(content, results(*detections))
    overall, *others = curves(evaluated)
    assert overall["category"] is None
    assert [entry["category"] for entry in others] == [f"category {k}" for k in range(1, 31)]


def test_without_objects_there_are_no_curves():
    assert curves(evaluate(truth(), results((1, CAT, BOX, 0.5)))) == []


def test_the_calibration_of_a_few_detections():
    """Of two with a mean score of .85 one is correct, and the one with .25 is."""
    content = truth((1, CAT, BOX), (1, DOG, BOX))
    detections = [(1, CAT, BOX, 0.88), (1, CAT, ELSEWHERE, 0.82), (1, DOG, BOX, 0.25)]
    entry = calibration(evaluate(content, results(*detections)))
    assert entry["ece"] == pytest.approx((2 * 0.35 + 0.75) / 3)
    assert entry["mce"] == pytest.approx(0.75)
    assert entry["categories"] == {"cat": pytest.approx(0.35), "dog": pytest.approx(0.75)}
    assert len(entry["bins"]) == 10
    assert entry["bins"][8] == {
        **{"lower": pytest.approx(0.8), "upper": pytest.approx(0.9), "count": 2},
        **{"confidence": pytest.approx(0.85), "accuracy": 0.5},
    }
    assert entry["bins"][5] == {
        **{"lower": 0.5, "upper": pytest.approx(0.6), "count": 0},
        **{"confidence": None, "accuracy": None},
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_its_definition(seed):
    evaluated = evaluate(*random_case(seed))
    columns = evaluated.detections
    counted = columns.error != IGNORED
    score, is_correct = columns.score[counted], columns.error[counted] == NONE
    index = np.minimum((score * 10).astype(int), 9)
    gaps = [
        (np.sum(index == b), abs(score[index == b].mean() - is_correct[index == b].mean()))
        for b in np.unique(index)
    ]
    entry = calibration(evaluated)
    assert entry["ece"] == pytest.approx(sum(n * gap for n, gap in gaps) / len(score))
    assert entry["mce"] == pytest.approx(max(gap for _, gap in gaps))
    assert sum(b["count"] for b in entry["bins"]) == len(score)


def test_the_calibration_without_detections_is_undefined():
    entry = calibration(evaluate(truth((1, CAT, BOX)), []))
    assert (entry["ece"], entry["mce"]) == (None, None)
    assert {b["accuracy"] for b in entry["bins"]} == {None}
    assert entry["categories"] == {"cat": None, "dog": None}
    json.dumps(entry, allow_nan=False)
