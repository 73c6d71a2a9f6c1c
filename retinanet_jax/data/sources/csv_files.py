"""CSV: a file with a line for each box, read by its header, and possibly a file of classes.

Without a header, the columns are those of https://github.com/fizyr/keras-retinanet#csv-datasets.
"""

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from retinanet_jax.data.decoding import DEFAULT_DECODING, Decoding
from retinanet_jax.data.sources.csv_classes import Classes
from retinanet_jax.data.sources.csv_tables import NUM_FIELDS, Columns, open_table, read_columns
from retinanet_jax.data.sources.fields import (
    FieldError,
    parse_edges,
    parse_flag,
    parse_fractions,
    parse_side,
    parse_xywh,
    show,
)
from retinanet_jax.data.sources.image_folder import ImageFolderSource
from retinanet_jax.data.sources.image_lookup import show_path
from retinanet_jax.data.sources.objects import ObjectList

UNKNOWN_FLAG = "-1"  # of OpenImages' attributes


class CsvSource(ImageFolderSource):
    """The images and boxes of a CSV; its columns are detected by its header.

    Known are the columns of keras-retinanet (`path,x1,y1,x2,y2,class`, also without a header), of
    TensorFlow's and Roboflow's `filename,width,height,class,xmin,ymin,xmax,ymax`, of OpenImages
    (fractions of the image, image ids without a suffix, `IsGroupOf` as crowd regions), and those
    of a corner and two sides (`image,x,y,w,h,label`); in any order, with further columns, and with
    semicolons or tabs instead of commas. Other boxes are in pixels of the image after its EXIF
    orientation. A line with an image but without a box and a class is an image without objects.
    Images of the folder that no line names are not part of the dataset.

    Image ids are numbered from 1 in the order of the file, and the id of an annotation is the
    number of its line. Sizes that the file does not contain are read from the headers of the
    images.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        classes: str | os.PathLike | None = None,
        images: str | os.PathLike | None = None,
        *,
        categories: Sequence[str] = (),
        decoding: Decoding = DEFAULT_DECODING,
    ):
        """Read and check the files and the headers of the images.

        Args:
            annotations: The CSV of boxes.
            classes: A CSV with a line `class,id` for each category, of which the ids, from 0 in
                keras-retinanet, become the category ids; or OpenImages' class descriptions
                (`/m/...,name`), which are numbered from 1. None or empty if there is none.
            images: The folder that paths are relative to; None or empty means the folder of
                `annotations`.
            categories: Without `classes`, the names in the order of their ids, which start from 1.
                If there are none, the sorted names in the file are used, which may differ between
                training and evaluation data.
            decoding: How the images are decoded.

        Raises:
            FileNotFoundError: If a CSV or an image is missing.
            ValueError: If a line or an image is invalid; the message contains the file and line.
        """
        path = pathlib.Path(annotations)
        classes_of_boxes = Classes(pathlib.Path(classes) if classes else None, categories)
        boxes = _Boxes(path, classes_of_boxes)
        objects = boxes.objects.to_objects()
        all_categories, sorted_classes = classes_of_boxes.sort(objects.classes)
        super().__init__(
            str(annotations),
            pathlib.Path(images) if images else path.parent,
            image_ids=list(range(1, len(boxes.index_of) + 1)),
            file_names=list(boxes.index_of),
            sizes=np.array(boxes.sizes, np.int32).reshape(-1, 2),
            categories=all_categories,
            objects=objects._replace(classes=sorted_classes),
            are_fractions=boxes.columns.are_fractions,
            label="line {}".format,
            decoding=decoding,
        )


class _Boxes:
    """The contents of the file of boxes.

    Attributes:
        columns: Where the fields of a line are.
        index_of: The index of each image, by its file name.
        sizes: Height and width of each image; 0 if the file does not contain them.
        objects: The objects.
    """

    def __init__(self, path: pathlib.Path, classes: Classes):
        """Read and check all lines."""
        table = open_table(path, NUM_FIELDS)
        self.columns, rows = read_columns(table)
        self.index_of: dict[str, int] = {}
        self.sizes: list[tuple[int, int]] = []
        self.objects = ObjectList()
        self._classes = classes
        self._has_decimal_commas = table.delimiter != ","
        num_fields = self.columns.num_fields
        for line, fields in rows:
            if len(fields) < num_fields or not fields[self.columns.image]:
                raise ValueError(
                    f"{path}: line {line} is {show(table.delimiter.join(fields))}; write "
                    f"{self.columns.line_format}, with empty fields for an image without objects."
                )
            try:
                self._read_line(line, fields)
            except FieldError as error:
                where = f"{path}: line {line} ({show_path(fields[self.columns.image])})"
                raise ValueError(f"{where} has {error}; correct or remove it.") from None

    def _read_line(self, line: int, fields: list[str]) -> None:
        """Read one line."""
        columns = self.columns
        index = self.index_of.setdefault(
            os.path.normpath(fields[columns.image]), len(self.index_of)
        )
        self._read_size(index, fields)
        texts = {name: fields[k] for name, k in columns.box.items()}
        category = fields[columns.category]
        if not category and not any(texts.values()):
            return
        if self._has_decimal_commas:
            texts = {name: text.replace(",", ".") for name, text in texts.items()}
        box = _parse_box(columns, texts)
        class_index = self._classes.index(category)
        is_crowd = any(_parse_flag(name, fields[k]) for name, k in columns.crowd.items())
        self.objects.append(line, index, class_index, box, crowd=is_crowd)

    def _read_size(self, index: int, fields: list[str]) -> None:
        """Read the size of an image, which all of its lines repeat."""
        size = _parse_size(*((name, fields[k]) for name, k in self.columns.size.items()))
        if index == len(self.sizes):
            self.sizes.append(size)
        elif size != self.sizes[index]:
            (height, width), (first_height, first_width) = size, self.sizes[index]
            raise FieldError(
                f"height and width {height} and {width}, but an earlier line has {first_height} "
                f"and {first_width}"
            )


@functools.lru_cache(maxsize=1_000)
def _parse_size(*texts: tuple[str, str]) -> tuple[int, int]:
    """Return the height and width of an image from their names and texts; 0 if these are empty."""
    if all(text in ("", "0") for _, text in texts):
        return 0, 0
    height, width = (parse_side(name, text) for name, text in texts)
    return height, width


def _parse_box(columns: Columns, texts: dict[str, str]) -> tuple[float, float, float, float]:
    """Return the yxyx box of a line."""
    if columns.are_fractions:
        parse_fractions(list(texts.values()), list(texts))
    if columns.has_sides:
        x, y, width, height = parse_xywh(",".join(texts), list(texts.values()))
        return y, x, y + height, x + width
    x1, y1, x2, y2 = parse_edges(texts)
    return y1, x1, y2, x2


def _parse_flag(name: str, text: str) -> bool:
    """Return whether a box is a crowd region."""
    return text != UNKNOWN_FLAG and parse_flag(name, text)
