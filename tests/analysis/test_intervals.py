"""Confidence intervals of AP: a bootstrap of the images."""

import json

import numpy as np
import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis.evaluated import evaluate_detections, hotcoco_api
from retinanet_jax.analysis.intervals import (
    METRICS,
    compare_detectors,
    confidence_intervals,
    image_weights,
    rank,
    sample_metrics,
    weighted_category_metrics,
)
from retinanet_jax.evaluation.coco_metrics import coco_metrics

BOX, ELSEWHERE = [0, 0, 100, 100], [120, 120, 60, 60]  # xywh


def evaluate(content, detections):
    return evaluate_detections(MemorySource(content), detections)


def repeated(content, detections, images):
    """Return the dataset of some images, which may be repeated, with their detections."""
    parts = {"images": [], "annotations": []}
    repeated_detections = []
    for new_id, image_id in enumerate(images, 1):
        parts["images"].append({**content["images"][image_id - 1], "id": new_id})
        parts["annotations"] += [
            {**entry, "image_id": new_id}
            for entry in content["annotations"]
            if entry["image_id"] == image_id
        ]
        repeated_detections += [
            {**entry, "image_id": new_id} for entry in detections if entry["image_id"] == image_id
        ]
    for number, entry in enumerate(parts["annotations"], 1):
        entry["id"] = number
    return {**content, **parts}, repeated_detections


def reference(content, detections, images):
    """Return METRICS of some images by hotcoco, which computes the same numbers as pycocotools."""
    metrics, _ = coco_metrics(*repeated(content, detections, images), "hotcoco")
    return [np.nan if metrics[name] is None else metrics[name] for name in METRICS]


