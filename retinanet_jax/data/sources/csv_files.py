"""CSV as keras-retinanet defines it: a file with a line for each box, and a file of classes.

The format is described at https://github.com/fizyr/keras-retinanet#csv-datasets.
"""

import csv
import os
import pathlib
from collections.abc import Iterator, Sequence

from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.fields import FieldError, parse_edges
from retinanet_jax.data.sources.image_folder import (
    ImageFolderSource,
    check_files_exist,
    read_oriented_sizes,
)
from retinanet_jax.data.sources.objects import ObjectList, Objects

LINE_FORMAT = "path,x1,y1,x2,y2,class"
CORNERS = ("x1", "y1", "x2", "y2")


class CsvSource(ImageFolderSource):
    """The images and boxes of a CSV without a header line.

    A line is `path,x1,y1,x2,y2,class`, with the edges of the box in pixels of the image after its
    EXIF orientation; `path,,,,,` is an image without objects. Further fields and blank lines are
    ignored. Image ids are numbered from 1 in the order of the file, and the id of an annotation is
    the number of its line. The sizes of the images are read from their headers when the source is
    opened.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        classes: str | os.PathLike,
        images: str | os.PathLike | None = None,
    ):
        """Read and check both files and the headers of the images.

        Args:
            annotations: The CSV of boxes.
            classes: The CSV with a line `class,id` for each category. The ids, which start from 0
                in this format, become the category ids.
            images: The folder that paths are relative to; None or empty means the folder of
                `annotations`.

        Raises:
            FileNotFoundError: If a CSV or an image is missing.
            ValueError: If a line or an image is invalid; the message contains the file and line.
        """
        path = pathlib.Path(annotations)
        folder = pathlib.Path(images) if images else path.parent
        categories = _read_classes(pathlib.Path(classes))
        file_names, objects = _read_boxes(path, categories, str(classes))
        check_files_exist(str(path), folder, file_names)
        super().__init__(
            str(annotations),
            folder,
            image_ids=list(range(1, len(file_names) + 1)),
            file_names=file_names,
            sizes=read_oriented_sizes(folder, file_names),
            categories=categories,
            objects=objects,
            label="line {}".format,
        )


def _read_boxes(
    path: pathlib.Path, categories: Sequence[Category], classes: str
) -> tuple[list[str], Objects]:
    """Return the file names of the images in the file of boxes, and the objects."""
    class_of = {category.name: k for k, category in enumerate(categories)}
    index_of: dict[str, int] = {}
    objects = ObjectList()
    for line, fields in _read_lines(path):
        where = f"{path}: line {line}"
        if len(fields) < 6 or not fields[0]:
            raise ValueError(
                f"{where} is {','.join(fields)[:60]!r}; write {LINE_FORMAT}, or path,,,,, for an "
                "image without objects."
            )
        file_name, category = os.path.normpath(fields[0]), fields[5]
        index = index_of.setdefault(file_name, len(index_of))
        if not any(fields[1:6]):
            continue
        where = f"{where} ({file_name})"
        try:
            x1, y1, x2, y2 = parse_edges(dict(zip(CORNERS, fields[1:5], strict=True)))
        except FieldError as error:
            raise ValueError(f"{where} has {error}; correct or remove it.") from None
        if category not in class_of:
            raise ValueError(
                f"{where} has the class {category!r}, which {classes} does not list; add it there "
                "or correct it."
            )
        objects.append(line, index, class_of[category], (y1, x1, y2, x2))
    return list(index_of), objects.to_objects()


def _read_classes(path: pathlib.Path) -> list[Category]:
    """Read the file of classes and return the categories, sorted by id."""
    ids: dict[str, int] = {}
    for line, fields in _read_lines(path):
        where = f"{path}: line {line}"
        if len(fields) != 2 or not fields[0] or not fields[1].isdecimal():
            raise ValueError(
                f"{where} is {','.join(fields)[:60]!r}; write class,id, with ids from 0."
            )
        name, category_id = fields[0], int(fields[1])
        if name in ids or category_id in ids.values():
            repeated = f"class {name!r}" if name in ids else f"id {category_id}"
            raise ValueError(f"{where} repeats {repeated}; make names and ids unique.")
        ids[name] = category_id
    if not ids:
        raise ValueError(f"{path}: lists no classes; write a line class,id for each, from id 0.")
    return sorted(Category(category_id, name) for name, category_id in ids.items())


def _read_lines(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the stripped fields of each line that is not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such CSV file; check the path.")
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
        reader = csv.reader(file)
        try:
            for line in reader:
                fields = [field.strip() for field in line]
                if any(fields):
                    yield reader.line_num, fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: is not CSV in UTF-8 after line {reader.line_num} ({error}); save it as "
                "CSV in UTF-8."
            ) from None
