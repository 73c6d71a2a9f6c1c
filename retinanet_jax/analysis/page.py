"""The page of an analysis: one HTML file that contains its plots, images, style and script.

Whatever a dataset contains, even a script as the name of a category, is text on the page: jinja2
escapes it, and a browser runs only the script that has the digest in the page's content security
policy. The policy also forbids everything that would be loaded from elsewhere.
"""

import base64
import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from retinanet_jax.analysis.plots import plots, short_name
from retinanet_jax.analysis.worst_images import COLORS
from retinanet_jax.utils.packages import import_optional
from retinanet_jax.utils.progress import format_count

TEMPLATE, STYLE, SCRIPT = "page.html", "page.css", "page.js"
UNDEFINED = "-"
SECTIONS = {
    "summary": "Summary",
    "advice": "What to try",
    "errors": "Errors by type",
    "curves": "Curves",
    "missed": "Missed objects",
    "categories": "Categories",
    "images": "Worst images",
    "labels": "Suspicious labels",
    "provenance": "Provenance",
}
MEANINGS = {
    "class": "the box of an object (IoU 0.5), with another category",
    "localization": "the category of an object, with an inaccurate box (IoU 0.1 to 0.5)",
    "both": "another category and an inaccurate box",
    "duplicate": "an object that a detection with a higher score detects already",
    "background": "no object there (IoU below 0.1)",
    "missed": "an object without a detection, not even one of another type of error",
}
# The columns of the table of categories: keys in analysis.json, and decimals.
COLUMNS = {
    **{"AP": 3, "AP50": 3, "AR": 3, "objects": 0, "images": 0, "detections": 0, "missed": 0},
    **{"threshold": 2, "F1": 3, "precision": 3, "recall": 3},
}


def render(analysis: Mapping[str, Any]) -> bytes:
    """Return the page of an analysis as an HTML file in UTF-8.

    Args:
        analysis: The analysis as in analysis.json.

    Raises:
        ValueError: If jinja2 or matplotlib is not installed.
    """
    engine = template_engine()
    script = _resource(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = {name for entry in analysis["images"] for name in entry["categories"]}
    image_categories = sorted(names)
    numbers = {name: number for number, name in enumerate(image_categories)}

    def error_words(image: Mapping[str, Any]) -> str:
        """Return what the script filters an image by, for example "0:class 2:missed"."""
        errors = image["category_errors"].items()
        return " ".join(f"{numbers[name]}:{error}" for name, types in errors for error in types)

    template = engine.from_string(_resource(TEMPLATE))
    return template.render(
        **analysis,
        plots=plots(analysis),
        style=_resource(STYLE),
        script=script,
        script_digest=f"sha256-{digest}",
        sections=SECTIONS,
        columns=COLUMNS,
        meanings=MEANINGS,
        colors={name: f"rgb{color}" for name, color in COLORS.items()},
        image_categories=image_categories,
        error_words=error_words,
        provenance_rows=list(_flatten(analysis["provenance"])),
    ).encode()


def template_engine() -> Any:
    """Return an environment of jinja2 that escapes values, and has the page's filters.

    Raises:
        ValueError: If jinja2 is not installed.
    """
    jinja2, markupsafe, _ = (
        import_optional(name, "the page of the analysis", "retinanet-jax[analyze]")
        for name in ("jinja2", "markupsafe", "matplotlib")
    )
    engine = jinja2.Environment(
        autoescape=True,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )

    def with_code(text: str) -> Any:
        """Return a text as HTML, in which the commands between backticks are code."""
        escaped = str(markupsafe.escape(text))  # a Markup would escape the tags, too
        return markupsafe.Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escaped))

    engine.filters |= {
        "code": with_code,
        "count": format_count,
        "number": format_number,
        "short": short_name,
    }
    return engine


def format_number(value: float | None, digits: int = 3, *, sign: str = "") -> str:
    """Return a number with this many decimals, or a dash if it is undefined.

    Args:
        value: The number.
        digits: The number of decimals.
        sign: "+" to give positive numbers a sign, too.
    """
    return UNDEFINED if value is None else f"{value:{sign}z.{digits}f}"  # z: no "-0.0"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name of each value in nested mappings, such as "dataset: images", and its text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}: ")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _resource(name: str) -> str:
    """Return the text of a file next to this module, in a wheel, too."""
    return (
        importlib.resources.files("retinanet_jax.analysis")
        .joinpath(name)
        .read_text(encoding="utf-8")
    )
