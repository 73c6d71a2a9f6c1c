"""Test-time augmentation: objects are detected in several views of an image, and then merged."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retinanet_jax import core
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.image_files import ImageLike, image_name
from retinanet_jax.data.sources.base import DatasetImage
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.detecting import WrappingDetector
from retinanet_jax.inference.fusion import weighted_box_fusion
from retinanet_jax.inference.merging import ScoredBoxes, class_wise_nms, concatenate
from retinanet_jax.inference.network_inputs import (
    PATIENCE,
    ScaledImage,
    check_images,
    read_pixels,
)
from retinanet_jax.inference.views import View
from retinanet_jax.utils.threads import map_ahead

if TYPE_CHECKING:
    from retinanet_jax.detector import Detector

MERGES = ("nms", "wbf")
DEFAULT_MERGE = "wbf"
# Boxes that are weak in one view count for the average, so each view has at least the limits of an
# evaluation; those of the detector apply to the merged detections.
VIEW_SCORE_THRESHOLD, VIEW_MAX_DETECTIONS = 0.05, 100


def check_merge(merge: str, views: Sequence[View], checkpoint: Checkpoint) -> None:
    """Check that the detections of views of an image can be merged by a method.

    Args:
        merge: The method.
        views: The views.
        checkpoint: The checkpoint of the detector.

    Raises:
        ValueError: If the method is unknown, or would remove what soft NMS retains.
    """
    if merge not in MERGES:
        raise ValueError(f"merge={merge!r} must be one of {', '.join(MERGES)}.")
    method = checkpoint.config.detections.nms
    if merge == "nms" and method != "hard" and len(views) > 1:
        raise ValueError(
            f"merge={merge!r} would remove the overlapping boxes that the checkpoint's "
            f"config.detections.nms={method} retains; merge by 'wbf'."
        )


def view_limits(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the limits, as `Detector` accepts them, with which each of several views is detected.

    Args:
        checkpoint: The checkpoint of the detector, with the limits of the merged detections.
    """
    detections = checkpoint.config.detections
    thresholds = checkpoint.score_thresholds or (detections.score_threshold,)
    return {
        "score_threshold": min(*thresholds, VIEW_SCORE_THRESHOLD),
        "max_detections": max(detections.max_detections, VIEW_MAX_DETECTIONS),
    }


class AugmentedDetector(WrappingDetector):
    """A detector that sees each image in several views; `Detector.augmented` returns it.

    Attributes:
        checkpoint: The checkpoint, with the limits of the merged detections in its config.
        views: The views, of which the first is the plain one.
        merge: How the detections of the views are merged: "nms" or "wbf".

    Args:
        detector: The detector, with the limits of the merged detections.
        of_views: A detector of the same checkpoint, with the limits of each view.
        views: The views, of which the first is the plain one.
        merge: As in `Detector.augmented`.
    """

    def __init__(
        self, detector: "Detector", of_views: "Detector", views: Sequence[View], merge: str
    ) -> None:
        check_merge(merge, views, detector.checkpoint)
        self.checkpoint, self.class_names = detector.checkpoint, detector.class_names
        self.views, self.merge = tuple(views), merge
        # The plain view needs no merging: its detections are the detector's, bit for bit.
        self._of_views = of_views if len(views) > 1 else detector
        self._class_mask = detector.class_mask
        limits = detector.checkpoint.config.detections
        thresholds = detector.checkpoint.score_thresholds
        if thresholds is None:
            thresholds = [limits.score_threshold] * len(self.class_names)
        self._thresholds = np.array(thresholds, np.float32)

    def batch_with_errors(
        self, images: Iterable[ImageLike | DatasetImage], batch_size: int = 8
    ) -> Iterator[Detections | ValueError]:
        """Do the same as `batch`, but return the error of an image that cannot be read or used.

        Args:
            images: The images, or those of a dataset.
            batch_size: The number of views that the network processes at once.

        Raises:
            ValueError: As `Detector.batch_with_errors`.
        """
        check_images(images, batch_size)
        # Both iterators have each image, which is read once: for its views, and its detections.
        read, awaited = itertools.tee(map_ahead(self._read, images))
        views = itertools.chain.from_iterable(map(self._views_of, read))
        outcomes = self._of_views.batch_with_errors(
            views, batch_size, patience=PATIENCE * len(self.views)
        )
        return (
            image
            if isinstance(image, ValueError)
            else self._merge(list(itertools.islice(outcomes, len(self.views))))
            for image in awaited
        )

    def _read(self, image: ImageLike | DatasetImage) -> ScaledImage | ValueError:
        """Return the plain view of an image, or the error of one that cannot be read."""
        pixels = read_pixels(image, self.checkpoint.config)
        if isinstance(pixels, ValueError):
            return pixels
        return ScaledImage(pixels, 1.0, image_name(image))

    def _views_of(self, image: ScaledImage | ValueError) -> Iterator[ScaledImage]:
        """Yield the views of an image; none if there is an error instead."""
        if isinstance(image, ValueError):
            return
        for view in self.views:
            name = image.filename if view == View() else f"{image.filename} (view {view.name})"
            yield ScaledImage(view.pixels(image.pixels), view.scale, name)

    def _merge(self, outcomes: Sequence[Detections | ValueError]) -> Detections | ValueError:
        """Return the detections of an image from those of its views, or the first error."""
        if errors := [outcome for outcome in outcomes if isinstance(outcome, ValueError)]:
            return errors[0]
        of_views = [outcome for outcome in outcomes if isinstance(outcome, Detections)]
        plain = of_views[0]
        if len(of_views) == 1:
            return plain
        size = plain.image.shape[:2]
        parts = [in_image(*pair, size) for pair in zip(self.views, of_views, strict=True)]
        limits = self.checkpoint.config.detections
        merged = merge_views(
            parts,
            self.merge,
            iou_threshold=limits.iou_threshold,
            class_agnostic=limits.class_agnostic,
        )
        confident = np.flatnonzero(merged.scores > self._thresholds[merged.classes])
        merged = merged.take(confident[: limits.max_detections])
        merged = merged.take(self._class_mask[merged.classes])
        return Detections(plain.image, *merged, plain.categories)


def in_image(view: View, detections: Detections, size: tuple[int, ...]) -> ScoredBoxes:
    """Return the detections of a view, with boxes in pixels of the image.

    Args:
        view: The view.
        detections: Its detections.
        size: The height and width of the image in pixels.
    """
    height, width = size
    boxes = np.asarray(core.xyxy_to_yxyx(detections.boxes))
    boxes = view.boxes_in_image(boxes, height, width)
    return ScoredBoxes(np.asarray(core.yxyx_to_xyxy(boxes)), detections.scores, detections.classes)


def merge_views(
    parts: Sequence[ScoredBoxes], merge: str, *, iou_threshold: float, class_agnostic: bool
) -> ScoredBoxes:
    """Return the detections of an image from those of its views, best score first.

    Args:
        parts: The boxes of each view, in pixels of the image.
        merge: "nms" or "wbf".
        iou_threshold: Boxes of one class with a higher IoU are the same object.
        class_agnostic: Whether boxes also suppress boxes of other classes; after "wbf", the
            averages do.
    """
    scored = concatenate(parts)
    if merge == "wbf":
        view = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
        scored = weighted_box_fusion(
            scored, view, num_views=len(parts), iou_threshold=iou_threshold
        )
        if not class_agnostic:
            return scored
    return class_wise_nms(scored, iou_threshold=iou_threshold, class_agnostic=class_agnostic)
