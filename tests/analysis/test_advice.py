"""Of each planted problem the advice names the category and the number, and nothing else."""

import json

import numpy as np
import pytest
from memory_source import MemorySource, random_case
from synthetic_detections import NAMES, Scene, advice_of, config_of, strong_detector

from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.utils.files import to_json

CAT, DOG, COW, BIRD = range(4)
CLASS, BOX, SIDES, SCORE = 1, slice(2, 6), slice(4, 6), 6  # columns of a scene
IMAGE = 400  # pixels, in the image and in the network's input


@pytest.fixture
def scene() -> Scene:
    return strong_detector()


@pytest.fixture
def config():
    return config_of(IMAGE, IMAGE)


def changed(rows: np.ndarray, mask, column, value) -> np.ndarray:
    """Return a copy of rows with another value in some of them."""
    rows = rows.copy()
    selected = rows[mask]
    selected[:, column] = value
    rows[mask] = selected
    return rows


def problems(advice: list[dict]) -> list[str]:
    """Return the titles of what is wrong, the worst first."""
    return [item["title"] for item in advice if item["severity"] != "info"]


def find(advice: list[dict], title: str) -> dict:
    (item,) = (item for item in advice if item["title"] == title)
    return item


def test_there_is_no_advice_about_a_clean_strong_detector(config):
    for settings in (config, None):
        assert strong_detector(noise=0).advice(settings) == []
        assert problems(strong_detector(noise=20).advice(settings)) == []


def test_dropped_annotations_are_missing(scene, config):
    dropped = np.random.default_rng(1).random(len(scene.objects)) < 0.1
    advice = scene._replace(objects=scene.objects[~dropped]).advice(config)
    assert problems(advice) == ["Annotations seem to be missing"]
    number = find(advice, "Annotations seem to be missing")["number"]
    assert number == pytest.approx(dropped.mean(), abs=0.03)
    assert f"({number:.0%}) are where nothing is annotated" in advice[0]["text"]


def test_the_category_of_the_dropped_annotations_is_named_first(scene, config):
    dropped = (scene.objects[:, CLASS] == COW) & (np.arange(len(scene.objects)) % 4 == 0)
    (item,) = (
        item
        for item in scene._replace(objects=scene.objects[~dropped]).advice(config)
        if item["title"] == "Annotations seem to be missing"
    )
    assert "nothing is annotated: cow " in item["text"]
    assert "dog" not in item["text"]


@pytest.mark.parametrize("part", ["objects", "detections"])
def test_two_swapped_classes_are_interchanged(scene, config, part):
    rows = getattr(scene, part).copy()
    rows[:, CLASS] = np.array([CAT, BIRD, COW, DOG])[rows[:, CLASS].astype(int)]
    advice = scene._replace(**{part: rows}).advice(config)
    assert problems(advice) == ["dog and bird are interchanged"]
    assert advice[0]["severity"] == "error"
    assert advice[0]["number"] == pytest.approx(0.97, abs=0.03)


def test_a_class_that_is_often_detected_as_another_is_confused(scene, config):
    is_cow = scene.detections[:, CLASS] == COW
    fifth = is_cow & (np.cumsum(is_cow) % 5 == 0) & (scene.detections[:, SCORE] > 0.3)
    advice = scene._replace(detections=changed(scene.detections, fifth, CLASS, DOG)).advice(config)
    assert problems(advice) == ["cow is detected as dog"]
    assert advice[0]["number"] == pytest.approx(0.2, abs=0.03)
    num_cows = int((scene.objects[:, CLASS] == COW).sum())
    assert f"{fifth.sum()} of {num_cows} objects of cow" in advice[0]["text"]
    # These objects have no detection as cow besides.
    titles = [item["title"] for item in advice]
    assert "Objects are detected as several categories" not in titles


def test_a_class_that_is_always_detected_as_another_is_not_interchanged(scene, config):
    """The other class is detected as itself."""
    is_cow = scene.detections[:, CLASS] == COW
    detections = changed(scene.detections, is_cow, CLASS, DOG)
    advice = scene._replace(detections=detections).advice(config)
    assert problems(advice) == ["AP 0: cow", "cow is detected as dog"]
    assert find(advice, "cow is detected as dog")["number"] == pytest.approx(0.97, abs=0.03)


