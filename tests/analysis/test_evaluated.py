"""The columns of detections and objects: COCO's matching, and TIDE's types of errors."""

import collections
import contextlib
import io
import json
import sys

import numpy as np
import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis.evaluated import (
    BACKGROUND,
    DUPLICATE,
    ERRORS,
    IGNORED,
    LOCALIZATION,
    NONE,
    evaluate_detections,
    twelve_metrics,
)
from retinanet_jax.evaluation.coco_metrics import METRICS, coco_metrics, renumber

# On an object [0, 0, 100, 100], in xywh.
WHOLE, IOU_THIRD, IOU_09 = [0, 0, 100, 100], [50, 0, 100, 100], [0, 0, 100, 90]


def evaluate(content, detections):
    return evaluate_detections(MemorySource(content), detections)


def errors(evaluated):
    """Return the name of each detection's error, in the order of descending score."""
    order = np.argsort(-evaluated.detections.score)
    return [ERRORS[k] for k in evaluated.detections.error[order]]


@pytest.fixture(scope="module")
def cocoapi(test_data):
    """Ground truth and results of cocoapi: 100 images of val2014 and artificial detections."""
    folder = test_data / "cocoapi"
    return (
        json.loads((folder / "instances_val2014_100.json").read_text()),
        json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text()),
    )


def test_each_detection_has_the_error_of_its_definition():
    content = truth(
        (1, 1, WHOLE),
        (1, 2, [0, 110, 80, 80]),
        crowds=[(1, 2, [110, 0, 90, 90])],
    )
    evaluated = evaluate(
        content,
        results(
            (1, 1, WHOLE, 0.9),  # detects the cat
            (1, 1, IOU_09, 0.8),  # the same one again
            (1, 1, IOU_THIRD, 0.7),  # a third of it
            (1, 2, WHOLE, 0.6),  # of the wrong category
            (1, 2, IOU_THIRD, 0.5),  # of the wrong category, and a third of it
            (1, 2, [150, 150, 30, 30], 0.4),  # nothing is here
            (1, 2, [120, 10, 50, 50], 0.3),  # in the crowd region of dogs
        ),
    )
    detections, objects = evaluated.detections, evaluated.objects
    assert errors(evaluated) == [
        *("none", "duplicate", "localization", "class", "both", "background", "ignored")
    ]
    np.testing.assert_array_equal(detections.object, [0, -1, -1, -1, -1, -1, 2])
    np.testing.assert_array_equal(detections.nearest, [0, 0, 0, 0, 0, -1, -1])
    np.testing.assert_allclose(detections.nearest_iou, [1, 0.9, 1 / 3, 1, 1 / 3, 0, 0])
    np.testing.assert_array_equal(detections.box[2], [0, 50, 100, 150])  # yxyx
    np.testing.assert_array_equal(objects.detection, [0, -1, -1])
    np.testing.assert_array_equal(objects.nearest_iou, [1, 0, 1])  # all of it is in the crowd
    np.testing.assert_array_equal(objects.is_crowd, [False, False, True])


@pytest.mark.parametrize(
    ("width", "error"), [(9.9, BACKGROUND), (10, LOCALIZATION), (50, NONE), (49.9, LOCALIZATION)]
)
def test_the_bounds_of_the_overlap_belong_to_the_better_error(width, error):
    """The IoU is the width in percent: .1 is no background, and .5 detects the object."""
    evaluated = evaluate(truth((1, 1, WHOLE)), results((1, 1, [0, 0, width, 100], 0.5)))
    assert evaluated.detections.error.tolist() == [error]


def test_an_overlap_of_a_half_with_a_detected_object_is_a_localization_error():
    """As in TIDE: a duplicate overlaps the object by more than the threshold."""
    for width, error in ((50, LOCALIZATION), (50.1, DUPLICATE)):
        detections = results((1, 1, WHOLE, 0.9), (1, 1, [0, 0, width, 100], 0.5))
        evaluated = evaluate(truth((1, 1, WHOLE)), detections)
        assert evaluated.detections.error.tolist() == [NONE, error]


