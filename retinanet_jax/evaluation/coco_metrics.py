"""COCO average precision (https://arxiv.org/abs/1405.0312), computed by pycocotools or hotcoco.

pycocotools is the reference: every other evaluator must reproduce its numbers bit for bit. The
table comes from pycocotools, whichever evaluator computed the precision.

COCO's AP counts only the 100 best detections of each category in each image. If a detector returns
more, the same metrics of all its detections are given next to COCO's.
"""

import collections
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
from retinanet_jax.data.sources.dense_images import COCO_DETECTIONS
from retinanet_jax.utils.packages import import_optional

# pycocotools' twelve numbers, in its order.
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
# How many detections of a category in an image AR1, AR10 and all other METRICS count.
COCO_LIMITS = (1, 10, COCO_DETECTIONS)
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
        api = import_optional(
            "hotcoco",
            "evaluator='hotcoco'",
            "retinanet-jax[fast]",
            "give --config.evaluator=pycocotools",
        )
        return CocoApi(api.COCO, api.COCOeval)

    auto = hotcoco if importlib.util.find_spec("hotcoco") else pycocotools
    apis = {"auto": auto, "pycocotools": pycocotools, "hotcoco": hotcoco}
    return choose("evaluator", evaluator, apis)()


def coco_metrics(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    evaluator: str = REFERENCE_EVALUATOR,
    *,
    max_detections: int = COCO_DETECTIONS,
) -> tuple[dict[str, Any], str]:
    """Return COCO's metrics over all images of the ground truth, and pycocotools' table of them.

    Args:
        ground_truth: A COCO instances dict; it is not changed. The ids may be any integers.
        results: Detections in COCO's results format; they are not changed.
        evaluator: "pycocotools", "hotcoco" or "auto" (config.evaluator).
        max_detections: N, the largest number of detections of an image
            (config.detections.max_detections). COCO's metrics count 100 of a category.

    Returns:
        A dict of the twelve METRICS; of AP_maxN, AP50_maxN and AR_maxN, which count N detections of
        a category in an image, if N is more than 100; of "AP_by_category" (category name -> AP);
        and of "categories" (see `category_metrics`). And the table as text. A metric is None if it
        is undefined because there is no ground truth.

    Raises:
        ValueError: If `evaluator` is unknown or not installed, or if an image or a category of the
            results is not in the ground truth.
    """
    api = coco_api(evaluator)
    ground_truth, results = renumber(ground_truth, results)
    counts_more = max_detections > COCO_DETECTIONS
    with contextlib.redirect_stdout(ThreadOutput()):
        truth = api.COCO()
        truth.dataset = with_plain_names(ground_truth)
        truth.createIndex()
        # loadRes rejects an empty list, which is the right result of an untrained model.
        detections = truth.loadRes(results) if results else api.COCO()
        evaluation = api.COCOeval(truth, detections, "bbox")
        evaluation.params.imgIds = sorted(truth.getImgIds())
        evaluation.params.maxDets = [*COCO_LIMITS, *[max_detections] * counts_more]
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    numbers, table = summarize(curves)
    metrics: dict[str, Any] = dict(zip(METRICS, map(none_if_undefined, numbers), strict=True))
    if counts_more:
        further, lines = summarize_all_detections(curves, max_detections)
        metrics, table = metrics | further, f"{table}\n{lines}"
    categories = category_metrics(curves, ground_truth)
    metrics["AP_by_category"] = {name: row["AP"] for name, row in categories.items()}
    return {**metrics, "categories": categories}, table


def category_metrics(
    curves: dict[str, Any], ground_truth: dict[str, Any]
) -> dict[str, dict[str, float | int | None]]:
    """Return AP, AP50, AR, and the numbers of objects and of images with objects, by category.

    Args:
        curves: As in `summarize`.
        ground_truth: A COCO instances dict that `renumber` returns.

    Returns:
        A dict for each category by its name, in the order of the ids. AP, AP50 and AR count 100
        detections of the category in an image; they are None if it has no objects. Crowd regions
        are no objects.
    """
    objects = [entry for entry in ground_truth["annotations"] if not entry["iscrowd"]]
    num_objects = collections.Counter(entry["category_id"] for entry in objects)
    occurrences = {(entry["image_id"], entry["category_id"]) for entry in objects}
    num_images = collections.Counter(category_id for _, category_id in occurrences)
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    return {
        category["name"]: {
            **averages,
            "objects": num_objects[category["id"]],
            "images": num_images[category["id"]],
        }
        for category, averages in zip(categories, category_averages(curves), strict=True)
    }


