"""Checks of a dataset's annotations; each `check_*` function returns one `Finding`.

The constants below are the limits from which a measured number becomes a warning or an error.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.conventions import recognize_convention
from retinanet_jax.data.sources.objects import OUTSIDE_TOLERANCE, clip_to_image
from retinanet_jax.data_report.findings import (
    ERROR,
    INFO,
    MAX_EXAMPLES,
    WARNING,
    Finding,
    first_examples,
)

DUPLICATE_IOU = 0.95  # two boxes with at least this IoU are taken to mark the same object
ERROR_FRACTION = 0.01  # of the boxes: if more are invalid, the finding is an error
MANY_EMPTY = 0.5  # fraction of the images
RARE = 10  # boxes
# The threshold of repetitions to advise: at most this fraction, and at most this number of images.
# Of 100,000 images that is LVIS's; .1 would repeat most of them, and the only image of a category a
# hundred times.
MAX_THRESHOLD, FEW_IMAGES = 0.1, 100


class AnnotatedBoxes(NamedTuple):
    """All annotations of a dataset, including those that training ignores."""

    ids: Shaped[np.ndarray, " n"]  # integers of any size
    image_index: Int[np.ndarray, " n"]  # index in the source
    classes: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]  # yxyx in original pixels, clipped to the image
    outside: Float[np.ndarray, " n"]  # pixels by which the unclipped box exceeded its image
    empty_mask: Bool[np.ndarray, " n"]  # no area is left after clipping
    crowd_mask: Bool[np.ndarray, " n"]

    @property
    def object_mask(self) -> Bool[np.ndarray, " n"]:
        """Whether each annotation is trained on as an object."""
        return ~self.empty_mask & ~self.crowd_mask


def read_boxes(source: Source) -> AnnotatedBoxes:
    """Return all annotations of `source`, including the boxes without area."""
    objects = source.objects
    clipped, has_area, _ = clip_to_image(objects.boxes, source.sizes[objects.image_index])
    return AnnotatedBoxes(
        ids=objects.ids,
        image_index=objects.image_index,
        classes=objects.classes,
        boxes=clipped,
        outside=np.abs(clipped - objects.boxes).max(axis=1, initial=0),
        empty_mask=~has_area,
        crowd_mask=objects.crowd,
    )


def check_content(source: Source, boxes: AnnotatedBoxes) -> Finding:
    """Report the numbers of images, boxes and categories; a dataset without a box is an error."""
    message = f"{len(source)} images, {len(boxes.ids)} boxes, {len(source.categories)} categories"
    if boxes.object_mask.any():
        return Finding(INFO, "content", message)
    advice = "check the file of annotations: nothing can be learned from it, and AP is undefined."
    return Finding(ERROR, "content", message, advice)


def check_convention(source: Source) -> Finding:
    """Report boxes in another convention than that of their format."""
    convention = recognize_convention(source)
    if convention is None:
        return Finding(INFO, "box convention", "the boxes are in the convention of their format")
    severity = ERROR if convention.is_certain else WARNING
    return Finding(severity, "box convention", convention.message, f"{convention.advice}.")


def check_categories(source: Source, boxes: AnnotatedBoxes) -> Finding:
    """Report the categories without a box and those with fewer than `RARE`."""
    counts = np.bincount(boxes.classes[boxes.object_mask], minlength=len(source.categories))
    counted = list(zip(source.categories, counts, strict=True))
    without = [_category_label(category) for category, count in counted if not count]
    rare = [
        f"{_category_label(category)}: {count}" for category, count in counted if 0 < count < RARE
    ]
    if not without and not rare:
        message = f"each of {len(counts)} categories has {RARE} boxes or more"
        return Finding(INFO, "categories", message)
    message = f"{len(without)} of {len(counts)} categories have no box, "
    message += f"{len(rare)} have fewer than {RARE}"
    advice = "add images of these categories, or remove them: they cannot be learned well"
    if rare:
        threshold = min(MAX_THRESHOLD, FEW_IMAGES / len(source))
        advice += f"; --config.data.repeat_threshold={threshold:.1g} repeats their training images"
    return Finding(WARNING, "categories", message, f"{advice}.", first_examples([*without, *rare]))


def check_empty_images(source: Source, boxes: AnnotatedBoxes) -> Finding:
    """Report the images without an object."""
    empty = np.ones(len(source), bool)
    empty[boxes.image_index[boxes.object_mask]] = False
    fraction = float(empty.mean())
    message = f"{empty.sum()} of {len(source)} images ({fraction:.1%}) have no object"
    if fraction <= MANY_EMPTY:
        return Finding(INFO, "empty images", message)
    advice = "make sure that no annotations are missing; only background is learned from these."
    names = first_examples(source.file_name(index) for index in np.flatnonzero(empty).tolist())
    return Finding(WARNING, "empty images", message, advice, names)


def check_crowd_regions(
    source: Source, boxes: AnnotatedBoxes, *, crowd_ioa: float | None
) -> Finding:
    """Report the crowd regions; they are a warning if matching does not ignore anchors in them.

    Args:
        source: The dataset.
        boxes: Its annotations.
        crowd_ioa: The config's matching.crowd_ioa; None if matching disregards crowd regions.
    """
    indices = np.flatnonzero(boxes.crowd_mask)
    fraction = len(indices) / max(1, len(boxes.ids))
    message = f"{len(indices)} of {len(boxes.ids)} boxes ({fraction:.1%}) are crowd regions"
    if not len(indices) or crowd_ioa is not None:
        return Finding(INFO, "crowd regions", message)
    advice = (
        "objects in them are trained as background; --config.matching.crowd_ioa=0.5 ignores them."
    )
    examples = _annotation_labels(source, boxes, indices)
    return Finding(WARNING, "crowd regions", message, advice, examples)


def check_boxes_without_area(source: Source, boxes: AnnotatedBoxes) -> Finding:
    """Report boxes without width or height and boxes entirely outside of their image."""
    indices = np.flatnonzero(boxes.empty_mask)
    message = f"{len(indices)} of {len(boxes.ids)} boxes have no area inside their image"
    advice = "remove or correct them: training ignores them, and AP counts each as missed."
    examples = _annotation_labels(source, boxes, indices)
    return _invalid_boxes("boxes without area", message, advice, boxes, len(indices), examples)


def check_boxes_outside(source: Source, boxes: AnnotatedBoxes) -> Finding:
    """Report boxes that extend beyond their image by more than `OUTSIDE_TOLERANCE` pixels."""
    indices = np.flatnonzero((boxes.outside > OUTSIDE_TOLERANCE) & ~boxes.empty_mask)
    message = f"{len(indices)} of {len(boxes.ids)} boxes extend beyond their image by over a pixel"
    advice = "make sure that they were annotated on images of this size; training clips them."
    examples = _annotation_labels(source, boxes, indices)
    return _invalid_boxes("boxes outside", message, advice, boxes, len(indices), examples)


def duplicate_pairs(boxes: AnnotatedBoxes) -> Int[np.ndarray, "p 2"]:
    """Return the pairs of objects of one image with an IoU of `DUPLICATE_IOU` or more."""
    indices = np.flatnonzero(boxes.object_mask)
    indices = indices[np.argsort(boxes.image_index[indices], stable=True)]
    starts = np.flatnonzero(np.diff(boxes.image_index[indices])) + 1
    pairs = [np.zeros((0, 2), np.int64)]
    for group in np.split(indices, starts):
        first, second = np.nonzero(np.triu(_ious(boxes.boxes[group]) >= DUPLICATE_IOU, k=1))
        pairs.append(np.stack([group[first], group[second]], axis=1))
    return np.concatenate(pairs)


def check_duplicate_boxes(
    source: Source, boxes: AnnotatedBoxes, pairs: Int[np.ndarray, "p 2"]
) -> Finding:
    """Report objects that are annotated twice with the same class.

    Args:
        source: The dataset.
        boxes: Its annotations.
        pairs: The pairs that `duplicate_pairs` returns.
    """
    pairs = pairs[boxes.classes[pairs[:, 0]] == boxes.classes[pairs[:, 1]]]
    count = len(np.unique(pairs[:, 1]))
    message = f"{count} of {len(boxes.ids)} boxes repeat another box of their class"
    advice = "keep one of each pair: NMS leaves only one, and AP counts the other as missed."
    examples = _pair_labels(source, boxes, pairs)
    return _invalid_boxes("duplicate boxes", message, advice, boxes, count, examples)


def check_boxes_of_two_classes(
    source: Source, boxes: AnnotatedBoxes, pairs: Int[np.ndarray, "p 2"]
) -> Finding:
    """Report objects that are annotated with two classes.

    Args:
        source: The dataset.
        boxes: Its annotations.
        pairs: The pairs that `duplicate_pairs` returns.
    """
    pairs = pairs[boxes.classes[pairs[:, 0]] != boxes.classes[pairs[:, 1]]]
    count = len(np.unique(pairs[:, 1]))
    message = f"{count} of {len(boxes.ids)} boxes are also annotated as another class"
    advice = "keep one class: anchors are matched to only one, and learn that the other is absent."
    examples = _pair_labels(source, boxes, pairs)
    return _invalid_boxes("boxes of two classes", message, advice, boxes, count, examples)


def check_same_categories(train: Source, evaluation: Source) -> Finding:
    """Report the categories (id and name) that only one of the two datasets has."""
    if train.categories == evaluation.categories:
        message = "train and eval list the same categories"
        return Finding(INFO, "categories of both", message)
    differing = sorted(set(train.categories) ^ set(evaluation.categories))
    message = f"{len(differing)} categories (id and name) are in only one of train and eval"
    advice = "use the same list in both: otherwise training with evaluation raises an error."
    examples = first_examples(map(_category_label, differing))
    return Finding(ERROR, "categories of both", message, advice, examples)


def check_untrained_categories(
    train: Source, train_boxes: AnnotatedBoxes, evaluation: Source, eval_boxes: AnnotatedBoxes
) -> Finding:
    """Report the categories that have boxes in the evaluation data but none in the training data.

    Args:
        train: The training data.
        train_boxes: Its annotations.
        evaluation: The evaluation data.
        eval_boxes: Its annotations.
    """
    trained = _categories_with_boxes(train, train_boxes)
    evaluated = _categories_with_boxes(evaluation, eval_boxes)
    missing = sorted(evaluated - trained)
    message = f"{len(missing)} of {len(evaluated)} categories with boxes in eval have none in train"
    if not missing:
        return Finding(INFO, "untrained categories", message)
    advice = "their AP will be 0: add them to train."
    return Finding(ERROR, "untrained categories", message, advice, first_examples(missing))


def _invalid_boxes(
    subject: str,
    message: str,
    advice: str,
    boxes: AnnotatedBoxes,
    count: int,
    examples: tuple[str, ...],
) -> Finding:
    """Return a finding about invalid boxes: a few are a warning, many are an error."""
    if not count:
        return Finding(INFO, subject, message)
    severity = ERROR if count > ERROR_FRACTION * len(boxes.ids) else WARNING
    return Finding(severity, subject, message, advice, examples)


def _ious(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n n"]:
    """Return the pairwise IoU of boxes that have an area."""
    low = np.maximum(boxes[:, None, :2], boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return shared / (areas[:, None] + areas - shared)


def _categories_with_boxes(source: Source, boxes: AnnotatedBoxes) -> set[str]:
    """Return the names of the categories with at least one object."""
    return {source.categories[k].name for k in np.unique(boxes.classes[boxes.object_mask])}


def _annotation_labels(
    source: Source, boxes: AnnotatedBoxes, indices: Int[np.ndarray, " r"]
) -> tuple[str, ...]:
    """Return for each annotation its image, id and category."""
    return tuple(
        f"{source.file_name(int(boxes.image_index[index]))}: annotation {boxes.ids[index]} "
        f"({source.categories[boxes.classes[index]].name})"
        for index in indices[:MAX_EXAMPLES]
    )


def _pair_labels(
    source: Source, boxes: AnnotatedBoxes, pairs: Int[np.ndarray, "p 2"]
) -> tuple[str, ...]:
    return tuple(
        _pair_label(source, boxes, first, second) for first, second in pairs[:MAX_EXAMPLES].tolist()
    )


def _pair_label(source: Source, boxes: AnnotatedBoxes, first: int, second: int) -> str:
    """Return the image, the ids and the categories of two of its annotations."""
    names = [source.categories[boxes.classes[index]].name for index in (first, second)]
    both = names[0] if names[0] == names[1] else " and ".join(names)
    return (
        f"{source.file_name(int(boxes.image_index[first]))}: annotations {boxes.ids[first]} and "
        f"{boxes.ids[second]} ({both})"
    )


def _category_label(category: Category) -> str:
    return f"{category.id} {category.name}"