def reference_matches(content, detections):
    """Return pycocotools' matches at IoU .5: detection -> object, and the ignored detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content, detections = renumber(content, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = content
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(detections), "bbox")
        evaluation.evaluate()
    matches, ignored = {}, set()
    for entry in evaluation.evalImgs:
        if entry is not None and entry["aRng"] == evaluation.params.areaRng[0]:
            for k, detection in enumerate(entry["dtIds"]):
                if entry["dtMatches"][0, k]:
                    matches[detection] = int(entry["dtMatches"][0, k])
                if entry["dtIgnore"][0, k]:
                    ignored.add(detection)
    return matches, ignored


def check_matches(content, detections):
    evaluated = evaluate(content, detections)
    matches, ignored = reference_matches(evaluated.source.ground_truth(), detections)
    columns = evaluated.detections
    numbers = collections.defaultdict(list)  # of equal detections, in the order of the results
    for number, r in enumerate(detections, 1):
        x, y, width, height = r["bbox"]
        box = y, x, y + height, x + width
        numbers[r["image_id"], r["category_id"], r["score"], *np.round(box, 6)].append(number)
    ids = [
        numbers[
            evaluated.source.image_ids[image],
            evaluated.source.categories[k].id,
            score,
            *np.round(box, 6),
        ].pop(0)
        for image, k, score, box in zip(
            columns.image, columns.class_index, columns.score, columns.box, strict=True
        )
    ]
    assert len(ids) == len(detections)
    matched = {n: int(o) + 1 for n, o in zip(ids, columns.object, strict=True) if o >= 0}
    assert matched == matches
    assert {n for n, e in zip(ids, columns.error, strict=True) if e == IGNORED} == ignored
    detected = {o: n for n, o in matches.items() if n not in ignored}
    for index, detection in enumerate(evaluated.objects.detection):
        assert (detection >= 0) == (index + 1 in detected)
        assert detection < 0 or ids[detection] == detected[index + 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_matches_are_those_of_pycocotools(seed):
    check_matches(*random_case(seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_matches_are_those_of_pycocotools_if_overlaps_and_scores_are_equal(seed):
    """Of equal scores the first detection matches, and of equal overlaps the last object."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        table = np.column_stack([rng.integers(1, 3, (count, 2)), rng.integers(0, 3, (count, 2))])
        return [(int(i), int(k), [int(x) * 10, int(y) * 10, 40, 40]) for i, k, x, y in table]

    content = truth(*boxes(30), num_images=2, crowds=boxes(3))
    scores = rng.choice([0.25, 0.5], 60).tolist()
    check_matches(content, results(*((*box, s) for box, s in zip(boxes(60), scores, strict=True))))


def test_the_matches_of_cocoapi_are_those_of_pycocotools(cocoapi):
    check_matches(*cocoapi)


def counts(evaluated):
    return np.bincount(evaluated.detections.error, minlength=len(ERRORS))[1:6].tolist()


def hotcoco_counts(evaluated):
    tide = evaluated.evaluation.tide_errors()["counts"]
    return [tide[name] for name in ("Cls", "Loc", "Both", "Dupe", "Bkg")]


@pytest.mark.parametrize("seed", range(5))
def test_the_errors_are_as_many_as_hotcoco_counts(seed):
    evaluated = evaluate(*random_case(seed, crowds=False))
    assert counts(evaluated) == hotcoco_counts(evaluated)
    assert min(counts(evaluated)) > 0


def test_the_errors_of_cocoapi_are_as_many_as_hotcoco_counts(cocoapi):
    evaluated = evaluate(*cocoapi)
    assert counts(evaluated) == hotcoco_counts(evaluated) == [83, 1, 0, 1, 0]


def test_an_overlap_with_a_crowd_region_is_no_localization_error():
    """A crowd region has no box that a detection could fit better; hotcoco counts it as one."""
    content = truth((1, 1, [0, 150, 40, 40]), crowds=[(1, 1, WHOLE)])
    evaluated = evaluate(content, results((1, 1, [70, 0, 100, 100], 0.9)))  # .3 is inside
    assert evaluated.detections.error.tolist() == [BACKGROUND]
    assert hotcoco_counts(evaluated) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_the_metrics_are_those_of_pycocotools(seed):
    content, detections = random_case(seed)
    expected, _ = coco_metrics(content, detections)
    metrics = twelve_metrics(evaluate(content, detections))
    assert list(metrics) == list(METRICS)
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], abs=1e-12), name


