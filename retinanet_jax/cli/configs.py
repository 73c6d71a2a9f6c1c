"""The command `retinanet-jax configs`, which lists the package's configs."""

import ast
import pathlib
import re
import textwrap
from typing import Any

from absl import flags

from retinanet_jax.cli.common import HELP_WIDTH, Command
from retinanet_jax.config import config_files

FIELDS = ("Command", "AP", "Measured")  # paragraphs of a config's docstring that are listed


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define no flags, because the command has none."""


def run(_: Any, __: list[str]) -> None:
    """Print each config's title, command and expected average precision."""
    print("\n\n".join(map(describe, config_files())))


def describe(path: pathlib.Path) -> str:
    """Return the purpose, the command and the results that a config's docstring states."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    lines = [f"configs/{path.name}", *_wrapped(docstring.partition("\n")[0])]
    for field in FIELDS:
        match = re.search(rf"^{field}:(.*(?:\n[ ]+.*)*)", docstring, flags=re.MULTILINE)
        if match:
            lines += _wrapped(f"{field}: {' '.join(match[1].split())}")
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    """Return the indented lines of a paragraph."""
    indent = " " * 4
    return textwrap.wrap(text, HELP_WIDTH, initial_indent=indent, subsequent_indent=indent)


COMMAND = Command(
    usage="retinanet-jax configs",
    description=(
        "Lists the package's configs, each with its command and the average precision to expect."
    ),
    define_flags=define_flags,
    run=run,
)
