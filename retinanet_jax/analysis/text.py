"""The summary of an analysis as a few lines of text, for a terminal."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retinanet_jax.utils.progress import format_count, shorten

WIDTH = 100  # characters of a line
METRICS = ("AP", "AP50", "AP75")
NUM_CATEGORIES = 5
NUM_ADVICE, ADVICE_LINES = 5, 3
MAX_NAME = 30  # characters of a name


def summarize(analysis: Mapping[str, Any]) -> str:
    """Return the summary of an analysis in at most 40 lines of at most WIDTH characters.

    Args:
        analysis: The analysis as in analysis.json.
    """
    lines = [
        *_metrics(analysis["summary"]),
        *_comparison(analysis["comparison"]),
        *_errors(analysis["errors"]),
        *_categories(analysis["categories"]),
        *_advice(analysis["advice"]),
    ]
    return "\n".join(shorten(line, WIDTH) if len(line) > WIDTH else line for line in lines)


def _metrics(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines with the metrics and their intervals."""
    nouns = ("image", "object", "detection")
    yield ", ".join(format_count(summary[f"{noun}s"], noun) for noun in nouns)
    values = (
        f"{name} {_number(summary['metrics'][name])}{_interval(summary['intervals'].get(name))}"
        for name in METRICS
    )
    has_intervals = any(summary["intervals"].get(name) for name in METRICS)
    note = f" (intervals of {summary['confidence']:.0%})" if has_intervals else ""
    yield ", ".join(values) + note
    if summary["threshold"] is not None:
        point = ", ".join(f"{name} {_number(summary[name])}" for name in ("precision", "recall"))
        yield f"F1 {_number(summary['F1'])} at the score {summary['threshold']:.3f}: {point}"


def _comparison(comparison: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield lines that compare two detectors, if there are two."""
    if comparison:
        yield f"compared with {shorten(comparison['other'], MAX_NAME)}:"
        yield f"  AP {format_difference(comparison['metrics']['AP'])}"


def format_difference(difference: Mapping[str, float | None]) -> str:
    """Return the difference of a metric of two detectors with its interval, as text.

    Args:
        difference: One of the "metrics" that `intervals.compare_detectors` returns.
    """
    interval = ""
    if difference["low"] is not None:
        interval = (
            f" [{difference['low']:+.3f}, {difference['high']:+.3f}], higher with probability "
            f"{difference['probability']:.0%}"
        )
    return f"{_gain(difference['difference']) or 'undefined'}{interval}"


def _errors(errors: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each type of error."""
    yield "errors by type, and the AP50 that they cost:"
    for error in errors:
        yield f"  {error['type']:<14}{error['count']:>7}   {_gain(error['delta_ap'])}".rstrip()


def _categories(categories: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the categories of the lowest AP."""
    measured = [row for row in categories if row["AP"] is not None]
    if measured:
        yield f"lowest AP ({len(measured)} of {len(categories)} categories have objects):"
    for row in measured[:NUM_CATEGORIES]:
        error = f", mostly {row['worst_error']}" if row["worst_error"] else ""
        yield (
            f"  {shorten(row['name'], MAX_NAME):<{MAX_NAME}} AP {row['AP']:.3f}, "
            f"{row['missed']} of {row['objects']} objects missed{error}"
        )


def _advice(advice: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the first advice, each of a few lines."""
    if advice:
        yield "what to try:"
    for item in advice[:NUM_ADVICE]:
        yield from textwrap.wrap(
            f"{item['severity']}: {item['title']}: {item['text']}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
            max_lines=ADVICE_LINES,
            placeholder=" ...",
        )
    if len(advice) > NUM_ADVICE:
        yield f"  {len(advice) - NUM_ADVICE} more on the page"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def _gain(delta_ap: float | None) -> str:
    return "" if delta_ap is None else f"{delta_ap:+.3f}"
