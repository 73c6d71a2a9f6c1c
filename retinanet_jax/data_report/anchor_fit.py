"""The fit of a config's anchors to a dataset, with proposals, and the findings about it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.anchor_choice import (
    BAD,
    AnchorChoice,
    EpochBoxes,
    anchor_sides,
    measure,
)
from retinanet_jax.data_report.findings import ERROR, INFO, MAX_EXAMPLES, WARNING, Finding, flags
from retinanet_jax.data_report.proposals import propose
from retinanet_jax.data_report.views import View, label_counts, make_matcher
from retinanet_jax.utils.progress import join_first, shorten

CONFIGURED = "configured"  # the name of the config's own anchors in a report


class AnchorFit(NamedTuple):
    """The coverage of the boxes by the configured anchors, and by proposals.

    Attributes:
        configured: The coverage of the config's anchors.
        proposals: The coverage of choices that cover notably more; the first to try is first.
        label_counts: The numbers of foreground, background and ignored anchors of each image.
        num_boxes: The number of boxes of each image.
    """

    configured: AnchorChoice
    proposals: tuple[AnchorChoice, ...]
    label_counts: Int[np.ndarray, "v 3"]
    num_boxes: Int[np.ndarray, " v"]


def fit_anchors(
    config: ConfigDict,
    source: Source,
    views: Sequence[View],
    parts: Mapping[str, Source],
    progress: Callable[[int], None],
) -> AnchorFit:
    """Measure the config's anchors and, if they miss too many boxes, search for better choices.

    Args:
        config: A run's config.
        source: The images of an epoch.
        views: The epoch, with at least one box.
        parts: All training and evaluation data; proposals have buckets for all of their images.
        progress: Called with the number of images matched so far.
    """
    configured = measure(CONFIGURED, {}, config, views, num_classes=len(source.categories))
    return AnchorFit(
        configured,
        propose(config, source, views, parts, configured),
        label_counts=count_labels(config, views, progress),
        num_boxes=np.array([len(view.boxes) for view in views]),
    )


def count_labels(
    config: ConfigDict, views: Sequence[View], progress: Callable[[int], None]
) -> Int[np.ndarray, "v 3"]:
    """Return the numbers of foreground, background and ignored anchors of each view.

    One program is compiled per bucket.

    Args:
        config: A run's config; its `anchors` and `matching` are used.
        views: The images of an epoch.
        progress: Called with the number of images matched so far.
    """
    counts = np.zeros((len(views), 3), np.int64)
    count = jax.jit(label_counts)
    done = 0
    for bucket in sorted({view.bucket for view in views}):
        match = make_matcher(config, bucket)
        for view_index, view in enumerate(views):
            if view.bucket == bucket:
                counts[view_index] = count(match(view).labels)
                done += 1
                progress(done)
    return counts


def check_coverage(config: ConfigDict, source: Source, fit: AnchorFit) -> Finding:
    """Report the boxes that no anchor overlaps by the foreground IoU, not counting forced matches.

    The worst category decides the severity, if it has enough boxes, or all boxes together do.

    Args:
        config: The config of the run.
        source: The dataset of the boxes.
        fit: The fit of the config's anchors to the dataset.
    """
    configured = fit.configured
    boxes, threshold = configured.boxes, config.matching.foreground_iou
    indices = np.flatnonzero(~boxes.covered)
    message = (
        f"{len(indices)} of {len(boxes.ious)} boxes ({configured.uncovered:.1%}) have no anchor at "
        f"IoU {threshold}"
    )
    if not configured.is_poor:
        return Finding(INFO, "coverage", message)
    poor = configured.classes.poor.tolist()
    if poor:
        message += f", of {join_first([_class_label(source, configured, k) for k in poor])}"
    message += f": {causes(config, boxes)}"
    advice = "no other anchors and no other image size were found that cover notably more"
    if fit.proposals:
        best = fit.proposals[0]
        advice = f"{flags(best.fields)} leaves {best.uncovered:.1%}"
        if poor:
            advice += f", of {join_first([_class_label(source, best, k) for k in poor])}"
        if len(fit.proposals) > 1:
            advice += "; other choices are in the table of anchors below"
    # The boxes of the categories that are judged poor come first.
    order = np.lexsort((boxes.ious[indices], ~np.isin(boxes.classes[indices], poor)))
    examples = tuple(
        _box_label(source, boxes, index) for index in indices[order[:MAX_EXAMPLES]].tolist()
    )
    severity = ERROR if configured.is_bad else WARNING
    return Finding(severity, "coverage", message, f"{advice}.", examples)


def check_foreground(fit: AnchorFit) -> Finding:
    """Report the mean numbers of foreground, background and ignored anchors per image."""
    foreground, background, ignored = fit.label_counts.mean(axis=0)
    divisor = max(foreground, 1e-9)
    without = int(((fit.label_counts[:, 0] == 0) & (fit.num_boxes > 0)).sum())
    message = (
        f"an image has on average {foreground:.1f} foreground, {background:.0f} background and "
        f"{ignored:.0f} ignored anchors (1 : {background / divisor:.0f} : {ignored / divisor:.1f})"
        f"; {without} images with boxes have no foreground anchor"
    )
    if not without:
        return Finding(INFO, "foreground", message)
    advice = "set --config.matching.low_quality=True, or choose anchors that cover more boxes."
    return Finding(WARNING, "foreground", message, advice)


def check_crops(views: Sequence[View]) -> Finding:
    """Report the boxes that the random crops of an epoch leave out."""
    dropped = sum(view.dropped for view in views)
    count = dropped + sum(len(view.boxes) for view in views)
    fraction = dropped / max(1, count)
    message = f"crops leave out {dropped} of {count} boxes ({fraction:.1%}) per epoch"
    if fraction <= BAD:
        return Finding(INFO, "crops", message)
    advice = "lower --config.data.min_visible or raise --config.data.crop_size."
    return Finding(WARNING, "crops", message, advice)


def check_any_box(views: Sequence[View]) -> Finding:
    """Report that an epoch has no box; the coverage of none is not known."""
    message = f"none of the {len(views)} sampled images has a box, so that no anchor is judged"
    advice = "sample more images: --max_images=0 takes all."
    if any(view.dropped for view in views):
        message = f"the crops of the {len(views)} sampled images leave out all boxes"
        advice = "lower --config.data.min_visible or raise --config.data.crop_size."
    return Finding(WARNING, "coverage", message, advice)


def typical_sides(choice: AnchorChoice, class_index: int) -> tuple[float, float] | None:
    """Return the median height and width of the boxes of a class in input pixels, if it has any."""
    sides = choice.boxes.sides[choice.boxes.classes == class_index]
    if not len(sides):
        return None
    height, width = np.median(sides, axis=0).tolist()
    return height, width


def causes(config: ConfigDict, boxes: EpochBoxes) -> str:
    """Return which of the uncovered boxes are smaller, larger or longer than the anchors.

    Args:
        config: The config with the anchors.
        boxes: The boxes, of which at least one is uncovered.
    """
    sides = boxes.sides[~boxes.covered]
    sizes, ratios = np.sqrt(sides.prod(axis=1)), sides[:, 0] / sides[:, 1]
    anchor_sizes, anchor_ratios = anchor_sides(config), config.anchors.ratios
    smallest, largest = anchor_sizes[0], anchor_sizes[-1]
    beyond = (ratios < min(anchor_ratios)) | (ratios > max(anchor_ratios))
    return (
        f"{(sizes < smallest).mean():.0%} of these are smaller than the smallest anchor "
        f"({smallest:.0f} px), {(sizes > largest).mean():.0%} larger than the largest "
        f"({largest:.0f} px), {beyond.mean():.0%} have an aspect ratio outside of anchors.ratios"
    )


def _class_label(source: Source, choice: AnchorChoice, class_index: int) -> str:
    """Return the name of a category, and how many of its boxes are uncovered."""
    boxes, uncovered = (counts[class_index] for counts in choice.classes)
    name = shorten(source.categories[class_index].name)
    return f"{name} {uncovered} of {boxes} ({uncovered / max(1, boxes):.1%})"


def _box_label(source: Source, boxes: EpochBoxes, index: int) -> str:
    """Return the image, the category, the size and the best IoU of a box."""
    height, width = boxes.sides[index]
    return (
        f"{shorten(source.file_name(int(boxes.image_index[index])))}: "
        f"{shorten(source.categories[boxes.classes[index]].name)}, "
        f"{height:.0f} high and {width:.0f} wide, IoU {boxes.ious[index]:.2f}"
    )
