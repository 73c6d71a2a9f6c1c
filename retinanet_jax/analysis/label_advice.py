"""Advice about the annotations, and about how they and the detections fit together.

Each `check_*` function yields advice, and nothing if all is well. The constants below are the
limits from which a number is no longer an accident.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float

from retinanet_jax.analysis.evaluated import BACKGROUND, NONE
from retinanet_jax.analysis.facts import ENOUGH, Advice, Facts
from retinanet_jax.analysis.offsets import Pairs, are_displaced, have_other_size
from retinanet_jax.data_report.findings import ERROR, INFO, WARNING
from retinanet_jax.utils.progress import join_first

MAX_ADVICE = 3  # of one sort
INTERCHANGED = 0.5  # fraction of the objects of two categories that is detected as the other one
CONFUSED = 0.1  # fraction of the objects of a category that is detected as another one
MISSING = 0.03  # fraction of the confident detections
# Objects of a category: that none of so many is detected is an error, a warning, or an accident.
MANY_OBJECTS, SOME_OBJECTS = 10, 3
FAR = 0.05  # fraction of the objects' side
DIRECTIONS = (("above", "below"), ("to the left of", "to the right of"))  # of y and of x


def check_content(facts: Facts) -> Iterator[Advice]:
    """Report a dataset without objects, and a detector without detections."""
    if not facts.is_object.any():
        yield Advice(
            ERROR,
            "The dataset has no objects",
            "Nothing can be judged without objects: 0 are annotated. `retinanet-jax inspect` "
            "reports what was read of the dataset.",
            0,
        )
    elif not len(facts.is_confident):
        yield Advice(
            ERROR,
            "There are no detections",
            f"None of the {facts.is_object.sum()} objects is detected. Train longer, or lower "
            "--config.detections.score_threshold.",
            0,
        )


def interchanged_pairs(facts: Facts) -> list[tuple[int, int]]:
    """Return the pairs of classes of which most objects are detected as the other, both ways."""
    fractions, counts = _confused(facts)
    is_pair = (np.minimum(fractions, fractions.T) >= INTERCHANGED) & (counts + counts.T >= ENOUGH)
    first, second = np.nonzero(np.triu(is_pair))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def check_interchanged(facts: Facts) -> Iterator[Advice]:
    """Report pairs of categories that are interchanged."""
    fractions, _ = _confused(facts)
    for first, second in interchanged_pairs(facts)[:MAX_ADVICE]:
        name, other = facts.name(first), facts.name(second)
        there, back = fractions[first, second], fractions[second, first]
        yield Advice(
            ERROR,
            f"{name} and {other} are interchanged",
            f"{there:.0%} of the objects of {name} are detected as {other}, and {back:.0%} of "
            f"those of {other} as {name}. Compare the names and ids of the categories in the "
            "annotations with those that the detector was trained with.",
            float(min(there, back)),
        )


def check_confused(facts: Facts) -> Iterator[Advice]:
    """Report the categories of which many objects are detected as another one."""
    fractions, counts = _confused(facts)
    counts = np.where((fractions >= CONFUSED) & (counts >= ENOUGH), counts, 0)
    for first, second in interchanged_pairs(facts):
        counts[first, second] = counts[second, first] = 0
    for flat in np.argsort(-counts, axis=None, stable=True)[:MAX_ADVICE].tolist():
        first, second = divmod(flat, len(counts))
        if counts[first, second]:
            name, other = facts.name(first), facts.name(second)
            fraction = float(fractions[first, second])
            yield Advice(
                WARNING,
                f"{name} is detected as {other}",
                f"{counts[first, second]} of {facts.num_objects[first]} objects of {name} "
                f"({fraction:.0%}) are detected as {other}. If the annotations are right, add "
                "images that show both, or merge the categories.",
                fraction,
            )


def check_undetected(facts: Facts) -> Iterator[Advice]:
    """Report the categories with AP 0: none of their objects is detected."""
    detections, objects = facts.evaluated.detections, facts.evaluated.objects
    missed = facts.count(objects.class_index[facts.is_missed])
    is_undetected = (facts.num_objects > 0) & (missed == facts.num_objects)
    is_undetected[[k for pair in interchanged_pairs(facts) for k in pair]] = False
    undetected = np.flatnonzero(is_undetected)
    if not len(undetected) or not len(detections.score):
        return
    worst = undetected[np.argsort(-facts.num_objects[undetected], stable=True)].tolist()
    num_detections = facts.count(detections.class_index)
    listed = [
        f"{facts.name(k)} (objects: {facts.num_objects[k]}, detections: {num_detections[k]})"
        for k in worst
    ]
    most = facts.num_objects[worst[0]]
    yield Advice(
        ERROR if most >= MANY_OBJECTS else WARNING if most >= SOME_OBJECTS else INFO,
        f"AP 0: {join_first([facts.name(k) for k in worst])}",
        f"No object is detected of {join_first(listed)}. Such a category has too few objects in "
        "the training data, another name or id there, or no fitting anchors: `retinanet-jax "
        "inspect` lists the objects and the anchors of each category.",
        int(facts.num_objects[worst].sum()),
    )


def check_missing_annotations(facts: Facts) -> Iterator[Advice]:
    """Report very confident detections where nothing is annotated.

    Half of the correct detections have their score or a higher one. If annotations are missing at
    random, the fraction of these detections without an annotation is that of the missing ones.
    """
    detections = facts.evaluated.detections
    is_correct = detections.error == NONE
    if not is_correct.any():
        return
    is_sure = detections.score >= np.median(detections.score[is_correct])
    without = is_sure & (detections.error == BACKGROUND)
    count, total = int(without.sum()), int((without | (is_sure & is_correct)).sum())
    if count < ENOUGH or count < MISSING * total:
        return
    by_class = facts.count(detections.class_index[without])
    all_of_class = by_class + facts.count(detections.class_index[is_sure & is_correct])
    worst = np.argsort(-by_class, stable=True)[: np.count_nonzero(by_class)].tolist()
    listed = [
        f"{facts.name(k)} {by_class[k]} of {all_of_class[k]} ({by_class[k] / all_of_class[k]:.0%})"
        for k in worst
    ]
    yield Advice(
        WARNING,
        "Annotations seem to be missing",
        f"{count} of {total} very confident detections ({count / total:.0%}) are where nothing is "
        f"annotated: {join_first(listed)}. Look at them among the suspicious labels: annotate what "
        "is there, and where nothing is, add such images without objects to the training data.",
        count / total,
    )


def check_displacement(facts: Facts) -> Iterator[Advice]:
    """Report that detections are displaced from their objects, all of them or of a category."""
    for name, pairs in _all_or_by_category(facts, are_displaced):
        shift, side = np.median(pairs.shift, axis=0), float(np.median(pairs.sides))
        axes = np.flatnonzero(are_displaced(pairs)).tolist()
        directions = [
            f"{abs(shift[axis]):.1f} pixels {DIRECTIONS[axis][int(shift[axis] > 0)]}"
            for axis in axes
        ]
        farthest = float(np.abs(shift[axes]).max())
        yield Advice(
            ERROR if farthest >= FAR * side else WARNING,
            f"The boxes of {name} are displaced",
            f"Detections are {' and '.join(directions)} their objects (median of "
            f"{len(pairs.shift)}; the objects' side is {side:.0f} pixels). {_CONVERSION}",
            farthest,
        )


def check_box_size(facts: Facts) -> Iterator[Advice]:
    """Report that detections are larger or smaller than their objects."""
    for name, pairs in _all_or_by_category(facts, have_other_size):
        height, width = np.median(pairs.ratio, axis=0).tolist()
        yield Advice(
            WARNING,
            f"The boxes of {name} have another size",
            f"Detections are {height:.2f} times as high and {width:.2f} times as wide as their "
            f"objects (median of {len(pairs.ratio)}). {_CONVERSION}",
            max(height, width, key=lambda ratio: abs(np.log(ratio))),
        )


_CONVERSION = (
    "Look at both in the drawings of the worst images, and at the annotations in those of "
    "`retinanet-jax inspect`: images that were resized or cropped after the annotation, and boxes "
    "in another convention, have this effect."
)


def _confused(facts: Facts) -> tuple[Float[np.ndarray, "K K"], np.ndarray]:
    """Return fractions and numbers of the objects of each class that are detected as another."""
    counts = facts.confusion[:-1, :-1].copy()
    np.fill_diagonal(counts, 0)
    return counts / np.maximum(facts.num_objects, 1)[:, None], counts


def _all_or_by_category(
    facts: Facts, find: Callable[[Pairs], Bool[np.ndarray, " 2"]]
) -> Iterator[tuple[str, Pairs]]:
    """Yield the pairs of all categories if something is found in them, or else of some categories.

    Args:
        facts: The facts.
        find: Returns whether something is found along each axis.
    """
    pairs = facts.pairs
    if find(pairs).any():
        yield "all categories", pairs
        return
    of_classes = (pairs.select(pairs.class_index == k) for k in np.unique(pairs.class_index))
    notable = (selected for selected in of_classes if find(selected).any())
    for selected in itertools.islice(notable, MAX_ADVICE):
        yield facts.name(selected.class_index[0]), selected
