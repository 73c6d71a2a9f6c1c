"""A finding: the result of one check of a dataset, with its severity and the advice to the user."""

import itertools
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)  # worst first
MAX_EXAMPLES = 20  # per finding


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


def flags(fields: Mapping[str, Any]) -> str:
    """Return the command-line flags that set these config fields, given by their dotted names."""
    return " ".join(f"--config.{name}={shlex.quote(str(value))}" for name, value in fields.items())
