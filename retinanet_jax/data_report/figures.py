"""Histograms of the dataset report: box sizes, aspect ratios, IoUs, and boxes per category."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from retinanet_jax import visualize
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.anchor_choice import AnchorChoice, EpochBoxes, anchor_sides
from retinanet_jax.utils.packages import import_optional
from retinanet_jax.utils.progress import shorten

NUM_BINS = 60
MAX_CATEGORIES = 30  # in the bar chart
SMALLEST, LARGEST = 2.0**-6, 2.0**14  # values beyond are plotted here
COVERED, UNCOVERED = "tab:blue", "tab:red"


def histograms(config: ConfigDict, source: Source, choice: AnchorChoice) -> bytes:
    """Return a PNG of four plots: box sizes, aspect ratios, best IoUs, boxes per category.

    Args:
        config: The config of the run.
        source: The dataset, for the names of its categories.
        choice: The coverage of the config's anchors.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    module = import_optional("matplotlib.figure", "this figure", "retinanet-jax[inspect]")
    boxes, iou = choice.boxes, config.matching.foreground_iou
    figure = module.Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    sizes = np.sqrt(boxes.sides.prod(axis=1))
    _plot_coverage(axes[0, 0], sizes, anchor_sides(config), boxes, iou)
    axes[0, 0].set(xlabel="square root of a box's area, input pixels")
    _plot_coverage(
        axes[0, 1], boxes.sides[:, 0] / boxes.sides[:, 1], config.anchors.ratios, boxes, iou
    )
    axes[0, 1].set(xlabel="height / width")
    axes[1, 0].hist(boxes.ious, np.linspace(0, 1, 51), color=COVERED)
    for threshold in (config.matching.background_iou, iou):
        axes[1, 0].axvline(threshold, color="black", lw=0.7, ls="--")
    axes[1, 0].set(xlabel="IoU of a box with the anchor that overlaps it most", ylabel="boxes")
    _plot_categories(axes[1, 1], source, choice)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()


def _plot_coverage(
    axis: Any,
    values: Float[np.ndarray, " n"],
    anchor_values: Sequence[float],
    boxes: EpochBoxes,
    threshold: float,
) -> None:
    """Plot a logarithmic histogram of covered and uncovered boxes, with a line for each anchor."""
    values = np.clip(values, SMALLEST, LARGEST)
    low, high = min(values.min(), *anchor_values), max(values.max(), *anchor_values)
    edges = np.log2(low) - 0.2, np.log2(high) + 0.2
    axis.hist(
        [values[boxes.covered], values[~boxes.covered]],
        np.exp2(np.linspace(*edges, NUM_BINS)),
        stacked=True,
        color=[COVERED, UNCOVERED],
        label=[f"an anchor at IoU {threshold}", "none"],
    )
    for index, value in enumerate(anchor_values):
        axis.axvline(value, color="black", lw=0.7, ls=":", label=None if index else "anchors")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(ylabel="boxes")
    axis.legend()


def _plot_categories(axis: Any, source: Source, choice: AnchorChoice) -> None:
    """Plot the fractions of covered and uncovered boxes of each category, the worst at the top.

    With many categories, they are those that have most boxes without an anchor, by the rule of
    `ClassCounts.judged`, and of the others those with most boxes.
    """
    from matplotlib.font_manager import FontProperties

    counts = choice.classes
    order = np.lexsort((-counts.boxes, -counts.judged))
    chosen = order[counts.boxes[order] > 0][:MAX_CATEGORIES][::-1]
    fractions, positions = counts.fractions[chosen], np.arange(len(chosen))
    axis.barh(positions, 1 - fractions, color=COVERED)
    axis.barh(positions, fractions, left=1 - fractions, color=UNCOVERED)
    names = [f"{shorten(source.categories[k].name, 30)} ({counts.boxes[k]})" for k in chosen]
    texts = [visualize.fit_text(name, visualize.TEXT_SIZE) for name in names]
    axis.set_yticks(positions, [text for text, _ in texts], fontsize=8)
    for label, (_, font) in zip(axis.get_yticklabels(), texts, strict=True):
        label.set_parse_math(False)
        if isinstance(font.path, str):  # of the system; matplotlib's own may lack characters
            label.set_fontproperties(FontProperties(fname=font.path, size=8))
    axis.set(xlabel="fraction of the boxes with an anchor, and without (red)", xlim=(0, 1))