@pytest.mark.parametrize(
    ("shift", "directions"),
    [
        ((8, 8), ("below", "to the right of")),
        ((-8, 0), ("to the left of",)),
        ((0, -8), ("above",)),
    ],
)
def test_boxes_that_are_shifted_by_8_pixels_are_displaced(scene, config, shift, directions):
    scene.detections[:, BOX] += (*shift, 0, 0)
    advice = scene.advice(config)
    assert problems(advice) == ["The boxes of all categories are displaced"]
    assert advice[0]["number"] == pytest.approx(8, abs=0.3)
    named = [word for word in DIRECTIONS if f"pixels {word} " in advice[0]["text"]]
    assert tuple(named) == directions


DIRECTIONS = ("above", "below", "to the left of", "to the right of")


def test_only_the_displaced_category_is_named(scene, config):
    scene.detections[scene.detections[:, CLASS] == COW, 3] -= 8
    advice = scene.advice(config)
    assert problems(advice) == ["The boxes of cow are displaced"]
    assert "pixels above their objects" in advice[0]["text"]


def test_the_displacement_of_small_objects_is_reported_though_nothing_matches(config):
    """Boxes of 24 pixels that are shifted by 8 pixels have an IoU of 2/7 with their objects."""
    scene = strong_detector(noise=0)
    for rows in (scene.objects, scene.detections):
        rows[:, SIDES] = 24
    scene.detections[:, 2:4] += 8
    evaluated = scene.evaluate(config)
    assert (evaluated.objects.detection < 0).all()
    advice = advice_of(evaluated)
    assert problems(advice)[0] == "The boxes of all categories are displaced"
    assert advice[0]["number"] == pytest.approx(8, abs=0.5)
    assert "Small objects are missed" not in problems(advice)  # the displacement is the cause


def test_boxes_of_another_size_are_reported(scene, config):
    scene.detections[:, 5] *= 1.25
    scene.detections[:, 3] -= scene.detections[:, 5] * 0.1  # the center remains
    advice = scene.advice(config)
    assert problems(advice) == ["The boxes of all categories have another size"]
    assert advice[0]["number"] == pytest.approx(1.25, abs=0.01)
    assert "1.25 times as high and 1.00 times as wide" in advice[0]["text"]


@pytest.mark.parametrize(
    ("sides", "cause"),
    [
        ((6, 6), "100% of these are smaller than the smallest anchor (32 px)"),
        ((125, 12), "100% have an aspect ratio outside of anchors.ratios"),
    ],
)
def test_a_class_without_anchors_is_named(scene, config, sides, cause):
    objects = changed(scene.objects, scene.objects[:, CLASS] == BIRD, SIDES, sides)
    detections = scene.detections[scene.detections[:, CLASS] != BIRD]
    advice = Scene(objects, detections, IMAGE).advice(config)
    assert problems(advice)[:2] == ["No anchor fits bird", "AP 0: bird"]
    assert [item["severity"] for item in advice[:2]] == ["error", "error"]
    num_birds = int((objects[:, CLASS] == BIRD).sum())
    assert advice[0]["number"] == 1
    assert (
        f"{num_birds} of {num_birds} objects of bird have no anchor at IoU 0.5"
        in (advice[0]["text"])
    )
    assert f"and {num_birds} of these are missed" in advice[0]["text"]
    assert cause in advice[0]["text"]
    assert "`retinanet-jax inspect`" in advice[0]["text"]


def test_objects_without_an_anchor_that_are_detected_are_no_problem(scene, config):
    """Each of them has a forced match, from which the detector has learned."""
    is_bird = scene.objects[:, CLASS] == BIRD
    objects = changed(scene.objects, is_bird, SIDES, (100, 20))
    detections = changed(scene.detections, scene.detections[:, CLASS] == BIRD, SIDES, (100, 20))
    real = detections[detections[:, SCORE] > 0.3]
    assert problems(Scene(objects, real, IMAGE).advice(config)) == []


@pytest.mark.parametrize("settings", [True, False])
def test_a_class_with_ap_0_is_named(scene, config, settings):
    detections = scene.detections[scene.detections[:, CLASS] != COW]
    advice = scene._replace(detections=detections).advice(config if settings else None)
    assert problems(advice) == ["AP 0: cow"]
    num_cows = int((scene.objects[:, CLASS] == COW).sum())
    assert f"cow (objects: {num_cows}, detections: 0)" in advice[0]["text"]
    assert (advice[0]["number"], advice[0]["severity"]) == (num_cows, "error")


