"""The detections of one image, as the Python API returns them.

`Detections` here is not `core.Detections`, the arrays of fixed size that compiled functions return:
those are padded, with a mask, and their boxes are yxyx.
"""

import dataclasses
import io
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Shaped, UInt8
from PIL import Image

from retinanet_jax import core, visualize
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.objects import id_array
from retinanet_jax.evaluation.coco_metrics import coco_results
from retinanet_jax.utils.packages import import_optional
from retinanet_jax.utils.progress import format_count

MAX_LISTED = 5  # detections that `repr` lists
NOTEBOOK_SIDE = 1024  # pixels: the longest side of an image that a notebook displays


class Detection(NamedTuple):
    """One detected object."""

    box: Float32[np.ndarray, "4"]  # x0, y0, x1, y1 in pixels of the image
    score: float
    class_name: str
    category_id: int  # the category's id in the dataset


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects detected in one image, best score first.

    `len(detections)` is their number; `detections[0]` and an iteration return each as a
    `Detection`. A notebook displays the image with its boxes.

    Attributes:
        image: RGB pixels, with the EXIF orientation applied.
        boxes: (x0, y0, x1, y1) in pixels of the image; the maximum is exclusive.
        scores: From 0 to 1, in descending order.
        classes: Indices into `categories`.
        categories: All categories of the detector.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    categories: tuple[Category, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each detection's category."""
        return tuple(self.categories[k].name for k in self.classes)

    @property
    def category_ids(self) -> Shaped[np.ndarray, " n"]:
        """The dataset's id of each detection's category, an integer of any size."""
        return id_array([self.categories[k].id for k in self.classes])

    def draw(self, threshold: float = 0.5) -> Image.Image:
        """Return the image with the boxes and labels of detections that score `threshold` or more.

        Args:
            threshold: The lowest score that is drawn.
        """
        confident = self.scores >= threshold
        names = itertools.compress(self.class_names, confident)
        labels = list(map(visualize.score_label, names, self.scores[confident]))
        boxes = np.asarray(core.xyxy_to_yxyx(self.boxes[confident]))
        return visualize.draw(self.image, boxes, labels, self.classes[confident])

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections in COCO's results format, as JSON stores them.

        Args:
            image_id: The dataset's id of the image.

        Returns:
            A dict for each detection: image_id, category_id, bbox (x, y, width, height) and score.
        """
        mask = np.ones(len(self), bool)
        boxes = core.xyxy_to_yxyx(self.boxes)
        detections = core.Detections(boxes, self.scores, self.classes, mask)
        return coco_results(detections, image_id, self.categories)

    def to_dict(self) -> dict[str, Any]:
        """Return the detections as values of JSON, without the image.

        Returns:
            The width and height of the image, and in "detections" a dict of each detection with the
            fields of `Detection`, of which `box` is x0, y0, x1, y1 in pixels of the image.
        """
        height, width = self.image.shape[:2]
        detections = [{**d._asdict(), "box": d.box.tolist()} for d in self]
        return {"width": width, "height": height, "detections": detections}

    def to_supervision(self) -> Any:
        """Return the detections as supervision's `Detections`, for its annotators and trackers.

        `class_id` is the index of the category; `data` has "class_name" and "category_id".

        Raises:
            ValueError: If supervision is not installed.
        """
        supervision = import_optional(
            "supervision", "to_supervision()", "retinanet-jax[supervision]"
        )
        names = np.array(self.class_names, str)
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.classes,
            data={"class_name": names, "category_id": self.category_ids},
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        columns = self.boxes, self.scores.tolist(), self.class_names, self.category_ids.tolist()
        return itertools.starmap(Detection, zip(*columns, strict=True))

    def __getitem__(self, index: int) -> Detection:
        return tuple(self)[index]

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        names = self.class_names[:MAX_LISTED]
        labels = list(map(visualize.score_label, names, self.scores))
        more = ", ..." if len(self) > MAX_LISTED else ""
        listed = f": {', '.join(labels)}{more}" if labels else ""
        count = format_count(len(self), "detection")
        return f"<{count} on {width} x {height} pixels{listed}>"

    def _repr_png_(self) -> bytes:
        image, png = self.draw(), io.BytesIO()
        image.thumbnail((NOTEBOOK_SIDE, NOTEBOOK_SIDE))
        image.save(png, "PNG")
        return png.getvalue()