@pytest.mark.parametrize("seed", range(4))
def test_an_image_that_is_twice_in_a_sample_counts_twice(seed):
    content, detections = random_case(seed, num_images=9, num_categories=4)
    ranking = rank(evaluate(content, detections))
    for draw in range(6):
        images = np.random.default_rng(draw).integers(1, 10, size=9 - draw)
        weights = np.bincount(images - 1, minlength=9)
        expected = reference(content, detections, np.sort(images).tolist())
        np.testing.assert_allclose(sample_metrics(ranking, weights), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_each_image_once_gives_the_ap_of_pycocotools_in_every_category(seed):
    content, detections = random_case(seed)
    evaluated = evaluate(content, detections)
    ap, recall = weighted_category_metrics(rank(evaluated), np.ones(12, np.int64))
    curves = evaluated.evaluation.eval
    np.testing.assert_allclose(ap, curves["precision"][..., 0, -1].mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(recall, curves["recall"][..., 0, -1], atol=1e-12)
    metrics, _ = coco_metrics(content, detections)
    np.testing.assert_allclose(
        list(metrics["AP_by_category"].values()), ap.mean(axis=0), atol=1e-12
    )


def test_equal_scores_are_ranked_in_the_order_of_the_image_ids():
    content = truth((1, 1, BOX), (2, 1, BOX), (3, 1, BOX), num_images=4)
    detections = results(*((n, 1, BOX, 0.5) for n in (4, 2, 3, 1)))
    for ids in ((1, 2, 3, 4), (9, 8, 7, 6)):
        renamed = dict(enumerate(ids, 1))
        images = [{**entry, "id": renamed[entry["id"]]} for entry in content["images"]]
        annotations, moved = (
            [{**entry, "image_id": renamed[entry["image_id"]]} for entry in entries]
            for entries in (content["annotations"], detections)
        )
        given = {**content, "images": images, "annotations": annotations}
        ap = sample_metrics(rank(evaluate(given, moved)), np.ones(4, np.int64))[0]
        assert ap == pytest.approx(coco_metrics(given, moved)[0]["AP"], abs=1e-12)


def test_the_interval_is_that_of_a_bootstrap_of_the_images():
    """The samples are weights here again, and each is evaluated as a dataset of its own."""
    content, detections = random_case(7, num_images=8)
    rng = np.random.default_rng(3)
    samples = [
        reference(content, detections, np.sort(rng.integers(8, size=8) + 1).tolist())
        for _ in range(40)
    ]
    metrics = reference(content, detections, range(1, 9))
    intervals = confidence_intervals(evaluate(content, detections), num_samples=40, seed=3)
    assert list(intervals) == list(METRICS)
    for name, value, column in zip(METRICS, metrics, np.transpose(samples), strict=True):
        too_high = np.quantile(column, [0.975, 0.025]) - value
        assert intervals[name] == pytest.approx(value - too_high, abs=1e-12)


def test_an_interval_is_within_0_and_1():
    """Nine of ten objects are detected, in some samples seven: a recall of .9 + .2 is cut."""
    content = truth(*((n, 1, BOX) for n in range(1, 11)), num_images=10)
    detections = results(*((n, 1, BOX, 0.9) for n in range(1, 10)))
    low, high = confidence_intervals(evaluate(content, detections))["AR100"]
    assert 0.7 < low < 0.9
    assert high == 1


def test_a_seed_determines_the_interval():
    evaluated = evaluate(*random_case(2))
    first, second, other = (
        confidence_intervals(evaluated, num_samples=30, seed=seed) for seed in (0, 0, 1)
    )
    assert first == second != other


def test_the_interval_of_a_recall_is_that_of_a_proportion():
    """Half of 400 images have their object detected: a standard error of .025."""
    content = truth(*((n, 1, BOX) for n in range(1, 401)), num_images=400, names=["cat"])
    evaluated = evaluate(content, results(*((n, 1, BOX, 0.9) for n in range(1, 201))))
    low, high = confidence_intervals(evaluated, num_samples=1000)["AR100"]
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.006)
    # hotcoco counts an image once that is several times in a sample: its interval is too narrow.
    nothing = evaluate(content, [])
    compare = hotcoco_api().compare
    comparison = compare(nothing.evaluation, evaluated.evaluation, n_bootstrap=1000, seed=0)
    entry = comparison["ci"]["AR100"]
    assert 0.7 < (entry["upper"] - entry["lower"]) / (high - low) < 0.85


def test_the_difference_is_of_the_same_samples():
    content, detections = random_case(5, num_images=8)
    worse = [{**entry, "bbox": [v + 4 for v in entry["bbox"]]} for entry in detections]
    rng = np.random.default_rng(3)
    samples = []
    for _ in range(40):
        images = np.sort(rng.integers(8, size=8) + 1).tolist()
        pair = [reference(content, entries, images) for entries in (detections, worse)]
        samples.append(np.subtract(*pair))
    both = evaluate(content, detections), evaluate(content, worse)
    comparison = compare_detectors(*both, "worse", num_samples=40, seed=3)
    assert comparison["other"] == "worse"
    first, second = (coco_metrics(content, entries)[0] for entries in (detections, worse))
    for name, values in zip(METRICS, np.transpose(samples), strict=True):
        entry, difference = comparison["metrics"][name], first[name] - second[name]
        corrected = 2 * difference - values
        low, high = np.quantile(corrected, [0.025, 0.975])
        positive = np.mean(corrected > 0) + np.mean(corrected == 0) / 2
        expected = {"difference": difference, "low": low, "high": high, "probability": positive}
        assert entry == pytest.approx(expected, abs=1e-12)
    differences = {entry["name"]: entry["difference"] for entry in comparison["categories"]}
    expected = {
        name: ap - second["AP_by_category"][name] for name, ap in first["AP_by_category"].items()
    }
    assert differences == pytest.approx(expected, abs=1e-12)
    assert list(differences.values()) == sorted(differences.values())


def test_a_detector_does_not_differ_from_itself():
    evaluated = evaluate(*random_case(6))
    comparison = compare_detectors(evaluated, evaluated, "itself", num_samples=20)
    for entry in comparison["metrics"].values():
        assert entry == {"difference": 0, "low": 0, "high": 0, "probability": 0.5}
    assert {entry["difference"] for entry in comparison["categories"]} == {0}


def test_a_category_without_objects_has_no_difference():
    evaluated = evaluate(truth((1, 1, BOX), (2, 1, BOX), num_images=2), [])
    comparison = compare_detectors(evaluated, evaluated, "itself", num_samples=5)
    assert comparison["categories"] == [
        {"name": "cat", "difference": 0},
        {"name": "dog", "difference": None},
    ]


def test_what_is_undefined_has_no_interval():
    nothing = evaluate(truth(num_images=5), results((1, 1, BOX, 0.5)))
    assert confidence_intervals(nothing, num_samples=5) == dict.fromkeys(METRICS)
    comparison = compare_detectors(nothing, nothing, "itself", num_samples=5)
    undefined = dict.fromkeys(("difference", "low", "high", "probability"))
    assert comparison["metrics"]["AP"] == undefined
    one_image = evaluate(truth((1, 1, BOX)), results((1, 1, BOX, 0.5)))
    assert confidence_intervals(one_image) == dict.fromkeys(METRICS)
    entry = compare_detectors(one_image, one_image, "itself")["metrics"]["AP"]
    assert entry == {**undefined, "difference": 0}
    json.dumps(comparison, allow_nan=False)


def test_samples_without_any_object_do_not_count():
    """Four of five images have no objects, so that many samples have none."""
    content, detections = truth((1, 1, BOX), num_images=5), results((1, 1, BOX, 0.9))
    interval = confidence_intervals(evaluate(content, detections), num_samples=50)["AP"]
    assert interval == pytest.approx([1, 1])
    weights = np.array(list(image_weights(5, 50, 0)))
    assert (weights.sum(axis=1) == 5).all()
    assert (weights[:, 0] == 0).any()


@pytest.mark.parametrize("change", ["images", "categories", "objects"])
def test_only_detections_of_the_same_dataset_are_compared(change):
    content, detections = random_case(1)
    other, _ = random_case(1)
    if change == "images":
        other["images"].append({**other["images"][0], "id": 99, "file_name": "99.jpg"})
    elif change == "categories":
        other["categories"][0]["name"] = "cow"
    else:
        other["annotations"][0]["bbox"][0] += 1
    pair = evaluate(content, detections), evaluate(other, detections)
    with pytest.raises(ValueError, match=r"^best was evaluated on memory, which is not the same"):
        compare_detectors(*pair, "best", num_samples=5)
