"""Plots of an analysis as SVG elements in the colors and the fonts of the page around them.

matplotlib draws with the colors of COLORS, and in the SVG each is replaced by a CSS variable of the
page, which has a light and a dark version. The page also chooses the fonts, so that the names of
categories may be in any script.
"""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retinanet_jax.analysis.focal_loss_curves import draw_focal_loss
from retinanet_jax.utils.progress import shorten

TEXT, GRID, PAPER, FAINT = "#000001", "#000002", "#000003", "#000004"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
COLORS = {
    **{TEXT: "var(--text)", GRID: "var(--line)", PAPER: "var(--paper)", FAINT: "var(--faint)"},
    **{color: f"var(--series-{n})" for n, color in enumerate(SERIES, start=1)},
}
FONT = "DejaVu Sans"  # by which matplotlib measures texts; the page's own font replaces it
STYLE: Any = {
    "font.family": [FONT],
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of categories may contain dollar signs
    "text.color": TEXT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.labelcolor": TEXT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
}
WIDTH, HEIGHT = 4.6, 3.3  # inches of a plot, 442 CSS pixels wide
BAR = 0.28  # inches of the height of a bar with its gap
MAX_NAME = 26  # characters of a category's name
MAX_BARS = 30
MAX_NUMBERS = 12  # categories of a confusion matrix that has numbers in its cells
HIGHLIGHTED = 4  # categories with a color of their own among the precision-recall curves


def short_name(text: str, limit: int = MAX_NAME) -> str:
    """Return a text of a dataset in one short line that is not empty."""
    return shorten(text, limit) or "(no name)"


def plots(analysis: Mapping[str, Any]) -> dict[str, str]:
    """Return the SVG element of each plot, by the part of the analysis that it shows.

    A part that is undefined, for example because there is no object, has no plot.

    Args:
        analysis: The analysis as in analysis.json.
    """
    from matplotlib import rc_context

    drawings = {
        "errors": (plot_errors, analysis["errors"]),
        "curves": (plot_curves, analysis["curves"]),
        "threshold_curve": (plot_thresholds, analysis),
        "calibration": (plot_calibration, analysis["calibration"]),
        "confusion": (plot_confusion, analysis["confusion"]),
        "categories": (plot_categories, analysis["categories"]),
        "missed_by_size": (plot_missed_by_size, analysis["missed"]),
        "missed_by_anchor_iou": (plot_missed_by_anchor_iou, analysis["missed"]),
        "focal_loss": (plot_focal_loss, analysis["focal_loss"]),
    }
    with rc_context(STYLE), warnings.catch_warnings():
        # FONT lacks many scripts; only the measured widths of their texts are wrong.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        svgs = {name: draw(part) for name, (draw, part) in drawings.items()}
    return {name: svg for name, svg in svgs.items() if svg}


def plot_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    """Plot the AP50 that each type of error costs."""
    rows = [(error["type"], error["delta_ap"], f"{error['count']}") for error in errors]
    return _bars(rows, "AP50 gained if corrected (number of errors)")


def plot_categories(categories: Sequence[Mapping[str, Any]]) -> str:
    """Plot the AP of the worst categories."""
    rows = [(entry["name"], entry["AP"], "") for entry in categories[:MAX_BARS]]
    return _bars(rows, "AP", limit=1.0)


def plot_missed_by_size(missed: Mapping[str, Any]) -> str:
    """Plot the fraction of objects that are missed, by their size."""
    return _missed(missed["by_size"], "size of the object")


def plot_missed_by_anchor_iou(missed: Mapping[str, Any]) -> str:
    """Plot the fraction of objects that are missed, by the IoU of their best anchor."""
    return _missed(missed["by_anchor_iou"] or [], "IoU of the best anchor")


def plot_curves(curves: Sequence[Mapping[str, Any]]) -> str:
    """Plot precision over recall of all categories together, and of each; the worst have names."""
    named = [curve for curve in curves if curve["category"] is not None and curve["recall"]]
    if not any(curve["recall"] for curve in curves):
        return ""
    figure, (axis,) = _figure()
    worst = sorted(range(len(named)), key=lambda i: sum(named[i]["precision"]))[:HIGHLIGHTED]
    for index, curve in enumerate(named):
        color = SERIES[1 + worst.index(index)] if index in worst else FAINT
        label = short_name(curve["category"]) if index in worst else None
        alpha = 1 if index in worst else 0.35
        axis.plot(
            curve["recall"],
            curve["precision"],
            color=color,
            lw=1,
            alpha=alpha,
            label=_literal(label),
        )
    for curve in curves:
        if curve["category"] is None and curve["recall"]:
            axis.plot(
                curve["recall"], curve["precision"], color=SERIES[0], lw=2.4, label="all categories"
            )
    axis.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(loc="lower left")
    return _svg(figure, "Precision over recall")


def plot_thresholds(analysis: Mapping[str, Any]) -> str:
    """Plot precision, recall and F1 over the score threshold, and the threshold with the best F1.

    Args:
        analysis: The analysis, of which this reads "threshold_curve" and "summary".
    """
    curve, best = analysis["threshold_curve"], analysis["summary"]["threshold"]
    if best is None:
        return ""
    figure, (axis,) = _figure()
    for color, name in ((SERIES[1], "precision"), (SERIES[2], "recall"), (SERIES[0], "F1")):
        values = np.array(curve[name], float)  # None becomes NaN, of which nothing is plotted
        width = 2 if name == "F1" else 1.4
        axis.plot(curve["threshold"], values, color=color, lw=width, label=name)
    axis.axvline(best, color=TEXT, lw=1, ls="--", label=f"best F1 at {best:.2f}")
    axis.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(loc="lower center", ncols=2)
    return _svg(figure, "Precision, recall and F1 over the score threshold")


