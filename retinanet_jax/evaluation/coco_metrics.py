"""COCO average precision (https://arxiv.org/abs/1405.0312), computed by pycocotools or hotcoco.

pycocotools is the reference: every other evaluator must reproduce its numbers bit for bit. The
table comes from pycocotools, whichever evaluator computed the precision.
"""

import contextlib
import importlib.util
import io
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from retinanet_jax import core
from retinanet_jax.config import choose
from retinanet_jax.data.sources.base import Category

# pycocotools' twelve numbers, in its order.
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
# The fields from which the AP of boxes is computed. The evaluators get only these; otherwise they
# would also read polygons and any other fields of a user's file.
BOX_FIELDS = {
    "images": ("id",),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
}
REFERENCE_EVALUATOR = "pycocotools"


class CocoApi(NamedTuple):
    """pycocotools' two classes, or the equivalent ones of another package."""

    COCO: Any
    COCOeval: Any


class ThreadOutput(io.StringIO):
    """Collects what the thread that makes it prints, and forwards what other threads print.

    It is given to `redirect_stdout`, which otherwise redirects the output of all threads: the
    progress lines of training would be lost while a thread computes AP.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread, self._others = threading.get_ident(), sys.stdout

    def write(self, text: str) -> int:
        """Write a text to this object or, from another thread, to the previous output."""
        if threading.get_ident() == self._thread:
            return super().write(text)
        return self._others.write(text)

    def flush(self) -> None:
        """Flush the output of the other threads."""
        self._others.flush()


def coco_results(
    detections: core.Detections, image_id: int, categories: Sequence[Category]
) -> list[dict[str, Any]]:
    """Return the detections of one image in COCO's results format.

    Args:
        detections: The detections of one image, without a batch axis.
        image_id: The dataset's id of the image.
        categories: The detector's categories; class k is `categories[k]`.

    Returns:
        A dict for each detection, with the dataset's category id and an xywh box.
    """
    boxes, scores, classes, mask = (np.asarray(field) for field in detections)
    # In numpy: the device is busy with the next batch, and jax would queue behind it.
    xywh_boxes = core.yxyx_to_xywh(boxes[mask])
    return [
        {
            "image_id": image_id,
            "category_id": categories[class_index].id,
            "bbox": box,
            "score": score,
        }
        for class_index, box, score in zip(
            classes[mask].tolist(), xywh_boxes.tolist(), scores[mask].tolist(), strict=True
        )
    ]


def coco_api(evaluator: str) -> CocoApi:
    """Return the package that computes AP.

    Args:
        evaluator: "pycocotools", "hotcoco", or "auto" for hotcoco if it is installed
            (config.evaluator); both compute the same numbers.

    Raises:
        ValueError: If `evaluator` is unknown or not installed.
    """

    def pycocotools() -> CocoApi:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return CocoApi(COCO, COCOeval)

    def hotcoco() -> CocoApi:
        try:
            from hotcoco import COCO, COCOeval
        except ImportError as error:
            raise ValueError(
                f"evaluator='hotcoco' cannot be imported ({error}); run `pip install hotcoco`, or "
                "use --config.evaluator=pycocotools."
            ) from None
        return CocoApi(COCO, COCOeval)

    auto = hotcoco if importlib.util.find_spec("hotcoco") else pycocotools
    apis = {"auto": auto, "pycocotools": pycocotools, "hotcoco": hotcoco}
    return choose("evaluator", evaluator, apis)()


def coco_metrics(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    evaluator: str = REFERENCE_EVALUATOR,
) -> tuple[dict[str, Any], str]:
    """Return COCO's metrics over all images of the ground truth, and pycocotools' table of them.

    Args:
        ground_truth: A COCO instances dict; it is not changed.
        results: Detections in COCO's results format; they are not changed.
        evaluator: "pycocotools", "hotcoco" or "auto" (config.evaluator).

    Returns:
        A dict of the twelve METRICS and "AP_by_category" (category name -> AP), and the table as
        text. A metric is None if it is undefined because there is no ground truth.

    Raises:
        ValueError: If `evaluator` is unknown or not installed.
    """
    api = coco_api(evaluator)
    ground_truth = keep_box_fields(ground_truth)
    with contextlib.redirect_stdout(ThreadOutput()):
        truth = api.COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        # loadRes changes its argument's dicts. It also rejects an empty list, which is the right
        # result of an untrained model.
        detections = truth.loadRes([dict(result) for result in results]) if results else api.COCO()
        evaluation = api.COCOeval(truth, detections, "bbox")
        evaluation.params.imgIds = sorted(truth.getImgIds())
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    numbers, table = summarize(curves)
    metrics: dict[str, Any] = dict(zip(METRICS, map(none_if_undefined, numbers), strict=True))
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    # precision: T IoU thresholds, R recalls, K categories, area ranges, detection limits
    precision = curves["precision"][:, :, :, 0, -1]  # T R K
    metrics["AP_by_category"] = {
        names[category_id]: none_if_undefined(np.mean(precision[:, :, k]))
        for k, category_id in enumerate(evaluation.params.catIds)
    }
    return metrics, table


def summarize(curves: dict[str, Any]) -> tuple[Float[np.ndarray, " 12"], str]:
    """Return the numbers of METRICS and their table, as pycocotools summarizes them.

    Args:
        curves: Precision and recall, `COCOeval.eval` of any evaluator after `accumulate`.
    """
    from pycocotools.cocoeval import COCOeval

    summary: Any = COCOeval(iouType="bbox")
    summary.eval = curves
    with contextlib.redirect_stdout(ThreadOutput()) as printed:
        summary.summarize()
    return np.asarray(summary.stats), printed.getvalue().rstrip()


def keep_box_fields(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a COCO instances dict with only BOX_FIELDS and new annotation ids from 1.

    The ids must not contain 0: pycocotools treats a match with annotation 0 as no match.
    """
    content = {
        section: [{field: entry[field] for field in fields} for entry in ground_truth[section]]
        for section, fields in BOX_FIELDS.items()
    }
    for annotation_id, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = annotation_id
    return content


def none_if_undefined(value: float) -> float | None:
    """Return the value, or None (JSON's null) for the -1 that pycocotools has if undefined."""
    return None if value < 0 else float(value)