def test_the_metrics_of_cocoapi_are_those_of_pycocotools(cocoapi):
    expected, _ = coco_metrics(*cocoapi)
    metrics = twelve_metrics(evaluate(*cocoapi))
    assert metrics == pytest.approx({name: expected[name] for name in METRICS}, abs=1e-12)


@pytest.mark.parametrize("of", [lambda n: -7 * n, lambda n: 2**64 + 5 * n, lambda n: 13 * n % 31])
def test_the_ids_change_nothing(of):
    """They may be negative, larger than 64 bits, and in another order than the images."""
    content, detections = random_case(3)
    before = evaluate(content, detections)
    for entry in (*content["images"], *content["categories"]):
        entry["id"] = of(entry["id"])
    for entry in (*content["annotations"], *detections):
        entry["image_id"], entry["category_id"] = of(entry["image_id"]), of(entry["category_id"])
    after = evaluate(content, detections)
    assert after.source.image_ids[0] == of(1)
    assert twelve_metrics(after) == pytest.approx(twelve_metrics(before), abs=1e-12)
    for field in ("image", "box", "score", "object", "error", "nearest", "nearest_iou"):
        np.testing.assert_array_equal(
            getattr(after.detections, field), getattr(before.detections, field)
        )
    np.testing.assert_array_equal(after.objects.detection, before.objects.detection)


def test_the_order_of_the_results_changes_nothing():
    content, detections = random_case(4)
    before = evaluate(content, detections).detections
    after = evaluate(content, detections[::-1]).detections
    for expected, column in zip(before, after, strict=True):
        np.testing.assert_array_equal(column, expected)
    assert (np.diff(before.image) >= 0).all()
    for image in np.unique(before.image):
        assert (np.diff(before.score[before.image == image]) <= 0).all()


def test_a_hundred_detections_of_a_category_in_an_image_count():
    """Of each category, those of the highest scores, as in COCO."""
    cats = [(1, 1, [i % 10, 0, 30, 30], 0.9 - i / 1000) for i in range(130)]
    dogs = [(1, 2, [i % 10, 0, 30, 30], 0.5 - i / 1000) for i in range(70)]
    evaluated = evaluate(truth((1, 1, [190, 190, 9, 9])), results(*dogs, *cats))
    columns = evaluated.detections
    assert np.bincount(columns.class_index).tolist() == [100, 70]
    assert columns.score[columns.class_index == 0].min() == pytest.approx(0.9 - 99 / 1000)


def test_nothing_to_compare():
    """Without detections everything is missed; without objects everything is background."""
    content = truth((1, 1, WHOLE), (2, 2, WHOLE), num_images=3)
    evaluated = evaluate(content, [])
    assert len(evaluated.detections.score) == 0
    assert evaluated.objects.detection.tolist() == [-1, -1]
    assert twelve_metrics(evaluated)["AP"] == 0
    evaluated = evaluate(truth(), results((1, 1, WHOLE, 0.5)))
    assert evaluated.detections.error.tolist() == [BACKGROUND]
    assert len(evaluated.objects.area) == 0
    assert twelve_metrics(evaluated) == dict.fromkeys(METRICS)
    evaluated = evaluate(truth(), [])
    assert twelve_metrics(evaluated) == dict.fromkeys(METRICS)


@pytest.mark.parametrize("name", ["\udcff", "two\nlines", "<b>", "x" * 10_000])
def test_the_name_of_a_category_may_be_any_text(name):
    """The first one is no valid Unicode, which hotcoco rejects."""
    content, detections = truth((1, 1, WHOLE), names=[name]), results((1, 1, WHOLE, 0.5))
    assert twelve_metrics(evaluate(content, detections))["AP"] == pytest.approx(1)
    metrics, _ = coco_metrics(content, detections, "hotcoco")
    assert metrics["AP_by_category"] == {name: pytest.approx(1)}


def test_hotcoco_must_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    message = r'^the analysis requires hotcoco.*`pip install "retinanet-jax\[analyze\]"`\.$'
    with pytest.raises(ValueError, match=message):
        evaluate(truth(), [])


def test_detections_of_another_dataset_are_an_error():
    with pytest.raises(ValueError, match="image or category id 7, which the ground truth lacks"):
        evaluate(truth((1, 1, WHOLE)), results((7, 1, WHOLE, 0.5)))
