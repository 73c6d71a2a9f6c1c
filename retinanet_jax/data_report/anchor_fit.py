"""The fit of a config's anchors to a dataset, and a search for anchors that cover more boxes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report import coverage
from retinanet_jax.data_report.coverage import Coverage, PlacedBoxes
from retinanet_jax.data_report.findings import ERROR, INFO, MAX_EXAMPLES, WARNING, Finding
from retinanet_jax.data_report.views import View, label_counts, make_matcher

MAX_SEARCH_BOXES = 10_000  # the largest number of boxes that the search for anchors uses
POOR, BAD = 0.05, 0.25  # fractions of boxes without an anchor from which it is a warning, an error
NOTABLE_GAIN = 0.01  # fraction of boxes that other anchors must cover in addition to be suggested


class EpochBoxes(NamedTuple):
    """The boxes of an epoch, in pixels of the network's input."""

    image_index: Int[np.ndarray, " n"]  # in the source
    classes: Int[np.ndarray, " n"]
    sides: Float[np.ndarray, "n 2"]  # height and width
    ious: Float[np.ndarray, " n"]  # of each box with the anchor that overlaps it most


class AnchorFit(NamedTuple):
    """The coverage of the boxes by the configured anchors and by suggested ones.

    Attributes:
        boxes: The boxes of an epoch.
        configured: The coverage of the config's anchors.
        suggested: The coverage of anchors that cover notably more boxes, if there are any: first
            with as many scales and ratios as configured, then with one more of either.
        label_counts: The numbers of foreground, background and ignored anchors of each image.
        num_boxes: The number of boxes of each image.
        dropped: The number of boxes of which crops leave less than the required fraction.
    """

    boxes: EpochBoxes
    configured: Coverage
    suggested: tuple[Coverage, ...]
    label_counts: Int[np.ndarray, "v 3"]
    num_boxes: Int[np.ndarray, " v"]
    dropped: int


def fit_anchors(
    config: ConfigDict, views: Sequence[View], progress: Callable[[int], None]
) -> AnchorFit:
    """Measure the config's anchors and, if they miss too many boxes, search for better ones.

    Args:
        config: A run's config; its `anchors` and `matching` are used.
        views: The images of an epoch.
        progress: Called with the number of images matched so far.
    """
    anchors = config.anchors
    boxes = np.concatenate([view.boxes for view in views])
    counts = [len(view.boxes) for view in views]
    buckets = np.repeat([view.bucket for view in views], counts, axis=0)
    sizes = np.repeat([view.size for view in views], counts, axis=0)
    placed = coverage.place_boxes(
        boxes,
        buckets,
        sizes if config.matching.ignore_padding else buckets,
        min_level=anchors.min_level,
        max_level=anchors.max_level,
        offset=anchors.offset,
        stride_rule=anchors.stride_rule,
    )
    ious = coverage.best_ious(placed, **anchor_shapes(config))
    configured = coverage.measure_coverage(
        ious, anchors.scales, anchors.ratios, threshold=config.matching.foreground_iou
    )
    epoch_boxes = EpochBoxes(
        image_index=np.repeat([view.index for view in views], counts),
        classes=np.concatenate([view.classes for view in views]),
        sides=boxes[:, 2:] - boxes[:, :2],
        ious=ious,
    )
    return AnchorFit(
        epoch_boxes,
        configured,
        suggest_anchors(config, placed, configured),
        label_counts=count_labels(config, views, progress),
        num_boxes=np.array(counts),
        dropped=sum(view.dropped for view in views),
    )


