"""Tables in CSV: their encoding, their delimiter, and the columns that a header names."""

import codecs
import csv
import io
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from retinanet_jax.data.sources.fields import FieldError, show

# Excel writes semicolons where the comma is the decimal sign, and tabs as "Unicode text".
DELIMITERS = (",", ";", "\t")
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MAX_FIRST_LINES = 1 << 16  # bytes in which the first lines of a file are
NUM_FIELDS = 6  # at least, of a line with a box: an image, four numbers and a class
LINE_FORMAT = "path,x1,y1,x2,y2,class"
KNOWN_HEADERS = (
    LINE_FORMAT,
    "filename,width,height,class,xmin,ymin,xmax,ymax",
    "image,x,y,w,h,label",
    "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name",
    "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf",
)
# The names of columns in lower case, without punctuation; of several the first one is read.
IMAGE = ("path", "filepath", "imagepath", "imgpath", "filename", "imagefilename", "imagename")
IMAGE += ("imgname", "file", "imagefile", "image", "img", "imageid")
CATEGORY = ("classname", "labelname", "categoryname", "class", "label", "category", "name")
LEFT, TOP = (("x1", "xmin", "left", "minx"), ("y1", "ymin", "top", "miny"))
RIGHT, BOTTOM = (("x2", "xmax", "right", "maxx"), ("y2", "ymax", "bottom", "maxy"))
CORNER = (("x", "bboxx", "boxx", *LEFT), ("y", "bboxy", "boxy", *TOP))
SIDES = (
    ("w", "bboxw", "bboxwidth", "boxwidth", "width"),
    ("h", "bboxh", "bboxheight", "boxheight", "height"),
)
HEIGHT, WIDTH = (("imageheight", "imgheight", "height"), ("imagewidth", "imgwidth", "width"))
CROWD = ("isgroupof", "iscrowd", "crowd", "difficult", "ignore")
# Columns of boxes that are not axis-parallel, or not given by a corner.
OTHER_BOXES = ("x3", "y3", "angle", "rotation", "theta")


class Table(NamedTuple):
    """The text of a CSV file and its delimiter."""

    path: pathlib.Path
    text: str
    delimiter: str

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the stripped fields of each line that is not blank.

        Raises:
            ValueError: If a quotation mark is missing.
        """
        # Otherwise a missing quotation mark would make a field of all lines that follow.
        reader = csv.reader(
            io.StringIO(self.text, newline=""), delimiter=self.delimiter, strict=True
        )
        try:
            for line in reader:
                fields = [field.strip() for field in line]
                if any(fields):
                    yield reader.line_num, fields
        except csv.Error as error:
            raise ValueError(
                f"{self.path}: line {reader.line_num} is not CSV ({error}); correct its quotation "
                "marks."
            ) from None


def open_table(path: pathlib.Path, num_fields: int) -> Table:
    """Read a CSV in UTF-8 or UTF-16 and detect its delimiter.

    Args:
        path: The file.
        num_fields: The number of fields that its first line has at least. A semicolon or a tab is
            the delimiter if only with it there are so many.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such CSV file; check the path.")
    data = path.read_bytes()
    is_utf_16 = data.startswith(UTF_16_MARKS)
    try:
        text = data.decode("utf-16" if is_utf_16 else "utf-8-sig")  # Excel writes these marks
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: line {line} is not text in UTF-8 ({error.reason}); save the file as CSV in "
            "UTF-8."
        ) from None
    first = next(filter(str.strip, io.StringIO(text, newline="")), "")
    delimiter = next(
        (mark for mark in DELIMITERS if first.count(mark) + 1 >= num_fields), DELIMITERS[0]
    )
    return Table(path, text, delimiter)


def first_lines(path: pathlib.Path, count: int) -> list[list[str]]:
    """Return the fields of the first lines of a CSV, whatever its delimiter.

    Args:
        path: The file.
        count: The largest number of lines.
    """
    with path.open("rb") as file:
        data = file.read(MAX_FIRST_LINES)
    encoding = "utf-16" if data.startswith(UTF_16_MARKS) else "utf-8-sig"
    lines = data.decode(encoding, errors="replace").splitlines()[:count]
    delimiter = max(DELIMITERS, key=next(filter(str.strip, lines), "").count)
    rows = csv.reader(lines, delimiter=delimiter)
    return [[field.strip().strip('"') for field in row] for row in rows]


