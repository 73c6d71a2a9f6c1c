"""Confidence intervals of AP by the bootstrap, and of the difference of two detectors.

As many images as the dataset has are sampled from it with replacement, many times, and AP is
computed of each sample (https://doi.org/10.1214/aos/1176344552). AP is higher the fewer different
images there are, so that of samples is on average too high; therefore the deviations of the samples
are subtracted from AP instead of added to it (the basic bootstrap). Of 60 samples of 300 among
2,000 synthetic images, 98% of such intervals contain the AP of all images, but 77% of those of
the samples' own middle 95%.

hotcoco's `compare` counts an image once that is several times in a sample, which makes its
intervals a fifth too narrow; it adds the deviations; and it has no interval for one detector.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from retinanet_jax.analysis.curves import RECALLS
from retinanet_jax.analysis.evaluated import Evaluated, image_numbers
from retinanet_jax.analysis.overlaps import in_crowd, match
from retinanet_jax.utils.progress import shorten

CONFIDENCE = 0.95
NUM_SAMPLES = 500
SEED = 0
METRICS = ("AP", "AP50", "AP75", "AR100")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # T of them


class Ranking(NamedTuple):
    """All detections in the order in which AP counts them: by class and descending score.

    The groups are the classes at the first IoU threshold, at the second one, and so on: G = T * K.

    Attributes:
        image: The image of each detection.
        first: The first detection of each class, and at the end the number of detections.
        correct: The correct detections of each group in turn, as indices into `image`.
        group: The group of each of them.
        bounds: The first correct detection of each group, and at the end their number.
        ignored: The detections in crowd regions of each group in turn.
        ignored_range: Which of them precede each correct detection in its group: from, to.
        object_image: The image of each object that is no crowd region.
        object_class: The class of each of them.
    """

    image: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " K1"]
    correct: Int[np.ndarray, " c"]
    group: Int[np.ndarray, " c"]
    bounds: Int[np.ndarray, " G1"]
    ignored: Int[np.ndarray, " i"]
    ignored_range: Int[np.ndarray, "2 c"]
    object_image: Int[np.ndarray, " m"]
    object_class: Int[np.ndarray, " m"]


def confidence_intervals(
    evaluated: Evaluated, num_samples: int = NUM_SAMPLES, seed: int = SEED
) -> dict[str, list[float] | None]:
    """Return the 95% interval of each of METRICS: its lower and upper bound.

    An interval is None if the metric is undefined, because there are no objects, and for a single
    image.

    Args:
        evaluated: The dataset and its detections.
        num_samples: The number of samples of the images.
        seed: The seed of the samples.
    """
    ranking, num_images = rank(evaluated), len(evaluated.source)
    values = sample_metrics(ranking, np.ones(num_images, np.int64))
    weights = image_weights(num_images, num_samples, seed)
    samples = [sample_metrics(ranking, sample) for sample in weights]
    bounds = map(interval, reflect(values, samples).T)
    return {
        name: ends and np.clip(ends, 0, 1).tolist()
        for name, ends in zip(METRICS, bounds, strict=True)
    }


def compare_detectors(
    evaluated: Evaluated,
    other: Evaluated,
    name: str,
    num_samples: int = NUM_SAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """Return by how much a detector's AP is higher than another one's, with 95% intervals.

    Both are computed of the same samples of the images: what is hard in an image is hard for both.

    Args:
        evaluated: The dataset and the detections of one detector.
        other: The same dataset and the detections of another one.
        name: The name of the other detector.
        num_samples: The number of samples of the images.
        seed: The seed of the samples.

    Returns:
        The name; of each of METRICS the difference, its lower and upper bound, and the probability
        that it is positive; and the differences of AP by category, the lowest first. What is
        undefined is None.

    Raises:
        ValueError: If the datasets differ.
    """
    check_same_dataset(evaluated, other, name)
    rankings = rank(evaluated), rank(other)
    num_images = len(evaluated.source)
    everything = np.ones(num_images, np.int64)
    difference = np.subtract(*(sample_metrics(ranking, everything) for ranking in rankings))
    samples = [
        np.subtract(*(sample_metrics(ranking, weights) for ranking in rankings))
        for weights in image_weights(num_images, num_samples, seed)
    ]
    aps = [weighted_category_metrics(ranking, everything)[0].mean(axis=0) for ranking in rankings]
    by_category = np.subtract(*aps)
    return {
        "other": name,
        "metrics": {
            metric: _difference(value, column)
            for metric, value, column in zip(
                METRICS, difference, reflect(difference, samples).T, strict=True
            )
        },
        "categories": [
            {"name": evaluated.source.categories[k].name, "difference": _defined(by_category[k])}
            for k in np.argsort(by_category, stable=True)  # NaN is last
        ],
    }


def check_same_dataset(evaluated: Evaluated, other: Evaluated, name: str) -> None:
    """Raise ValueError if two detectors were not evaluated on the same images and objects.

    Args:
        evaluated: The dataset and the detections of one detector.
        other: Those of another one.
        name: The name of the other one.
    """
    ours, others = evaluated.source, other.source
    is_same = (
        list(ours.image_ids) == list(others.image_ids)
        and ours.categories == others.categories
        and all(map(np.array_equal, ours.objects, others.objects))
    )
    if not is_same:
        raise ValueError(
            f"{shorten(name)} was evaluated on {shorten(others.name)}, which is not the same "
            f"dataset as {shorten(ours.name)}; compare detectors on the same images and objects."
        )


def rank(evaluated: Evaluated) -> Ranking:
    """Return the detections in the order in which AP counts them, matched at all IoU thresholds.

    Args:
        evaluated: The dataset and its detections.
    """
    detections, objects = evaluated.detections, evaluated.objects
    num_detections, num_classes = len(detections.score), len(evaluated.source.categories)
    numbers = image_numbers(evaluated.source)[detections.image]
    order = np.lexsort((numbers, -detections.score, detections.class_index))
    class_index = detections.class_index[order]
    pairs = evaluated.overlaps.select(evaluated.overlaps.same_class)
    correct, ignored = [], []  # detections as threshold * n + position in the order
    for step, threshold in enumerate(IOU_THRESHOLDS):
        matched = match(pairs, num_detections, threshold)[order]
        is_ignored = in_crowd(matched, objects.is_crowd)
        correct.append(np.flatnonzero((matched >= 0) & ~is_ignored) + step * num_detections)
        ignored.append(np.flatnonzero(is_ignored) + step * num_detections)
    first = np.searchsorted(class_index, np.arange(num_classes + 1))
    correct, ignored = np.concatenate(correct), np.concatenate(ignored)
    step, position = np.divmod(correct, max(num_detections, 1))
    group = step * num_classes + class_index[position]
    class_start = step * num_detections + first[class_index[position]]
    return Ranking(
        detections.image[order],
        first,
        position,
        group,
        np.searchsorted(group, np.arange(len(IOU_THRESHOLDS) * num_classes + 1)),
        ignored % max(num_detections, 1),
        np.searchsorted(ignored, np.stack([class_start, correct])),
        objects.image[~objects.is_crowd],
        objects.class_index[~objects.is_crowd],
    )


def image_weights(num_images: int, num_samples: int, seed: int) -> Iterator[Int[np.ndarray, " N"]]:
    """Yield how many times each image is in each sample; nothing for a single image.

    Args:
        num_images: N, the number of images.
        num_samples: The number of samples.
        seed: The seed of the samples.
    """
    rng = np.random.default_rng(seed)
    for _ in range(num_samples if num_images > 1 else 0):
        yield np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)


def sample_metrics(ranking: Ranking, weights: Int[np.ndarray, " N"]) -> Float[np.ndarray, " 4"]:
    """Return METRICS of a sample of the images; NaN where they are undefined.

    Args:
        ranking: The detections.
        weights: How many times each image is in the sample.
    """
    precision, recall = weighted_category_metrics(ranking, weights)  # T K
    defined = ~np.isnan(precision[0])
    if not defined.any():
        return np.full(len(METRICS), np.nan)
    by_threshold = precision[:, defined].mean(axis=1)
    return np.array(
        [by_threshold.mean(), by_threshold[0], by_threshold[5], recall[:, defined].mean()]
    )


def weighted_category_metrics(
    ranking: Ranking, weights: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "T K"], Float[np.ndarray, "T K"]]:
    """Return COCO's average precision and recall of each class at each IoU threshold.

    They are NaN for classes without objects in the sample. An image with weight w counts like w
    images with the same content.

    Args:
        ranking: The detections.
        weights: How many times each image is in the sample.
    """
    num_classes = len(ranking.first) - 1
    shape = len(IOU_THRESHOLDS), num_classes
    counts = weights[ranking.image]
    num_objects = np.bincount(
        ranking.object_class, weights[ranking.object_image], num_classes
    ).astype(np.int64)
    hits_before = _sums(counts[ranking.correct])
    hits = hits_before[1:] - hits_before[ranking.bounds[ranking.group]]
    ranked, ignored = _sums(counts), _sums(counts[ranking.ignored])
    class_index = ranking.group % num_classes
    num_detections = ranked[ranking.correct + 1] - ranked[ranking.first[class_index]]
    num_detections -= np.subtract(*ignored[ranking.ignored_range[::-1]])
    # The highest precision at this recall or a higher one. The offsets keep the groups apart.
    offset = 2.0 * (len(ranking.bounds) - ranking.group)
    precision = hits / np.maximum(num_detections, 1) + offset
    precision = np.maximum.accumulate(precision[::-1])[::-1] - offset
    # The number of RECALLS that are first reached by each correct detection of a group.
    recall = hits / np.maximum(num_objects, 1)[class_index]
    nearest = np.rint(recall * (len(RECALLS) - 1)).astype(np.int64)
    reached = nearest + (RECALLS[nearest] <= recall)
    newly_reached = np.diff(reached, prepend=0)
    is_first = np.diff(ranking.group, prepend=-1) > 0
    newly_reached[is_first] = reached[is_first]
    ap = np.bincount(ranking.group, precision * newly_reached, math.prod(shape)) / len(RECALLS)
    ar = np.diff(hits_before[ranking.bounds]).reshape(shape) / np.maximum(num_objects, 1)
    defined = num_objects > 0
    return np.where(defined, ap.reshape(shape), np.nan), np.where(defined, ar, np.nan)


def reflect(
    values: Float[np.ndarray, " 4"], samples: Sequence[Float[np.ndarray, " 4"]]
) -> Float[np.ndarray, "s 4"]:
    """Return METRICS with the deviations of the samples subtracted.

    Args:
        values: METRICS of the dataset.
        samples: Those of each sample.
    """
    return 2 * values - np.reshape(samples, (-1, len(METRICS)))


def interval(samples: Float[np.ndarray, " s"]) -> list[float] | None:
    """Return the bounds of the middle 95% of a metric's values; None if all are NaN."""
    if np.isnan(samples).all():
        return None
    tail = (1 - CONFIDENCE) / 2
    return np.nanquantile(samples, [tail, 1 - tail]).tolist()


def _sums(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n1"]:
    """Return the sum of the values before each position, and at the end that of all."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])


def _difference(difference: float, samples: Float[np.ndarray, " s"]) -> dict[str, float | None]:
    """Return the difference of a metric with its interval, and how probably it is positive."""
    low, high = interval(samples) or (None, None)
    known = samples[~np.isnan(samples)]
    return {
        "difference": _defined(difference),
        "low": low,
        "high": high,
        "probability": float(np.sign(known).mean() + 1) / 2 if len(known) else None,
    }


def _defined(value: float) -> float | None:
    """Return the value, or None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)
