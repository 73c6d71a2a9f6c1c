"""A choice of anchors and image sizes, measured: how well it covers the boxes of each category.

The constants below are the limits from which a coverage is a warning or an error. Each category is
judged, so that many covered boxes of others do not hide a rare one that anchors do not cover.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from ml_collections import ConfigDict

from retinanet_jax.config import anchors_per_cell
from retinanet_jax.data_report import coverage
from retinanet_jax.data_report.coverage import PlacedBoxes
from retinanet_jax.data_report.views import View

POOR, BAD = 0.05, 0.25  # fractions of all boxes without an anchor: a warning above, an error above
# The same of the boxes of a category; the worst of many categories has more than all boxes have.
CATEGORY_POOR, CATEGORY_BAD = 0.25, 0.5
# A category with fewer boxes is judged as if it had this many and the others had an anchor, because
# one or two boxes prove little.
ENOUGH = 10


class EpochBoxes(NamedTuple):
    """The boxes of an epoch, in pixels of the network's input."""

    image_index: Int[np.ndarray, " n"]  # in the source
    classes: Int[np.ndarray, " n"]
    sides: Float[np.ndarray, "n 2"]  # height and width
    ious: Float32[np.ndarray, " n"]  # of each box with the anchor that overlaps it most
    covered: Bool[np.ndarray, " n"]  # whether that is at least the foreground IoU


class ClassCounts(NamedTuple):
    """The boxes of each class."""

    boxes: Int[np.ndarray, " K"]
    uncovered: Int[np.ndarray, " K"]

    @property
    def fractions(self) -> Float[np.ndarray, " K"]:
        """The fraction of uncovered boxes of each class; NaN for a class without a box."""
        return np.where(self.boxes > 0, self.uncovered / np.maximum(self.boxes, 1), np.nan)

    @property
    def judged(self) -> Float[np.ndarray, " K"]:
        """The fraction by which each class is judged; see ENOUGH."""
        return self.uncovered / np.maximum(self.boxes, ENOUGH)

    @property
    def worst_first(self) -> Int[np.ndarray, " u"]:
        """The classes with uncovered boxes, the worst first."""
        order = np.lexsort((-self.uncovered, -self.judged))
        return order[self.uncovered[order] > 0]

    @property
    def poor(self) -> Int[np.ndarray, " p"]:
        """The classes that too many uncovered boxes belong to, the worst first."""
        order = self.worst_first
        return order[self.judged[order] > CATEGORY_POOR]


class AnchorChoice(NamedTuple):
    """A choice of anchors and image sizes, and its coverage of the boxes of an epoch.

    Attributes:
        name: Its name in the report.
        fields: The values of the config fields that it changes, by their dotted names.
        boxes: The boxes; another image size changes them.
        classes: Their numbers by class.
        anchors_per_image: The mean number of anchors, to which the cost of an image is about
            proportional.
    """

    name: str
    fields: dict[str, Any]
    boxes: EpochBoxes
    classes: ClassCounts
    anchors_per_image: float

    @property
    def uncovered(self) -> float:
        """The fraction of the boxes that no anchor overlaps by the foreground IoU."""
        return float((~self.boxes.covered).mean())

    @property
    def mean_iou(self) -> float:
        """The mean over the boxes of the IoU with the anchor that overlaps them most."""
        return float(self.boxes.ious.mean())

    @property
    def is_poor(self) -> bool:
        """Whether too many boxes, or too many of a category, have no anchor."""
        return self.uncovered > POOR or len(self.classes.poor) > 0

    @property
    def is_bad(self) -> bool:
        """Whether the boxes without an anchor are an error."""
        return self.uncovered > BAD or self.classes.judged.max() > CATEGORY_BAD


def measure(
    name: str,
    fields: Mapping[str, Any],
    config: ConfigDict,
    views: Sequence[View],
    *,
    num_classes: int,
) -> AnchorChoice:
    """Return the coverage of the boxes of an epoch by the anchors of a config.

    Args:
        name: The name of the choice.
        fields: The fields in which `config` differs from the config of the run.
        config: The config with these fields; its `anchors` and `matching` are used.
        views: The images of an epoch with this config, with at least one box.
        num_classes: The number of classes.
    """
    ious = coverage.best_ious(place_views(config, views), **anchor_shapes(config))
    counts = [len(view.boxes) for view in views]
    corners = np.concatenate([view.boxes for view in views]).astype(np.float64)
    boxes = EpochBoxes(
        image_index=np.repeat([view.index for view in views], counts),
        classes=np.concatenate([view.classes for view in views]),
        sides=corners[:, 2:] - corners[:, :2],
        ious=ious,
        covered=ious >= config.matching.foreground_iou,
    )
    count = functools.partial(np.bincount, minlength=num_classes)
    classes = ClassCounts(count(boxes.classes), count(boxes.classes[~boxes.covered]))
    return AnchorChoice(name, dict(fields), boxes, classes, anchors_per_image(config, views))


def place_views(config: ConfigDict, views: Sequence[View]) -> PlacedBoxes:
    """Return the boxes of an epoch with their distances to the grid of a config's anchors."""
    counts = [len(view.boxes) for view in views]
    return place(
        config,
        np.concatenate([view.boxes for view in views]),
        buckets=np.repeat([view.bucket for view in views], counts, axis=0),
        sizes=np.repeat([view.size for view in views], counts, axis=0),
    )


def place(
    config: ConfigDict,
    boxes: Float[np.ndarray, "n 4"],
    *,
    buckets: Int[np.ndarray, "n 2"],
    sizes: Int[np.ndarray, "n 2"],
) -> PlacedBoxes:
    """Return boxes with their distances to the grid of a config's anchors.

    Args:
        config: A run's config; its `anchors` and `matching` are used.
        boxes: yxyx in pixels of the network's input.
        buckets: (H, W) of the bucket of each box's image.
        sizes: Height and width of each box's image inside the bucket.
    """
    anchors = config.anchors
    return coverage.place_boxes(
        boxes,
        buckets,
        sizes if config.matching.ignore_padding else buckets,
        min_level=anchors.min_level,
        max_level=anchors.max_level,
        offset=anchors.offset,
        stride_rule=anchors.stride_rule,
    )


def anchor_shapes(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of config.anchors that describe shapes, not positions."""
    return {name: config.anchors[name] for name in ("base_scale", "scales", "ratios", "rounding")}


def anchor_sides(config: ConfigDict) -> list[float]:
    """Return the square roots of the anchors' areas in pixels, smallest first."""
    levels = range(config.anchors.min_level, config.anchors.max_level + 1)
    return sorted(
        config.anchors.base_scale * 2**level * scale
        for level in levels
        for scale in config.anchors.scales
    )


def anchors_per_image(config: ConfigDict, views: Sequence[View]) -> float:
    """Return the mean number of anchors of an image in its bucket."""
    buckets = np.array([view.bucket for view in views])
    levels = range(config.anchors.min_level, config.anchors.max_level + 1)
    cells = sum((-(-buckets // 2**level)).prod(axis=1) for level in levels)
    return float(np.mean(cells)) * anchors_per_cell(config)