class Columns(NamedTuple):
    """The indices of the fields of a line.

    Attributes:
        image: The image's file name.
        category: The name of the class.
        box: The four numbers of the box, by their names: x1, y1, x2, y2, or x, y, width, height.
        size: The height and the width of the image by their names; empty if there are none.
        crowd: The flag of crowd regions by its name; empty if there is none.
        has_sides: Whether the box has a corner, a width and a height.
        are_fractions: Whether the box has fractions of the image's sides, as in OpenImages.
        line_format: The header in messages.
    """

    image: int
    category: int
    box: dict[str, int]
    size: dict[str, int]
    crowd: dict[str, int]
    has_sides: bool = False
    are_fractions: bool = False
    line_format: str = LINE_FORMAT

    @property
    def num_fields(self) -> int:
        """The number of fields that a line must have."""
        return 1 + max(self.image, self.category, *self.box.values(), *self.crowd.values())


# A file without a header, as keras-retinanet defines it.
WITHOUT_HEADER = Columns(0, 5, {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, size={}, crowd={})


def read_columns(table: Table) -> tuple[Columns, Iterator[tuple[int, list[str]]]]:
    """Return the columns of a file of boxes, and the lines after its header, if it has one.

    Args:
        table: The file.

    Raises:
        ValueError: If the header is not known.
    """
    rows = table.rows()
    first = next(rows, None)
    if first is None:
        return WITHOUT_HEADER, rows
    try:
        columns = find_columns(first[1])
    except FieldError as error:
        raise ValueError(f"{table.path}: line {first[0]} has {error}.") from None
    return (columns, rows) if columns else (WITHOUT_HEADER, itertools.chain([first], rows))


def find_columns(fields: Sequence[str]) -> Columns | None:
    """Return the columns that the first line of a file names.

    Args:
        fields: The first line.

    Returns:
        The columns, or None if the line is no header.

    Raises:
        FieldError: If the line is a header that is not known or names a column twice.
    """
    if len(list(filter(None, fields))) < 3 or any(map(_is_number, fields)):
        return None
    header = _Header(fields)
    image, category = header.find(IMAGE), header.find(CATEGORY)
    box = header.find_all(LEFT, TOP, RIGHT, BOTTOM)
    has_sides = not box
    box = box or header.find_all(*CORNER, *SIDES)
    if image is None or category is None or not box or header.find(OTHER_BOXES) is not None:
        raise FieldError(
            f"the header {show(','.join(fields))}, which is not known; known are "
            f"{'; '.join(KNOWN_HEADERS)}; all in any order, with further columns"
        )
    size = header.find_all(HEIGHT, WIDTH)
    is_size = not set(size.values()) & set(box.values())
    return Columns(
        image,
        category,
        box,
        has_sides=has_sides,
        are_fractions=header.find(("imageid",)) == image
        and header.find(("labelname",)) == category,
        size=size if is_size else {},
        crowd=header.find_all(CROWD),
        line_format=",".join(fields),
    )


class _Header:
    """The names of columns."""

    def __init__(self, fields: Sequence[str]):
        self._fields = fields
        self._names = [re.sub(r"[\W_]", "", field.lower()) for field in fields]

    def find(self, names: Sequence[str]) -> int | None:
        """Return the index of the column with the first of these names that there is."""
        name = next((name for name in names if name in self._names), None)
        if name is None:
            return None
        index = self._names.index(name)
        if self._names.count(name) > 1:
            raise FieldError(f"two columns {self._fields[index]}")
        return index

    def find_all(self, *roles: Sequence[str]) -> dict[str, int]:
        """Return the index of one column for each role, by its name; empty if one is missing."""
        indices = [index for index in map(self.find, roles) if index is not None]
        if len(indices) < len(roles):
            return {}
        return {self._fields[index]: index for index in indices}


def _is_number(text: str) -> bool:
    """Return whether a field is a number."""
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
