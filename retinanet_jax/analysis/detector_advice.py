"""Advice about the detector: its anchors, its resolution, NMS, its thresholds and its training.

Each `check_*` function yields advice, and nothing if all is well. The constants below are the
limits from which a number is no longer an accident.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from retinanet_jax.analysis.evaluated import CLASS, DUPLICATE, IGNORED, NONE
from retinanet_jax.analysis.facts import ENOUGH, Advice, Facts
from retinanet_jax.analysis.offsets import are_displaced
from retinanet_jax.data.sizes import round_up
from retinanet_jax.data_report.anchor_choice import CATEGORY_BAD, ClassCounts, EpochBoxes
from retinanet_jax.data_report.anchor_fit import causes
from retinanet_jax.data_report.dense_images import check_dense_images
from retinanet_jax.data_report.findings import ERROR, INFO, WARNING, flags
from retinanet_jax.utils.progress import join_first

MAX_ADVICE = 3  # of one sort
# Objects of some sort are missed too often: this fraction of them, and a multiple of the others'.
MISSED, TIMES_MISSED = 0.3, 1.5
SMALL = 32  # pixels: the square root of the area of a small object, as in COCO
MANY_SMALL = 10  # objects
PART_OF_MISSED = 1 / 3  # of all missed objects
REPEATED = 0.05  # as a fraction of the correct detections
LOWEST_IOU = 0.3  # of NMS, below which neighbors suppress each other
NOTABLE, LARGE = 0.05, 0.1  # AP50 that is lost by errors of one type
F1_GAIN, CLASS_AGNOSTIC_GAIN = 0.1, 0.01


def check_anchors(facts: Facts) -> Iterator[Advice]:
    """Report the categories that anchors do not fit, if their objects are therefore missed."""
    config, boxes = facts.evaluated.config, facts.boxes
    if config is None or boxes is None:
        return
    missed = facts.is_missed[facts.is_object]
    others = float(missed[boxes.covered].mean()) if boxes.covered.any() else 0.0
    counts = ClassCounts(facts.num_objects, facts.count(boxes.classes[~boxes.covered]))
    limit = max(MISSED, TIMES_MISSED * others)
    masks = {k: (boxes.classes == k) & ~boxes.covered for k in counts.poor.tolist()}
    often_missed = [
        k
        for k, uncovered in masks.items()
        if missed[uncovered].sum() >= ENOUGH and missed[uncovered].mean() >= limit
    ]
    for k in often_missed[:MAX_ADVICE]:
        uncovered = masks[k]
        height, width = np.median(boxes.sides[uncovered], axis=0).tolist()
        yield Advice(
            ERROR if counts.judged[k] > CATEGORY_BAD else WARNING,
            f"No anchor fits {facts.name(k)}",
            f"{uncovered.sum()} of {facts.num_objects[k]} objects of {facts.name(k)} have no "
            f"anchor at IoU {config.matching.foreground_iou} (their median height and width are "
            f"{height:.0f} and {width:.0f} pixels of the network's input), and "
            f"{missed[uncovered].sum()} of these are missed; of objects with an anchor, "
            f"{others:.0%} are. {_causes(config, boxes, uncovered)}. `retinanet-jax inspect` "
            "proposes anchors or image sizes that fit, as flags of a new training.",
            float(counts.fractions[k]),
        )


def check_small_objects(facts: Facts) -> Iterator[Advice]:
    """Report that small objects are missed far more often than others."""
    if are_displaced(facts.pairs).any():  # which would be the cause
        return
    config, boxes, objects = facts.evaluated.config, facts.boxes, facts.evaluated.objects
    missed = facts.is_missed[facts.is_object]
    sides = np.sqrt(np.maximum(objects.area[facts.is_object], 0))
    if boxes is not None:
        sides = np.sqrt(boxes.sides.prod(axis=1))
    small = sides < SMALL
    num_small, num_missed = int(small.sum()), int(missed[small].sum())
    others = float(missed[~small].mean()) if not small.all() else 0.0
    if num_small < MANY_SMALL or num_missed < PART_OF_MISSED * missed.sum():
        return
    if num_missed < max(MISSED, TIMES_MISSED * others) * num_small:
        return
    by_class = facts.count(objects.class_index[facts.is_object][small & missed])
    worst = np.argsort(-by_class, stable=True)[: np.count_nonzero(by_class)].tolist()
    listed = join_first([f"{facts.name(k)} {by_class[k]}" for k in worst])
    where = "of the image" if config is None else "in the network's input"
    yield Advice(
        WARNING,
        "Small objects are missed",
        f"{num_missed} of {num_small} objects of less than {SMALL} x {SMALL} pixels {where} are "
        f"missed ({num_missed / num_small:.0%}; of larger objects {others:.0%}): {listed}. "
        f"{_larger_images(facts, config)}",
        num_missed / num_small,
    )


def check_duplicates(facts: Facts) -> Iterator[Advice]:
    """Report that objects have several confident detections of their category."""
    detections, config = facts.evaluated.detections, facts.evaluated.config
    count = int((facts.is_confident & (detections.error == DUPLICATE)).sum())
    if count < ENOUGH or count < REPEATED * facts.num_correct:
        return
    change = "Lower the IoU threshold of the detector's NMS"
    if config is not None:
        change = _lower_iou(config)
    yield Advice(
        WARNING,
        "Objects are detected several times",
        f"{count} confident detections are of an object that a better one detects; "
        f"{facts.num_correct} are correct. {change}.",
        count / max(1, facts.num_correct),
    )


def check_several_categories(facts: Facts) -> Iterator[Advice]:
    """Report that NMS among the boxes of all categories would improve F1.

    It removes the detections of a wrong category of an object that has a better one of its own, but
    also those of its own category where they have the lower score.
    """
    detections, objects = facts.evaluated.detections, facts.evaluated.objects
    config = facts.evaluated.config
    if config is not None and config.detections.class_agnostic:
        return
    wrong = np.flatnonzero(facts.is_confident & (detections.error == CLASS))
    correct = objects.detection[detections.nearest[wrong]]
    has_both = np.append(facts.is_confident, False)[correct]
    wrong, correct = wrong[has_both], correct[has_both]
    is_better = detections.score[wrong] > detections.score[correct]
    num_removed, num_lost = int((~is_better).sum()), len(np.unique(correct[is_better]))
    num_all = int(
        (facts.is_confident & (detections.error != IGNORED)).sum() + facts.is_object.sum()
    )
    present = 2 * facts.num_correct / max(1, num_all)
    later = 2 * (facts.num_correct - num_lost) / max(1, num_all - num_removed - num_lost)
    if num_removed < ENOUGH or later - present < CLASS_AGNOSTIC_GAIN:
        return
    flag = "NMS among the boxes of all categories"
    if config is not None:
        flag = f"{flags({'detections.class_agnostic': True})} (--class_agnostic of predict)"
    yield Advice(
        INFO,
        "Objects are detected as several categories",
        f"{num_removed} confident detections of a wrong category are of an object that has a "
        f"better one of its own; of {num_lost} objects the wrong category is better. {flag} keeps "
        f"the best of all: F1 would be about {later:.2f} instead of {present:.2f}.",
        later - present,
    )


def check_dense(facts: Facts) -> Iterator[Advice]:
    """Report images with more objects than the detector returns, or COCO's AP counts."""
    source, config = facts.evaluated.source, facts.evaluated.config
    if config is None:
        return
    most = config.detections.max_detections
    finding = check_dense_images(source, max_detections=most)
    if finding.severity != INFO:
        text = f"{finding.message[:1].upper()}{finding.message[1:]}: {finding.advice}"
        yield Advice(finding.severity, "Images have too many objects", text, most)


