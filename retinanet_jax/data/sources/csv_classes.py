"""The classes of a CSV: those of a file of classes, those that are given, or those of its boxes."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from retinanet_jax.data.sources.base import Category, number_categories
from retinanet_jax.data.sources.csv_tables import open_table
from retinanet_jax.data.sources.fields import FieldError, parse_name, show

HEADER_NAMES = ("class", "name", "label", "labelname", "classname")  # of the first column
ID_PREFIXES = ("/m/", "/g/", "/t/")  # of OpenImages' labels


class Classes:
    """The classes of a dataset by the labels of its boxes.

    Attributes:
        listing: What lists the classes, for messages; empty if they are those of the boxes.
    """

    def __init__(self, path: pathlib.Path | None, names: Sequence[str]):
        """Read the file of classes, if there is one.

        Args:
            path: A CSV with a line `class,id` for each category, or `/m/...,name` for each label;
                None if there is none.
            names: Without a file, the names of the classes in the order of their ids, which start
                from 1; empty if they are those of the boxes.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a line is invalid; the message contains the file and line.
        """
        self.listing = str(path or ("data.categories" if names else ""))
        self._categories = number_categories(names)
        self._class_of: dict[str, int] = {name: k for k, name in enumerate(names)}
        if path:
            self._categories, labels = _read_file(path)
            class_of = {category.name: k for k, category in enumerate(self._categories)}
            self._class_of = class_of | {label: class_of[name] for label, name in labels.items()}

    def index(self, label: str) -> int:
        """Return the class index of a box.

        Args:
            label: The class in its line.

        Raises:
            FieldError: If the class is empty or not listed.
        """
        class_index = self._class_of.get(label)
        if class_index is None:
            if self.listing:
                raise FieldError(
                    f"the class {show(label)}, which {self.listing} does not list; add it there or "
                    "correct it"
                )
            class_index = self._class_of[parse_name("class", label)] = len(self._class_of)
        return class_index

    def sort(
        self, classes: Int32[np.ndarray, " M"]
    ) -> tuple[list[Category], Int32[np.ndarray, " M"]]:
        """Return the categories, sorted by id, and the classes of boxes in this order.

        Args:
            classes: The classes of all boxes, from `index`.
        """
        if self.listing:
            return self._categories, classes
        names = sorted(self._class_of)
        new_index = np.zeros(len(names), np.int32)
        for class_index, name in enumerate(names):
            new_index[self._class_of[name]] = class_index
        return number_categories(names), new_index[classes]


def _read_file(path: pathlib.Path) -> tuple[list[Category], dict[str, str]]:
    """Return the categories, sorted by id, and the names of OpenImages' labels."""
    rows = list(open_table(path, 2).rows())
    if rows and rows[0][1][0].lower() in HEADER_NAMES and not rows[0][1][-1].isdecimal():
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path}: lists no classes; write a line class,id for each, from id 0.")
    name, *values = rows[0][1]
    if name.startswith(ID_PREFIXES) and not "".join(values).isdecimal():
        names = _read_pairs(path, rows, "/m/...,name")
        return number_categories(names.values()), names
    ids = _read_pairs(path, rows, "class,id, with ids from 0")
    return sorted(Category(int(text), name) for name, text in ids.items()), {}


def _read_pairs(
    path: pathlib.Path, rows: Sequence[tuple[int, list[str]]], line_format: str
) -> dict[str, str]:
    """Return the second field of each line by the first one; no field occurs twice."""
    has_ids = line_format.startswith("class")
    pairs: dict[str, str] = {}
    values: set[str] = set()
    for line, fields in rows:
        where = f"{path}: line {line}"
        if len(fields) != 2 or not all(fields) or (has_ids and not fields[1].isdecimal()):
            raise ValueError(f"{where} is {show(','.join(fields))}; write {line_format}.")
        name, value = fields[0], str(int(fields[1])) if has_ids else fields[1]
        if name in pairs or value in values:
            repeated = f"class {show(name)}" if name in pairs else f"{'id ' * has_ids}{value}"
            raise ValueError(f"{where} repeats {repeated}; make names and ids unique.")
        pairs[name] = value
        values.add(value)
    return pairs
