"""Opens the datasets of a report, and reports what was unusual in their files."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Sequence

from absl import logging as absl_logging
from ml_collections import ConfigDict

from retinanet_jax import datasets
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.instances import OUTSIDE, WITHOUT_AREA
from retinanet_jax.data_report.findings import WARNING, Finding
from retinanet_jax.utils.progress import one_line

# Warnings that have findings of their own.
REPORTED_ELSEWHERE = (WITHOUT_AREA, OUTSIDE)


def open_parts(config: ConfigDict, output: pathlib.Path) -> tuple[dict[str, Source], list[Finding]]:
    """Return the datasets of a config by name, and findings about the warnings of reading them.

    The names are "train" and, if there is evaluation data, "eval".

    Args:
        config: The config of the run.
        output: The folder in which synthetic images are generated.
    """
    with collect_warnings() as messages:
        parts = _open_parts(config, output)
    return parts, check_reading(messages)


def _open_parts(config: ConfigDict, output: pathlib.Path) -> dict[str, Source]:
    """Return the datasets by name."""
    has_evaluation = (
        datasets.splits_training_data(config)
        or datasets.names_evaluation_data(config)
        or config.data.eval.source == "shapes"
    )
    if not has_evaluation:
        return {"train": datasets.open_training(config, output)}
    return dict(zip(datasets.PARTS, datasets.open_both(config, output), strict=True))


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the warnings that are logged inside a `with` statement instead of printing them."""
    messages: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        messages.append(one_line(record.getMessage()))
        return False

    logger, verbosity = absl_logging.get_absl_logger(), absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.WARNING)
    logger.addFilter(collect)
    try:
        yield messages
    finally:
        logger.removeFilter(collect)
        absl_logging.set_verbosity(verbosity)


def check_reading(messages: Sequence[str]) -> list[Finding]:
    """Return a finding for each warning that was logged when the datasets were opened.

    Args:
        messages: The warnings.
    """
    return [
        Finding(WARNING, "reading", message)
        for message in dict.fromkeys(messages)
        if not any(text in message for text in REPORTED_ELSEWHERE)
    ]