def category_averages(curves: dict[str, Any]) -> list[dict[str, float | None]]:
    """Return AP, AP50 and AR of each category, in the order of the ids; None without objects.

    Args:
        curves: As in `summarize`.
    """
    # precision: T IoU thresholds, R recalls, K categories, area ranges, detection limits; recall
    # has no axis R.
    limit = COCO_LIMITS.index(COCO_DETECTIONS)
    precision, recall = curves["precision"][..., 0, limit], curves["recall"][..., 0, limit]
    return [
        {
            "AP": none_if_undefined(np.mean(precision[:, :, k])),
            "AP50": none_if_undefined(np.mean(precision[0, :, k])),
            "AR": none_if_undefined(np.mean(recall[:, k])),
        }
        for k in range(recall.shape[1])
    ]


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


def summarize_all_detections(
    curves: dict[str, Any], limit: int
) -> tuple[dict[str, float | None], str]:
    """Return AP, AP50 and AR at the last detection limit, and their lines in pycocotools' format.

    Args:
        curves: As in `summarize`, with one detection limit more than COCO's.
        limit: That detection limit.
    """
    precision, recall = curves["precision"][:, :, :, 0, -1], curves["recall"][:, :, 0, -1]
    rows = (
        ("AP", "Average Precision", "0.50:0.95", precision),
        ("AP50", "Average Precision", "0.50", precision[:1]),
        ("AR", "Average Recall", "0.50:0.95", recall),
    )
    metrics, lines = {}, []
    for name, title, ious, values in rows:
        # The others are of categories without ground truth.
        value = np.mean(values[values > -1]) if (values > -1).any() else -1
        metrics[f"{name}_max{limit}"] = none_if_undefined(value)
        lines.append(
            f" {title:<18} ({name[:2]}) @[ IoU={ious:<9} | area=   all | maxDets={limit:>3} ] = "
            f"{value:.3f}"
        )
    return metrics, "\n".join(lines)


def renumber(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return copies of ground truth and results with ids from 1, in the order of the given ids.

    The evaluators compute with ids in arrays: ids of more than 64 bits are an error in hotcoco, as
    are negative ones, and pycocotools rounds ids of 64 bits where there are smaller ones, too, and
    treats a match with annotation 0 as no match.

    Args:
        ground_truth: A COCO instances dict; the copy has only its BOX_FIELDS.
        results: Detections in COCO's results format.

    Raises:
        ValueError: If an image or a category of the results is not in the ground truth.
    """
    content = {
        section: [{field: entry[field] for field in fields} for entry in ground_truth[section]]
        for section, fields in BOX_FIELDS.items()
    }
    numbers = {
        section: {
            given_id: number
            for number, given_id in enumerate(sorted(entry["id"] for entry in content[section]), 1)
        }
        for section in ("images", "categories")
    }
    for section, number_of in numbers.items():
        for entry in content[section]:
            entry["id"] = number_of[entry["id"]]

    def renumbered(entry: dict[str, Any]) -> dict[str, Any]:
        image, category = entry["image_id"], entry["category_id"]
        ids = {"image_id": numbers["images"][image], "category_id": numbers["categories"][category]}
        return {**entry, **ids}

    content["annotations"] = [
        {**renumbered(annotation), "id": annotation_id}
        for annotation_id, annotation in enumerate(content["annotations"], 1)
    ]
    try:
        return content, [renumbered(result) for result in results]
    except KeyError as error:
        raise ValueError(
            f"the detections contain the image or category id {error}, which the ground truth "
            "lacks; give the dataset that they were computed from, as it was then."
        ) from None


def with_plain_names(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the ground truth with the categories' ids as their names.

    hotcoco rejects names that are no valid Unicode, which datasets may contain.
    """
    categories = [{**entry, "name": str(entry["id"])} for entry in ground_truth["categories"]]
    return {**ground_truth, "categories": categories}


def none_if_undefined(value: float) -> float | None:
    """Return the value, or None (JSON's null) for the -1 that pycocotools has if undefined."""
    return None if value < 0 else float(value)
