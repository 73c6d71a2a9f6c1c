"""The reading of values in annotation files: each field has one type and one meaning everywhere.

Tools write the same value in several ways: 160, 160.0 and "160"; 1, true and "true". These are
accepted; anything else is an error that names the value and the rule. Whoever calls a function here
adds the file and the annotation to the message.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from retinanet_jax.utils.progress import join_first

MAX_SIDE = 1_000_000  # pixels; a larger image is a mistake, and its area may exceed 64 bits
MAX_COORDINATE = 1e12  # pixels; with larger ones, an area may not be finite
MAX_TEXT = 60  # characters of a value in a message
MAX_NAMES = 10  # of categories in a message
# Fractions of an image are rounded, and boxes may extend beyond it by a few pixels.
FRACTION_TOLERANCE = 0.01
FLAGS = {
    **dict.fromkeys(("0", "0.0", "false", "no", ""), False),
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
}


class FieldError(ValueError):
    """A field has an invalid value; the message has the field, the value and the rule."""


def show(value: Any) -> str:
    """Return a value as it appears in messages, cut to `MAX_TEXT` characters."""
    text = repr(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def unknown_category(name: str, names: Sequence[str]) -> str:
    """Return what is wrong with the category of an object, and what to do.

    Args:
        name: The category's name.
        names: The names of the categories that there are.
    """
    return (
        f"{show(name)}, but the categories are {join_first(names, MAX_NAMES)}; correct it, or add "
        "it to data.categories"
    )


def parse_number(name: str, value: Any) -> float:
    """Return a finite number, which may be written as text.

    Args:
        name: The field's name for the message.
        value: The value in the file.

    Raises:
        FieldError: If the value is no finite number.
    """
    if type(value) is float and math.isfinite(value):  # nearly all values of a large file
        return value
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            # Only Python reads 1_000 as a number.
            number = math.nan if isinstance(value, str) and "_" in value else float(value)
    if not math.isfinite(number):
        raise FieldError(f"{name}={show(value)}, not a finite number")
    return number


def parse_integer(name: str, value: Any) -> int:
    """Return an integer, which may be written as text or as a number with the fraction 0.

    Args:
        name: The field's name for the message.
        value: The value in the file.

    Raises:
        FieldError: If the value is no integer.
    """
    if type(value) is int:
        return value
    text = value.strip() if isinstance(value, str) else ""
    if text.removeprefix("-").isdecimal():  # of any size, where float would round
        return int(text)
    try:
        number = parse_number(name, value)
    except FieldError:
        number = math.nan
    if not number.is_integer():
        raise FieldError(f"{name}={show(value)}, not an integer")
    return int(number)


def parse_side(name: str, value: Any) -> int:
    """Return the height or width of an image in pixels.

    Args:
        name: The field's name for the message.
        value: The value in the file.

    Raises:
        FieldError: If the value is no integer from 1 to `MAX_SIDE`.
    """
    side = parse_integer(name, value)
    if not 1 <= side <= MAX_SIDE:
        raise FieldError(f"{name}={show(value)}, not from 1 to {MAX_SIDE} pixels")
    return side


def parse_fraction(name: str, value: Any) -> float:
    """Return a fraction of the height or width of an image, which may be written as text.

    Args:
        name: The field's name for the message.
        value: The value in the file.

    Raises:
        FieldError: If the value is not between 0 and 1, except for a tolerance of 0.01.
    """
    fraction = parse_number(name, value)
    if not -FRACTION_TOLERANCE <= fraction <= 1 + FRACTION_TOLERANCE:
        raise FieldError(f"{name}={show(value)}, not a fraction of the image from 0 to 1")
    return fraction


def parse_fractions(texts: Sequence[str], names: Sequence[str] = ()) -> list[float]:
    """Return fractions of the height or width of an image, such as the points of a polygon.

    Args:
        texts: The numbers in the file.
        names: Their names for the message; further numbers are named by their position.

    Raises:
        FieldError: As in `parse_fraction`.
    """
    low, high = -FRACTION_TOLERANCE, 1 + FRACTION_TOLERANCE
    try:
        numbers = [float(text) for text in texts]  # datasets have tens of millions of points
    except ValueError:
        numbers = []
    if numbers and all(low <= number <= high for number in numbers) and "_" not in "".join(texts):
        return numbers
    further = (f"number {position}" for position in range(len(names) + 1, len(texts) + 1))
    return [parse_fraction(*pair) for pair in zip((*names, *further), texts, strict=True)]


def parse_flag(name: str, value: Any) -> bool:
    """Return a flag such as COCO's `iscrowd`; None and empty text are false.

    Args:
        name: The field's name for the message.
        value: The value in the file.

    Raises:
        FieldError: If the value is none of `FLAGS`, as a number, a boolean or text.
    """
    if value is None:
        return False
    flag = FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise FieldError(f"{name}={show(value)}, neither 0 nor 1")
    return flag


def parse_name(name: str, value: Any) -> str:
    """Return a name without surrounding spaces; a number is a name, too.

    Args:
        name: The field's name for the message.
        value: The value in the file.

    Raises:
        FieldError: If the value is neither text nor an integer, or is empty.
    """
    is_name = isinstance(value, str | int) and not isinstance(value, bool)
    text = str(value).strip() if is_name else ""
    if not text:
        raise FieldError(f"{name}={show(value)}, not a name")
    return text


def _parse_coordinate(name: str, value: Any) -> float:
    """Return a coordinate or a side of a box in pixels."""
    number = parse_number(name, value)
    if abs(number) > MAX_COORDINATE:
        raise FieldError(f"{name}={show(value)}, beyond {MAX_COORDINATE:g} pixels")
    return number


def parse_edges(texts: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return x1, y1, x2 and y2 of a box.

    Args:
        texts: The values of x1, y1, x2 and y2, in that order, by their names in the format.

    Raises:
        FieldError: If a value is no finite number or too large, or x1 > x2 or y1 > y2.
    """
    x1, y1, x2, y2 = (_parse_coordinate(name, value) for name, value in texts.items())
    names = tuple(texts)
    for low, high, low_name, high_name in ((x1, x2, *names[::2]), (y1, y2, *names[1::2])):
        if low > high:
            raise FieldError(f"{low_name}={low:g} above {high_name}={high:g}")
    return x1, y1, x2, y2


def parse_xywh(name: str, value: Any) -> tuple[float, float, float, float]:
    """Return x, y, width and height of a box in COCO's format.

    Args:
        name: The field's name for the message.
        value: The value in the file.

    Raises:
        FieldError: If the value is not four finite numbers, or a side is negative.
    """
    numbers = value if isinstance(value, list) and len(value) == 4 else [None]
    try:
        x, y, width, height = [_parse_coordinate(name, number) for number in numbers]
    except FieldError:
        raise FieldError(
            f"{name}={show(value)}, not four finite numbers [x, y, w, h] up to {MAX_COORDINATE:g}"
        ) from None
    if width < 0 or height < 0:
        raise FieldError(f"{name}={show(value)} with a negative size; it is [x, y, w, h]")
    return x, y, width, height
