"""Detections as the labels of a dataset, in the formats that annotation tools and trainings read.

A format is a function of the labels of all images that returns files; `data/sources` reads each of
them back. The files refer to the images where they are, by paths relative to the format's folder.
"""

import csv
import io
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float32, Int

from retinanet_jax.data.image_formats import has_image_suffix
from retinanet_jax.data.sources.base import Category
from retinanet_jax.utils.files import to_json
from retinanet_jax.utils.paths import relative_path
from retinanet_jax.utils.progress import one_line

CSV_COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
LABELME_VERSION = "5.5.0"  # of the fields that are written


class ImageLabels(NamedTuple):
    """The labels of an image.

    Attributes:
        path: The image file.
        image_id: Its id in the dataset.
        name: The name, without a suffix, of the files that are named after it.
        size: Its height and width in pixels, with its EXIF orientation applied.
        boxes: xyxy in pixels, inside the image.
        scores: From 0 to 1.
        classes: Indices into the categories of the dataset.
    """

    path: pathlib.Path
    image_id: int
    name: str
    size: tuple[int, int]
    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]

    def rows(self) -> Iterator[tuple[list[float], float, int]]:
        """Yield the box, the score and the class of each label."""
        return zip(self.boxes.tolist(), self.scores.tolist(), self.classes.tolist(), strict=True)


# The name of a file in the format's folder, and its content; a path stands for a link to that file.
LabelFile = tuple[str, str | pathlib.Path]


def yolo_files(
    labels: Sequence[ImageLabels], categories: Sequence[Category], folder: pathlib.Path
) -> Iterator[LabelFile]:
    """Return the files of a YOLO dataset (https://docs.ultralytics.com/datasets/detect).

    Labels are found by the path of their image, with labels/ for images/; so images/ has links. The
    classes are numbered from 0 in the order of the categories. The scores are not part of the
    format.

    Args:
        labels: The labels of all images.
        categories: The categories.
        folder: The folder that the files are for.
    """
    names = {index: category.name for index, category in enumerate(categories)}
    description = {"train": "train.txt", "names": names}
    yield "data.yaml", yaml.safe_dump(description, allow_unicode=True, sort_keys=False)
    # Label Studio and LabelImg read the names here.
    yield "classes.txt", _lines(map(one_line, names.values()))
    images = [f"images/{image.name}{_image_suffix(image.path)}" for image in labels]
    yield "train.txt", _lines(f"./{name}" for name in images)
    for name, image in zip(images, labels, strict=True):
        yield name, image.path
        height, width = image.size
        lines = (
            f"{k} {(x0 + x1) / 2 / width:.8f} {(y0 + y1) / 2 / height:.8f} "
            f"{(x1 - x0) / width:.8f} {(y1 - y0) / height:.8f}"
            for (x0, y0, x1, y1), _, k in image.rows()
        )
        yield f"labels/{image.name}.txt", _lines(lines)


def coco_files(
    labels: Sequence[ImageLabels], categories: Sequence[Category], folder: pathlib.Path
) -> Iterator[LabelFile]:
    """Return COCO's JSON of instances (https://cocodataset.org/#format-data), with scores.

    Args:
        labels: As in `yolo_files`.
        categories: As in `yolo_files`.
        folder: As in `yolo_files`.
    """
    images, annotations = [], []
    for image in labels:
        height, width = image.size
        file_name = relative_path(image.path, folder)
        images.append(
            {"id": image.image_id, "file_name": file_name, "height": height, "width": width}
        )
        for (x0, y0, x1, y1), score, k in image.rows():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": categories[k].id,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    listed = [category._asdict() for category in categories]
    content = {"images": images, "categories": listed, "annotations": annotations}
    yield "instances.json", to_json(content)


def csv_files(
    labels: Sequence[ImageLabels], categories: Sequence[Category], folder: pathlib.Path
) -> Iterator[LabelFile]:
    """Return a CSV with TensorFlow's and Roboflow's columns, and the ids of the categories.

    An image without labels has a line without a class and a box. The scores are not part of the
    format.

    Args:
        labels: As in `yolo_files`.
        categories: As in `yolo_files`.
        folder: As in `yolo_files`.
    """
    rows: list[tuple[Any, ...]] = [CSV_COLUMNS]
    for image in labels:
        height, width = image.size
        start = relative_path(image.path, folder), width, height
        rows += [(*start, categories[k].name, *box) for box, _, k in image.rows()] or [
            (*start, *[""] * 5)
        ]
    yield "boxes.csv", _table(rows)
    yield "classes.csv", _table([("class", "id"), *((c.name, c.id) for c in categories)])


def labelme_files(
    labels: Sequence[ImageLabels], categories: Sequence[Category], folder: pathlib.Path
) -> Iterator[LabelFile]:
    """Return a JSON of rectangles for each image (https://github.com/wkentaro/labelme).

    X-AnyLabeling shows the scores. Only labels.txt, for `labelme --labels`, has the categories that
    do not occur.

    Args:
        labels: As in `yolo_files`.
        categories: As in `yolo_files`.
        folder: As in `yolo_files`.
    """
    yield "labels.txt", _lines(one_line(category.name) for category in categories)
    for image in labels:
        shapes = [
            {
                "label": categories[k].name,
                "points": [[x0, y0], [x1, y1]],
                "group_id": None,
                "description": "",
                "shape_type": "rectangle",
                "flags": {},
                "score": score,
            }
            for (x0, y0, x1, y1), score, k in image.rows()
        ]
        content = {
            "version": LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": relative_path(image.path, folder),
            "imageData": None,
            "imageHeight": image.size[0],
            "imageWidth": image.size[1],
        }
        yield f"{image.name}.json", to_json(content)


FormatFunction = Callable[
    [Sequence[ImageLabels], Sequence[Category], pathlib.Path], Iterator[LabelFile]
]
FORMATS: dict[str, FormatFunction] = {
    "yolo": yolo_files,
    "coco": coco_files,
    "csv": csv_files,
    "labelme": labelme_files,
}


def _image_suffix(path: pathlib.Path) -> str:
    """Return the suffix of an image file; .jpg for one by which no tool would know an image."""
    return path.suffix if has_image_suffix(path.name) else ".jpg"


def _lines(texts: Iterator[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def _table(rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