def test_duplicates_name_the_iou_threshold_of_nms(scene, config):
    rng = np.random.default_rng(2)
    again = scene.detections[scene.detections[:, SCORE] > 0.3]
    again = again + rng.normal(0, 0.04, again.shape) * again[:, [4, 4, 4, 5, 4, 5, 4]] * (
        0, 0, 1, 1, 1, 1, 0,
    )  # fmt: skip
    again[:, SCORE] *= 0.97
    doubled = scene._replace(detections=np.concatenate([scene.detections, again]))
    config.detections.iou_threshold = 0.9
    advice = doubled.advice(config)
    assert problems(advice) == ["Objects are detected several times"]
    assert advice[0]["number"] == pytest.approx(1, abs=0.02)
    assert (
        "has the IoU threshold 0.9; try --config.detections.iou_threshold=0.5"
        in (advice[0]["text"])
    )
    config.detections.iou_threshold = 0.5
    assert "try --config.detections.iou_threshold=0.4" in doubled.advice(config)[0]["text"]
    config.detections.nms = "soft_linear"
    assert "try --config.detections.nms=hard" in doubled.advice(config)[0]["text"]
    assert "Lower the IoU threshold of the detector's NMS." in doubled.advice()[0]["text"]


def test_small_objects_of_reduced_images_are_missed_for_their_resolution():
    """Images of 1,600 pixels are reduced to 400; objects of less than 128 pixels are missed."""
    scene = strong_detector(side=1600)
    rng, count = np.random.default_rng(4), len(scene.objects)
    small = rng.random(count) < 0.4
    objects = scene.objects.copy()
    objects[small, SIDES] = rng.uniform(60, 120, (small.sum(), 2))
    missed = small & (rng.random(count) < 0.7)
    detected = objects[~missed]
    detections = np.column_stack([detected, rng.beta(9, 1.5, len(detected))])
    advice = Scene(objects, detections, 1600).advice(config_of(1600, 400))
    assert problems(advice) == ["Small objects are missed"]
    fraction = missed.sum() / small.sum()
    assert advice[0]["number"] == pytest.approx(fraction)
    assert f"{missed.sum()} of {small.sum()} objects of less than 32 x 32" in advice[0]["text"]
    assert f"missed ({fraction:.0%}; of larger objects 0%): " in advice[0]["text"]
    worst = NAMES[np.bincount(objects[missed, CLASS].astype(int)).argmax()]
    assert f"0%): {worst} " in advice[0]["text"]
    assert "resized from 1600 to 400 pixels" in advice[0]["text"]
    flags = "--config.data.eval_short_side=800 --config.data.long_side=800"
    assert f"evaluate --workdir=DIR {flags} --config.data.eval_shapes=own`" in advice[0]["text"]


def test_several_categories_of_an_object_are_a_hint_to_class_agnostic_nms(scene, config):
    again = scene.detections[scene.detections[:, SCORE] > 0.3]
    again = changed(again, np.ones(len(again), bool), SCORE, again[:, SCORE] - 0.05)
    again[:, CLASS] = (again[:, CLASS] + 1) % 4
    doubled = scene._replace(detections=np.concatenate([scene.detections, again[::4]]))
    title = "Objects are detected as several categories"
    item = find(doubled.advice(config), title)
    # A fifth of all detections is wrong: F1 is 2 * 0.98 / (1.25 * 0.98 + 1) instead of 0.99.
    assert item["number"] == pytest.approx(0.99 - 0.88, abs=0.02)
    assert "F1 would be about 0.99 instead of 0.88" in item["text"]
    assert "--config.detections.class_agnostic=True (--class_agnostic of predict)" in item["text"]
    config.detections.class_agnostic = True
    assert title not in [item["title"] for item in doubled.advice(config)]


def test_class_agnostic_nms_is_no_advice_for_objects_without_a_right_detection(config):
    scene = strong_detector(noise=0)
    image, is_cow = scene.detections[:, 0], scene.detections[:, CLASS] == COW
    scene.detections[:, SCORE] = np.where(image < 20, 0.5, 0.9)
    scene.detections[is_cow & (image < 50), SCORE] = 0.6
    scene.detections[is_cow & (image < 50), CLASS] = DOG
    advice = scene.advice(config)
    assert [item["title"] for item in advice] == ["cow is detected as dog"]