# What to try against errors of each type.
REMEDIES = {
    "class": "Add images of the categories that the confusion matrix shows, or merge categories",
    "localization": (
        "Try --config.loss.box=giou, a longer training or a higher resolution; or are the "
        "annotated boxes imprecise?"
    ),
    "both": "Train longer, or with more images of the categories that the confusion matrix shows",
    "duplicate": "Lower --config.detections.iou_threshold",
    "background": (
        "Look at them among the suspicious labels, annotate what is missing, and add images "
        "without objects that look like those where nothing is"
    ),
    "missed": "Train longer, with more images of such objects, or at a higher resolution",
}


def check_largest_error(
    errors: Sequence[dict[str, Any]], explained: Collection[str]
) -> Iterator[Advice]:
    """Report the type of error that costs the most AP50, if no other advice is about it.

    Args:
        errors: From `errors.error_table`.
        explained: The types of error that other advice is about.
    """
    worst = max(errors, key=lambda error: error["delta_ap"] or 0)
    gain = worst["delta_ap"] or 0
    if gain >= NOTABLE and worst["type"] not in explained:
        yield Advice(
            WARNING if gain >= LARGE else INFO,
            f"The errors that cost most: {worst['type']}",
            f"AP50 would be higher by {gain:.3f} without the errors of this type (of all scores: "
            f"{worst['count']}). {REMEDIES[worst['type']]}.".replace("?.", "?"),
            gain,
        )


