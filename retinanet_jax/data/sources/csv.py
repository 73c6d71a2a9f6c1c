"""CSV as keras-retinanet reads it: a line a box, and a file of classes (github.com/fizyr)."""

import csv
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from retinanet_jax.data.sources.instances import (
    InstancesSource,
    check_images,
    oriented_sizes,
    parse_corners,
)

ROW = "path,x1,y1,x2,y2,class"
CORNERS = ("x1", "y1", "x2", "y2")


class CsvSource(InstancesSource):
    """Pictures and boxes of a CSV without a header line.

    annotations: lines `path,x1,y1,x2,y2,class`, the box's edges in pixels of the picture as it is
    shown; `path,,,,,` is a picture without objects. Further fields and blank lines are ignored.
    classes: lines `class,id`; the ids, there from 0, are kept. images: the folder that paths are
    relative to; empty for the CSV's own.
    Pictures are numbered from 1 in the order in which they appear, an annotation's id is its line.
    Sizes are read from all pictures' headers when the source is opened.
    Raises as `InstancesSource` does, naming file and line.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        classes: str | os.PathLike,
        images: str | os.PathLike | None = None,
    ):
        path = pathlib.Path(annotations)
        folder = pathlib.Path(images) if images else path.parent
        content = _read(path, pathlib.Path(classes), folder)
        super().__init__(str(annotations), lambda: content, folder, place="line {}".format)


def _read(path: pathlib.Path, classes: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """COCO's sections, of all lines."""
    ids = _read_classes(classes)
    pictures: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    for line, row in _rows(path):
        where = f"{path}: line {line}"
        if len(row) < 6 or not row[0]:
            raise ValueError(f"{where} is {','.join(row)[:60]!r}; write {ROW}, or path,,,,, alone.")
        file_name, name = os.path.normpath(row[0]), row[5]
        image_id = pictures.setdefault(file_name, len(pictures) + 1)
        if not any(row[1:6]):
            continue
        where = f"{where} ({file_name})"
        x1, y1, x2, y2 = parse_corners(where, dict(zip(CORNERS, row[1:5], strict=True)))
        if name not in ids:
            raise ValueError(
                f"{where} has the class {name!r}, which {classes} does not list; add it there or "
                "correct it."
            )
        annotations.append(
            {
                "id": line,
                "image_id": image_id,
                "category_id": ids[name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
        )
    check_images(str(path), folder, list(pictures))
    sizes = oriented_sizes([folder / file_name for file_name in pictures])
    images = [
        {"id": image_id, "file_name": file_name, "height": height, "width": width}
        for (file_name, image_id), (height, width) in zip(pictures.items(), sizes, strict=True)
    ]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def _read_classes(path: pathlib.Path) -> dict[str, int]:
    ids: dict[str, int] = {}
    for line, row in _rows(path):
        where = f"{path}: line {line}"
        if len(row) != 2 or not row[0] or not row[1].isdecimal():
            raise ValueError(f"{where} is {','.join(row)[:60]!r}; write class,id, with ids from 0.")
        name, number = row[0], int(row[1])
        if name in ids or number in ids.values():
            what = f"class {name!r}" if name in ids else f"id {number}"
            raise ValueError(f"{where} gives {what} a second time; make names and ids unique.")
        ids[name] = number
    if not ids:
        raise ValueError(f"{path}: lists no classes; write a line class,id for each, from id 0.")
    return ids


def _rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each line that is not blank, and its fields without the spaces around them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such CSV file; check the path.")
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins with a mark
        reader = csv.reader(file)
        try:
            for row in reader:
                fields = [field.strip() for field in row]
                if any(fields):
                    yield reader.line_num, fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: is not CSV in UTF-8 after line {reader.line_num} ({error}); save it so."
            ) from None