def plot_calibration(calibration: Mapping[str, Any]) -> str:
    """Plot which fraction of the detections of about a score are correct."""
    bins = [entry for entry in calibration["bins"] if entry["count"]]
    if not bins:
        return ""
    figure, (axis,) = _figure()
    lower = [entry["lower"] for entry in bins]
    widths = [entry["upper"] - entry["lower"] for entry in bins]
    heights = [entry["accuracy"] for entry in bins]
    axis.bar(lower, heights, widths, align="edge", color=SERIES[0], edgecolor=PAPER)
    axis.plot([0, 1], [0, 1], color=TEXT, lw=1, ls="--")
    axis.set(xlabel="score", ylabel="fraction that is correct", xlim=(0, 1), ylim=(0, 1.02))
    return _svg(figure, "Calibration")


def plot_confusion(confusion: Mapping[str, Any]) -> str:
    """Plot the confusion matrix; the color of a cell is its fraction of the row."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    counts = np.array(confusion["matrix"], float)
    if not counts.sum():
        return ""
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [*map(short_name, confusion["categories"]), "background"]
    side = max(3.4, len(names) * 0.3 + 1.8)
    figure, (axis,) = _figure(side + 0.8, side)
    opacity = LinearSegmentedColormap.from_list(
        "opacity", [to_rgba(SERIES[0], alpha) for alpha in (0, 1)]
    )
    axis.pcolormesh(fractions, cmap=opacity, vmin=0, vmax=1, edgecolors=GRID, linewidth=0.4)
    if len(names) <= MAX_NUMBERS:
        for (row, column), fraction in np.ndenumerate(fractions):
            axis.text(
                *(column + 0.5, row + 0.5, f"{counts[row, column]:.0f}"),
                **{"ha": "center", "va": "center", "fontsize": 8},
                color=PAPER if fraction > 0.55 else TEXT,
            )
    middles = np.arange(len(names)) + 0.5
    axis.set_xticks(middles, names, rotation=90)
    axis.set_yticks(middles, names)
    axis.tick_params(length=0)
    axis.set(xlabel="detected as", ylabel="object", ylim=(len(names), 0), aspect="equal")
    axis.grid(visible=False)
    return _svg(figure, "Confusion matrix")


def plot_focal_loss(focal_loss: Mapping[str, Any] | None) -> str:
    """Plot the cumulative normalized focal loss of foreground and background anchors."""
    if focal_loss is None:
        return ""
    figure = draw_focal_loss(focal_loss, SERIES)
    return _svg(figure, "Cumulative normalized focal loss")


def _missed(groups: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return a plot of the fraction of objects that are missed in groups of them."""
    rows = [
        (
            group["label"],
            group["missed"] / group["objects"] if group["objects"] else None,
            f"{group['missed']} of {group['objects']}",
        )
        for group in groups
    ]
    return _bars(rows, f"fraction missed, by {title}", limit=1.0)


def _bars(
    rows: Sequence[tuple[str, float | None, str]], xlabel: str, limit: float | None = None
) -> str:
    """Return a plot of `_draw_bars`; none if all values are undefined."""
    if all(value is None for _, value, _ in rows):
        return ""
    figure, (axis,) = _figure(WIDTH, len(rows) * BAR + 0.9)
    _draw_bars(axis, rows, limit)
    axis.set(xlabel=xlabel)
    return _svg(figure, xlabel)


def _draw_bars(
    axis: Any, rows: Sequence[tuple[str, float | None, str]], limit: float | None
) -> None:
    """Draw horizontal bars of (name, value, note), the first at the top, with their numbers.

    Args:
        axis: The axes to draw on.
        rows: The name, the value and a note about each bar.
        limit: The largest possible value; None for that of the rows.
    """
    values = [value or 0.0 for _, value, _ in rows]
    largest = limit or max(*map(abs, values), 1e-3)
    axis.barh(range(len(rows)), values, color=SERIES[0], height=0.7)
    for position, (_, value, note) in enumerate(rows):
        number = "undefined" if value is None else f"{value:.3f}"
        text = f"{number} ({note})" if note else number
        axis.text(max(value or 0.0, 0.0) + largest / 60, position, text, va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [short_name(name) for name, _, _ in rows])
    axis.tick_params(axis="y", length=0)
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=(min(*values, 0.0) * 1.1, largest * 1.3))
    axis.set_xticks([tick for tick in axis.get_xticks() if tick <= largest])
    axis.grid(visible=False, axis="y")


def _figure(width: float = WIDTH, height: float = HEIGHT, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes in one row; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _literal(label: str | None) -> str | None:
    """Return a label of a legend, from which matplotlib omits those that begin with "_"."""
    return f"\N{ZERO WIDTH SPACE}{label}" if label else label


def _svg(figure: Any, title: str) -> str:
    """Return a figure as an SVG element with a title for screen readers."""
    from matplotlib import rcParams

    rcParams["svg.hashsalt"] = title  # of the ids, which would otherwise be random
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<style.*?</style>", "", text[text.index("<svg") :])
    text = re.sub(r"<[^>]*>", _styled, text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _styled(tag: re.Match[str]) -> str:
    """Return a tag of the SVG with the colors and the font of the page, and without its own id.

    The ids are the same in all plots, except those of markers ("m...") and clip paths ("p...").
    """
    text = re.sub(r' id="(?!m[0-9a-f]{10}|p[0-9a-f]{10})[^"]*"', "", tag.group())
    text = text.replace(f"'{FONT}'", "var(--font)")
    return re.sub(r"#0000[01][1-6]", lambda color: COLORS[color.group()], text)