def check_score_threshold(facts: Facts) -> Iterator[Advice]:
    """Report that a higher score threshold would improve F1 a lot."""
    config, best = facts.evaluated.config, facts.thresholds.overall
    if config is None or best.threshold is None or best.F1 is None:
        return
    num_correct = int((facts.evaluated.detections.error == NONE).sum())
    num_all = len(facts.is_confident) + int(facts.is_object.sum())
    present = 2 * num_correct / num_all
    if best.F1 - present >= F1_GAIN:
        yield Advice(
            INFO,
            "A higher score threshold suits prediction",
            f"F1 is {present:.2f} at the config's score threshold of "
            f"{config.detections.score_threshold}, and {best.F1:.2f} at {best.threshold:.2f}. "
            "`retinanet-jax analyze --store_thresholds` stores the best threshold of each category "
            "in the checkpoint, for predict and export.",
            best.F1 - present,
        )


def _causes(config: ConfigDict, boxes: EpochBoxes, uncovered: np.ndarray) -> str:
    """Return why no anchors fit the uncovered boxes."""
    text = causes(config, EpochBoxes(*(field[uncovered] for field in boxes)))
    return f"{text[:1].upper()}{text[1:]}"


def _larger_images(facts: Facts, config: ConfigDict | None) -> str:
    """Return how to detect at a higher resolution."""
    if config is None:
        return "Detect at a higher resolution, or in tiles of the images."
    data = config.data
    short = np.median(facts.evaluated.source.sizes.min(axis=1))
    reduction = data.eval_short_side / short
    factor = float(np.clip(1 / reduction, 1, 2)) if reduction < 0.9 else 2.0
    fields = {
        "data.eval_short_side": int(round_up(int(data.eval_short_side * factor))),
        "data.long_side": int(round_up(int(data.long_side * factor))),
        "data.eval_shapes": "own",
    }
    size = f"{short:.0f} to {data.eval_short_side} pixels"
    command = f"retinanet-jax evaluate --workdir=DIR {flags(fields)}"
    return (
        f"The short side of the images is resized from {size} (median). Evaluate at a higher "
        f"resolution: `{command}`; if AP is higher, train with it."
    )


def _lower_iou(config: ConfigDict) -> str:
    """Return the flag of an NMS that suppresses more."""
    if config.detections.nms != "hard":
        flag = flags({"detections.nms": "hard"})
        return f"NMS is {config.detections.nms}; try {flag}, or a higher score threshold"
    present = config.detections.iou_threshold
    lower = max(LOWEST_IOU, 0.5 if present > 0.5 else round(present - 0.1, 2))
    flag = flags({"detections.iou_threshold": lower})
    return f"NMS has the IoU threshold {present}; try {flag} (--iou_threshold of predict)"
