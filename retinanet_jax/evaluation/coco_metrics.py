"""COCO average precision, computed by pycocotools or hotcoco."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from retinanet_jax import core
from retinanet_jax.config import choose
from retinanet_jax.data.sources.base import Category

# pycocotools' twelve numbers, in its order.
METRICS = (
    ("AP", "AP50", "AP75", "APs", "APm", "APl")
    + ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
)  # fmt: skip
# What AP of boxes is computed from. Packages that read polygons are spared them, and what else
# people write into their files.
SECTIONS = {
    "images": ("id",),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
}
REFERENCE = "pycocotools"  # whose numbers those of any other evaluator must be


class CocoApi(NamedTuple):
    """pycocotools' two classes, or another package's that do the same."""

    COCO: Any
    COCOeval: Any


def coco_results(
    detections: core.Detections, image_id: int, categories: Sequence[Category]
) -> list[dict[str, Any]]:
    """One picture's detections in COCO's results format: original category ids, xywh boxes."""
    boxes, scores, classes, mask = (np.asarray(field) for field in detections)
    # In numpy: the device is busy with the next batch, and jax would queue behind it.
    found = core.yxyx_to_xywh(boxes[mask])
    return [
        {
            "image_id": image_id,
            "category_id": categories[number].id,
            "bbox": box,
            "score": score,
        }
        for number, box, score in zip(
            classes[mask].tolist(), found.tolist(), scores[mask].tolist(), strict=True
        )
    ]


def coco_api(evaluator: str) -> CocoApi:
    """The package that computes AP, by its name in config.evaluator; both give the same numbers.

    Raises ValueError where there is none of this name or it is not installed.
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
                f"evaluator='hotcoco' cannot be imported here ({error}); pip install hotcoco, or "
                "do without it: --config.evaluator=pycocotools."
            ) from None
        return CocoApi(COCO, COCOeval)

    return choose("evaluator", evaluator, {"pycocotools": pycocotools, "hotcoco": hotcoco})()


def coco_metrics(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], evaluator: str = REFERENCE
) -> tuple[dict[str, Any], str]:
    """pycocotools' numbers over all images, and its table.

    Args:
        ground_truth: a COCO instances dict.
        results: detections in COCO's results format.
        evaluator: who computes them, as config.evaluator names it.

    Returns:
        The twelve METRICS and "AP_by_category" (name -> AP; None where a number is undefined,
        for want of ground truth), and the printed table.
    """
    api = coco_api(evaluator)
    ground_truth = essentials(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = api.COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        # loadRes writes into what it is given, and refuses an empty list, the right answer of an
        # untrained model.
        found = truth.loadRes([dict(result) for result in results]) if results else api.COCO()
        evaluation = api.COCOeval(truth, found, "bbox")
        evaluation.params.imgIds = sorted(truth.getImgIds())
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    numbers, table = summarized(curves)
    metrics: dict[str, Any] = dict(zip(METRICS, map(defined, numbers), strict=True))
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    # precision: T iou thresholds, R recalls, K categories, area ranges, detection limits
    precision = curves["precision"][:, :, :, 0, -1]  # T R K
    metrics["AP_by_category"] = {
        names[category]: defined(np.mean(precision[:, :, k]))
        for k, category in enumerate(evaluation.params.catIds)
    }
    return metrics, table


def summarized(curves: dict[str, Any]) -> tuple[Float[np.ndarray, " 12"], str]:
    """The numbers of METRICS and the table that pycocotools makes of precision and recall.

    Its own words, whoever computed the curves.
    """
    from pycocotools.cocoeval import COCOeval

    summary = COCOeval(iouType="bbox")
    summary.eval = curves
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        summary.summarize()
    return np.asarray(summary.stats), printed.getvalue().rstrip()


def essentials(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """A copy of what SECTIONS names, annotations numbered from 1.

    pycocotools takes a match with annotation 0 for none.
    """
    content = {
        section: [{name: one[name] for name in names} for one in ground_truth[section]]
        for section, names in SECTIONS.items()
    }
    for number, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = number
    return content


def defined(value: float) -> float | None:
    """pycocotools says -1 where a number is undefined; JSON says null."""
    return None if value < 0 else float(value)
