"""YOLO: a file of labels for each image, with boxes as fractions of the image.

The format is described at https://docs.ultralytics.com/datasets/detect.
"""

import itertools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.sources.base import Category, number_categories
from retinanet_jax.data.sources.fields import (
    FieldError,
    parse_fractions,
    parse_integer,
)
from retinanet_jax.data.sources.image_folder import ImageFolderSource
from retinanet_jax.data.sources.objects import ObjectList, Objects
from retinanet_jax.data.sources.yolo_files import find_files
from retinanet_jax.data.sources.yolo_layout import NAMES_FILES, SPLIT_OF, Layout, read_layout
from retinanet_jax.utils.threads import map_ahead

NUM_READERS = 16  # threads
BOX = ("x", "y", "width", "height")  # of the center and the sides
MIN_POLYGON = 6  # numbers: three points


class YoloSource(ImageFolderSource):
    """The images and boxes of a split of a YOLO dataset.

    A line of a file of labels is `class x y width height`, a box by its center; `class x1 y1 x2 y2
    x3 y3 ...`, a polygon or an oriented box, of which the bounding box is read; or a box with the
    keypoints that `kpt_shape` of data.yaml declares, which are not read. All numbers are fractions
    of the image after its EXIF orientation. An empty or missing file of labels is an image without
    objects. Equal lines are different objects, as in other formats; the dataset report counts them.

    The ids of categories are the indices of their classes, which start from 0. Image ids and
    annotation ids are numbered from 1.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike | None = None,
        *,
        split: str = "",
        categories: Sequence[str] = (),
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Read and check all labels and the headers of the images.

        Args:
            annotations: The data.yaml, darknet's obj.data, or the folder of a dataset: with one of
                these, with a file of names such as classes.txt, or with neither if there are
                `categories`. With `images`, also the folder of labels.
            images: The folder of images, or a list of images; None or empty means that of `split`.
            split: train, val or test; empty for a dataset without splits.
            categories: The names in the order of their ids, which then start from 1. If there are
                none, the names are those of the dataset, and their ids start from 0.
            decoding: How the images are decoded.

        Raises:
            FileNotFoundError: If a file or folder is missing, or no image has labels.
            ValueError: If data.yaml or a label is invalid; the message contains the file and line.
        """
        layout = read_layout(pathlib.Path(annotations))
        if images and split:
            raise ValueError(f"{annotations}: give images={images} or split={split!r}, not both.")
        name, locations = (
            (str(layout.listing), [os.path.abspath(images)])
            if images
            else _find_split(layout, split)
        )
        labels = pathlib.Path(annotations) if images and os.path.isdir(annotations) else None
        files = find_files(layout, name, locations, labels)
        classes = _Classes(layout, categories)
        objects = _read_objects(files.labels, classes, layout.num_keypoint_values)

        def label(annotation_id: int) -> str:
            index = objects.image_index[annotation_id - 1]
            first = np.searchsorted(objects.image_index, index)  # annotations are in this order
            return f"object {annotation_id - first} of {files.labels[index]}"

        super().__init__(
            name,
            layout.folders[0],
            image_ids=list(range(1, len(files.images) + 1)),
            file_names=files.images,
            sizes=np.zeros((len(files.images), 2), np.int32),
            categories=classes.categories,
            objects=objects,
            are_fractions=True,
            label=label,
            decoding=decoding,
        )


def _find_split(layout: Layout, split: str) -> tuple[str, list[str]]:
    """Return the name of a split in messages, and its images."""
    split = SPLIT_OF.get(split.lower(), split)
    if not split and len(layout.splits) == 1:
        split = next(iter(layout.splits))
    if split not in layout.splits:
        existing = ", ".join(filter(None, layout.splits))
        fix = f"give one of {existing}" if existing else "leave it empty"
        raise ValueError(f"{layout.listing}: has no split {split!r}; {fix}.")
    return f"{layout.listing} ({split})" if split else str(layout.listing), layout.splits[split]


class _Classes:
    """The categories of a dataset, and the position in them of each class in the labels.

    Attributes:
        categories: The categories, sorted by id.
    """

    def __init__(self, layout: Layout, names: Sequence[str]):
        """Match the classes of a dataset with given names, if there are any."""
        if not layout.names and not names:
            raise ValueError(
                f"{layout.listing}: has no data.yaml and no names of classes ({NAMES_FILES[0]}, "
                f"{NAMES_FILES[1]}); write a file of names, or give --config.data.categories."
            )
        self._names = layout.names or dict(enumerate(names))
        self._listing = "data.categories" if names else str(layout.listing)
        self.categories = (
            number_categories(names)
            if names
            else [Category(index, name) for index, name in sorted(layout.names.items())]
        )
        position = {category.name: k for k, category in enumerate(self.categories)}
        self._position = {
            index: position[name] for index, name in self._names.items() if name in position
        }

    def index(self, text: str) -> int:
        """Return the class index of a label."""
        number = parse_integer("class", text)
        if number not in self._position:
            name = f" ({self._names[number]})" if number in self._names else ""
            raise FieldError(
                f"class={number}{name}, which is none of the {len(self.categories)} classes of "
                f"{self._listing}"
            )
        return self._position[number]


def _read_objects(
    paths: Sequence[pathlib.Path | None], classes: _Classes, num_keypoint_values: int
) -> Objects:
    """Return the objects of all images, with boxes as fractions; their ids are numbered from 1."""
    objects, annotation_ids = ObjectList(), itertools.count(1)
    contents = map_ahead(
        lambda path: path.read_bytes() if path else b"",
        paths,
        num_ahead=2 * NUM_READERS,
        num_threads=NUM_READERS,
    )
    for index, (path, content) in enumerate(zip(paths, contents, strict=True)):
        for line, text in enumerate(_decode(path, content).splitlines(), start=1):
            values = text.split()
            if not values:
                continue
            try:
                class_index = classes.index(values[0])
                box = _parse_box(values[1:], num_keypoint_values)
            except FieldError as error:
                where = f"{path}: line {line}"
                raise ValueError(f"{where} has {error}; correct or remove it.") from None
            objects.append(next(annotation_ids), index, class_index, box)
    return objects.to_objects()


def _decode(path: pathlib.Path | None, content: bytes) -> str:
    """Return the text of a file of labels."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: is not text ({error.reason}); write a line for each object, or remove it."
        ) from None


def _parse_box(
    values: Sequence[str], num_keypoint_values: int
) -> tuple[float, float, float, float]:
    """Return the yxyx box of the numbers after the class, in fractions of the image."""
    if len(values) in (4, 4 + num_keypoint_values):
        x, y, width, height = parse_fractions(values[:4], BOX)
        if width < 0 or height < 0:
            raise FieldError(f"width={values[2]} and height={values[3]}, of which one is negative")
        return y - height / 2, x - width / 2, y + height / 2, x + width / 2
    if num_keypoint_values or len(values) < MIN_POLYGON or len(values) % 2:
        keypoints = f" and {num_keypoint_values} numbers of keypoints (kpt_shape)"
        rule = keypoints if num_keypoint_values else ", or class x1 y1 x2 y2 x3 y3 ... of a polygon"
        raise FieldError(f"{len(values) + 1} values; write class x y width height{rule}")
    points = parse_fractions(values)
    xs, ys = points[::2], points[1::2]
    return min(ys), min(xs), max(ys), max(xs)