def anchor_shapes(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of config.anchors that describe shapes, not positions."""
    return {name: config.anchors[name] for name in ("base_scale", "scales", "ratios", "rounding")}


def suggest_anchors(
    config: ConfigDict, placed: PlacedBoxes, configured: Coverage
) -> tuple[Coverage, ...]:
    """Search for anchors that cover notably more boxes than the configured ones.

    The search is for as many scales and ratios as configured, and then, if these still miss too
    many boxes, for one more of either.

    Args:
        config: A run's config; its `anchors` and `matching` are used.
        placed: The boxes to cover.
        configured: The coverage of the config's anchors.
    """
    if configured.covered > 1 - POOR:
        return ()
    shapes, threshold = anchor_shapes(config), config.matching.foreground_iou
    subset = thin_out(placed, MAX_SEARCH_BOXES)

    def search(scales: Sequence[float], ratios: Sequence[float]) -> Coverage:
        changed = {**shapes, "scales": scales, "ratios": ratios}
        result = coverage.search_anchors(subset, **changed, threshold=threshold)
        # The coverage of all boxes, not only of those that the search used.
        changed |= {"scales": result.scales, "ratios": result.ratios}
        ious = coverage.best_ious(placed, **changed)
        return coverage.measure_coverage(ious, result.scales, result.ratios, threshold=threshold)

    best, suggested = configured, []
    same_number = search(configured.scales, configured.ratios)
    if same_number.covered > best.covered + NOTABLE_GAIN:
        best, suggested = same_number, [same_number]
    if best.covered <= 1 - POOR:
        scales, ratios = same_number.scales, same_number.ratios
        more_scales = search((*scales, scales[-1] * 1.5), ratios)
        more_ratios = search(scales, (*ratios, ratios[-1] * 1.5))
        extended = max(more_scales, more_ratios, key=lambda result: result.covered)
        if extended.covered > best.covered + NOTABLE_GAIN:
            suggested.append(extended)
    return tuple(suggested)


def thin_out(placed: PlacedBoxes, max_boxes: int) -> PlacedBoxes:
    """Return at most `max_boxes` of the boxes, evenly spread."""
    count = placed.sides.shape[1]
    indices = np.unique(np.linspace(0, count - 1, min(count, max_boxes)).astype(int))
    return placed._replace(
        sides=np.ascontiguousarray(placed.sides[:, indices]),
        distances=np.ascontiguousarray(placed.distances[:, :, indices]),
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

    Args:
        config: The config of the run.
        source: The dataset of the boxes.
        fit: The fit of the config's anchors to the dataset.
    """
    boxes, threshold = fit.boxes, config.matching.foreground_iou
    indices = np.flatnonzero(boxes.ious < threshold)
    fraction = len(indices) / len(boxes.ious)
    message = (
        f"{len(indices)} of {len(boxes.ious)} boxes ({fraction:.1%}) have no anchor at IoU "
        f"{threshold}"
    )
    if fraction <= POOR:
        return Finding(INFO, "coverage", message)
    anchor_sizes = anchor_sides(config)
    smallest, largest = anchor_sizes[0], anchor_sizes[-1]
    sizes = np.sqrt(boxes.sides[indices].prod(axis=1))
    ratios = boxes.sides[indices, 0] / boxes.sides[indices, 1]
    beyond = (ratios < min(config.anchors.ratios)) | (ratios > max(config.anchors.ratios))
    message += (
        f": {(sizes < smallest).mean():.0%} of these are smaller than the smallest anchor "
        f"({smallest:.0f} px), {(sizes > largest).mean():.0%} larger than the largest "
        f"({largest:.0f} px), {beyond.mean():.0%} have an aspect ratio outside of anchors.ratios"
    )
    advice = "no better scales and ratios were found"
    if fit.suggested:
        best = fit.suggested[-1]
        advice = f"{anchor_flags(best)} cover {best.covered:.1%} of the boxes"
    if (sizes < smallest).mean() > 0.5:
        advice += "; small boxes need larger images (--config.data.short_sides)"
    worst = indices[np.argsort(boxes.ious[indices], stable=True)[:MAX_EXAMPLES]]
    examples = tuple(_box_label(source, boxes, index) for index in worst.tolist())
    severity = ERROR if fraction > BAD else WARNING
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


def check_crops(fit: AnchorFit) -> Finding:
    """Report the boxes that the random crops of an epoch leave out."""
    count = fit.dropped + len(fit.boxes.ious)
    fraction = fit.dropped / count
    message = f"crops leave out {fit.dropped} of {count} boxes ({fraction:.1%}) per epoch"
    if fraction <= BAD:
        return Finding(INFO, "crops", message)
    advice = "lower --config.data.min_visible or raise --config.data.crop_size."
    return Finding(WARNING, "crops", message, advice)


def anchor_flags(anchors: Coverage) -> str:
    """Return the command-line flags that set these anchors in a run."""
    return f"--config.anchors.scales='{anchors.scales}' --config.anchors.ratios='{anchors.ratios}'"


def anchor_sides(config: ConfigDict) -> list[float]:
    """Return the square roots of the anchors' areas in pixels, smallest first."""
    levels = range(config.anchors.min_level, config.anchors.max_level + 1)
    return sorted(
        config.anchors.base_scale * 2**level * scale
        for level in levels
        for scale in config.anchors.scales
    )


def _box_label(source: Source, boxes: EpochBoxes, index: int) -> str:
    """Return the image, the category, the size and the best IoU of a box."""
    height, width = boxes.sides[index]
    return (
        f"{source.file_name(int(boxes.image_index[index]))}: "
        f"{source.categories[boxes.classes[index]].name}, "
        f"{height:.0f} high and {width:.0f} wide, IoU {boxes.ious[index]:.2f}"
    )