def test_class_agnostic_nms_is_no_advice_where_the_wrong_category_is_better(scene, config):
    """It would remove the right one."""
    again = scene.detections[scene.detections[:, SCORE] > 0.3][::4]
    again[:, CLASS] = (again[:, CLASS] + 1) % 4
    again[:, SCORE] = 0.999
    doubled = scene._replace(detections=np.concatenate([scene.detections, again]))
    titles = [item["title"] for item in doubled.advice(config)]
    assert "Objects are detected as several categories" not in titles


def test_images_with_more_objects_than_detections_are_named(scene, config):
    config.detections.max_detections = 8  # each image has nine objects
    advice = scene.advice(config)
    assert problems(advice) == ["Images have too many objects"]
    assert "--config.detections.max_detections=9" in advice[0]["text"]
    assert advice[0]["number"] == 8


def test_a_low_score_threshold_is_a_hint_to_store_better_ones(config):
    scene = strong_detector(noise=10)
    item = find(scene.advice(config), "A higher score threshold suits prediction")
    num_correct, num_detections = 0.98 * len(scene.objects), len(scene.detections)
    present = 2 * num_correct / (num_detections + len(scene.objects))
    assert f"F1 is {present:.1f}" in item["text"]
    assert item["number"] == pytest.approx(0.99 - present, abs=0.02)
    assert "`retinanet-jax analyze --store_thresholds`" in item["text"]


def test_without_a_known_cause_the_errors_that_cost_most_are_named(scene, config):
    """A third of the large objects is missed, of all categories."""
    real = scene.detections[:, SCORE] > 0.3
    dropped = real & (np.arange(len(real)) % 3 == 0)
    advice = scene._replace(detections=scene.detections[~dropped]).advice(config)
    assert problems(advice) == ["The errors that cost most: missed"]
    assert advice[0]["number"] == pytest.approx(1 / 3, abs=0.05)
    assert f"higher by {advice[0]['number']:.3f}" in advice[0]["text"]


@pytest.mark.parametrize("settings", [True, False])
def test_a_dataset_without_objects_or_detections(scene, config, settings):
    config = config if settings else None
    for part, title in (
        ("objects", "The dataset has no objects"),
        ("detections", "There are no detections"),
    ):
        advice = scene._replace(**{part: getattr(scene, part)[:0]}).advice(config)
        assert problems(advice)[0] == title
        assert advice[0]["severity"] == "error"


def test_advice_is_bounded_and_in_one_line_whatever_the_names(scene, config):
    names = ("<script>\n", "x" * 9000, "\x00\t", "$&{{ 7 }}")
    half = scene.detections[
        (scene.detections[:, CLASS] == COW) | (scene.detections[:, SCORE] < 0.3)
    ]
    for item in scene._replace(detections=half).advice(config, names):
        assert "\n" not in item["title"] + item["text"]
        assert len(item["title"]) < 200
        assert len(item["text"]) < 1000


def test_a_thousand_categories_have_a_bounded_list(config):
    names = [f"category {k}" for k in range(1000)]
    scene = strong_detector(num_images=400)
    scene.objects[:, CLASS] = np.arange(len(scene.objects)) % 1000
    scene.detections[:, CLASS] = 0
    advice = scene.advice(config, names)
    assert len(advice) < 12
    item = next(item for item in advice if item["title"].startswith("AP 0"))
    assert len(item["text"]) < 1000
    assert item["number"] > 3000


@pytest.mark.parametrize("settings", [None, config_of(200, 200)], ids=["file", "run"])
@pytest.mark.parametrize("seed", range(4))
def test_random_detections_of_few_images_have_advice_as_json(settings, seed):
    content, detections = random_case(seed, num_images=1 + seed, num_detections=5 * seed)
    evaluated = evaluate_detections(MemorySource(content), detections, settings)
    for item in json.loads(to_json(advice_of(evaluated))):
        assert isinstance(item["number"], int | float)
        assert item["text"][-1] in ".?"


def test_the_worst_advice_is_first(scene, config):
    detections = scene.detections[scene.detections[:, CLASS] != COW]
    dropped = np.random.default_rng(1).random(len(scene.objects)) < 0.1
    advice = Scene(scene.objects[~dropped], detections, IMAGE).advice(config)
    severities = [item["severity"] for item in advice]
    assert severities == sorted(severities, key=("error", "warning", "info").index)
    assert problems(advice) == ["AP 0: cow", "Annotations seem to be missing"]
    assert set(advice[0]) == {"severity", "title", "text", "number"}
