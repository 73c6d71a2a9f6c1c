"""A finding: the result of one check of a dataset, with its severity and the advice to the user."""

import itertools
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from retinanet_jax.utils.progress import one_line

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)  # worst first
MAX_EXAMPLES = 20  # per finding
MAX_NAME = 50  # characters of a name in a sentence


class Finding(NamedTuple):
    """The result of one check."""

    severity: str  # one of SEVERITIES
    subject: str
    message: str  # what was measured, in numbers
    advice: str = ""  # what to do, in one sentence; empty if there is nothing to do
    examples: tuple[str, ...] = ()


def first_examples(examples: Iterable[str]) -> tuple[str, ...]:
    """Return the first examples, at most `MAX_EXAMPLES`."""
    return tuple(itertools.islice(examples, MAX_EXAMPLES))


def shorten(text: str, limit: int = MAX_NAME) -> str:
    """Return a text in one line that any terminal can print, with dots in the middle if it is long.

    Args:
        text: Any text, such as a name in a dataset.
        limit: The largest number of characters.
    """
    # File names that are no UTF-8 contain surrogates, which cannot be printed.
    line = "".join("?" if unicodedata.category(c) in ("Cc", "Cs") else c for c in one_line(text))
    if len(line) <= limit:
        return line
    half = (limit - 3) // 2
    return f"{line[: limit - 3 - half]}...{line[-half:]}"


def flags(fields: Mapping[str, Any]) -> str:
    """Return the command-line flags that set these config fields, given by their dotted names."""
    return " ".join(f"--config.{name}={shlex.quote(str(value))}" for name, value in fields.items())
