"""The table of the categories."""

import json

import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis.categories import category_rows
from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.analysis.thresholds import find_thresholds
from retinanet_jax.evaluation.coco_metrics import coco_metrics

BOX, ELSEWHERE, SHIFTED = [0, 0, 100, 100], [120, 120, 60, 60], [40, 0, 100, 100]  # xywh
CAT, DOG, COW, HEN = range(1, 5)
NAMES = ("cat", "dog", "cow", "hen")


def table(content, detections):
    evaluated = evaluate_detections(MemorySource(content), detections)
    return category_rows(evaluated, find_thresholds(evaluated))


def test_the_numbers_of_a_few_categories():
    content = truth(
        *((1, CAT, BOX), (1, CAT, ELSEWHERE), (2, CAT, BOX), (3, CAT, BOX)),
        *((2, DOG, ELSEWHERE), (3, COW, ELSEWHERE)),
        num_images=3,
        names=NAMES,
        crowds=[(3, CAT, ELSEWHERE)],
    )
    detections = results(
        *((1, CAT, BOX, 0.9), (2, CAT, BOX, 0.8), (2, CAT, SHIFTED, 0.7), (3, CAT, BOX, 0.2)),
        *((3, CAT, [130, 130, 20, 20], 0.6), (2, DOG, BOX, 0.5), (3, COW, ELSEWHERE, 0.4)),
    )
    dog, cat, cow, hen = table(content, detections)
    assert [row["name"] for row in (dog, cat, cow, hen)] == ["dog", "cat", "cow", "hen"]
    ap = (51 + 25 * 3 / 4) / 101  # three of four, the last one after a false one
    assert cat == {
        **{"name": "cat", "AP": pytest.approx(ap), "AP50": pytest.approx(ap), "AR": 3 / 4},
        **{"objects": 4, "images": 3, "detections": 5, "missed": 1},
        # F1 is 2/5, 4/6, 4/7 and 6/8.
        **{"threshold": 0.2, "F1": 3 / 4, "precision": 3 / 4, "recall": 3 / 4},
        "worst_error": "localization",
    }
    assert dog == {
        **{"name": "dog", "AP": 0, "AP50": 0, "AR": 0},
        **{"objects": 1, "images": 1, "detections": 1, "missed": 1},
        **{"threshold": None, "F1": 0, "precision": None, "recall": 0, "worst_error": "class"},
    }
    assert (cow["AP"], cow["F1"], cow["worst_error"]) == (pytest.approx(1), 1, None)
    undefined = ("AP", "AP50", "AR", "threshold", "F1", "precision", "recall", "worst_error")
    assert hen == {
        "name": "hen",
        **dict.fromkeys(("objects", "images", "detections", "missed"), 0),
        **dict.fromkeys(undefined),
    }
    json.dumps([dog, cat, cow, hen], allow_nan=False)


def test_the_worst_error_is_the_most_frequent_one_at_the_threshold():
    """Below the threshold are four false detections of background, above it is one duplicate."""
    content = truth((1, CAT, BOX), (2, CAT, BOX), (2, CAT, ELSEWHERE), num_images=6)
    confident = [(1, CAT, BOX, 0.9), (1, CAT, BOX, 0.85), (2, CAT, BOX, 0.8)]
    background = [(n, CAT, ELSEWHERE, 0.1) for n in (3, 4, 5, 6)]
    (cat, _) = table(content, results(*confident, *background))
    assert cat["threshold"] == 0.8
    assert cat["worst_error"] == "duplicate"  # as frequent as the missed cat, and first in order
    (cat, _) = table(content, results(*confident[::2], *background))
    assert cat["worst_error"] == "missed"


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_that_of_pycocotools(seed):
    content, detections = random_case(seed)
    metrics, _ = coco_metrics(content, detections)
    rows = table(content, detections)
    assert {row["name"]: row["AP"] for row in rows} == pytest.approx(metrics["AP_by_category"])
    assert [row["AP"] for row in rows] == sorted(row["AP"] for row in rows)


def test_a_thousand_categories():
    names = [f"category {n}" for n in range(1, 1001)]
    content = truth(*((n, n, BOX) for n in range(1, 1001, 2)), num_images=1000, names=names)
    rows = table(content, results(*((n, n, BOX, 0.9) for n in range(1, 1001, 4))))
    assert [row["AP"] for row in rows[:250]] == [0] * 250
    assert [row["AP"] for row in rows[250:500]] == pytest.approx([1] * 250)
    assert {row["AP"] for row in rows[500:]} == {None}
