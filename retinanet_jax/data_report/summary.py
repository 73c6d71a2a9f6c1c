"""The dataset report as text and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.anchor_choice import AnchorChoice, anchor_sides
from retinanet_jax.data_report.anchor_fit import AnchorFit, typical_sides
from retinanet_jax.data_report.annotation_checks import AnnotatedBoxes
from retinanet_jax.data_report.bucket_fit import BucketFit
from retinanet_jax.data_report.findings import Finding, flags
from retinanet_jax.utils.progress import shorten

MAX_CATEGORIES = 40  # with more, the text lists only the most frequent and the rarest
MAX_EXAMPLES = 3  # per finding in the text
MAX_LINE = 400  # characters of a message or an example; advice has flags, which are not shortened
MAX_WORST = 10  # categories in the table of those without anchors
NUM_COLUMNS, COLUMN = 3, 16  # categories in the table of proposals, and the width of each
BAR_LENGTH = 40  # characters of the longest bar
SIZE_EDGES = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, np.inf)  # input pixels
RATIO_EDGES = (0, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 1 / 1.4, 1.4, 2, 3, 4, 8, np.inf)  # height / width


class DatasetReport(NamedTuple):
    """All results of the checks; the parts are "train" and, if there is evaluation data, "eval"."""

    config: ConfigDict
    parts: dict[str, Source]
    boxes: dict[str, AnnotatedBoxes]  # by part
    buckets: BucketFit
    anchors: AnchorFit | None  # None if there are no boxes
    findings: Sequence[Finding]  # the most severe first


class Bin(NamedTuple):
    """One bin of a histogram."""

    low: float
    high: float
    boxes: int
    uncovered: int  # number of these boxes that have no anchor


def as_text(report: DatasetReport) -> str:
    """Return the report as text: the findings, then the numbers that they are based on."""
    lines = ["", "== findings", *findings_text(report.findings)]
    lines += ["", "== buckets", *buckets_text(report)]
    lines += ["", "== categories", *categories_text(report)]
    if report.anchors is not None:
        lines += ["", "== anchors", *anchors_text(report)]
        sides = ", ".join(f"{side:.0f}" for side in anchor_sides(report.config))
        ratios = ", ".join(f"{ratio:.3g}" for ratio in report.config.anchors.ratios)
        by_size, by_ratio = histograms(report.anchors)
        lines += ["", "== box sizes: square root of the area, input pixels", f"anchors: {sides}"]
        lines += bins_text(by_size)
        lines += ["", "== aspect ratios: height / width", f"anchors: {ratios}"]
        lines += bins_text(by_ratio)
    return "\n".join(lines) + "\n"


def findings_text(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the severity, subject and message of each finding, and below it advice and examples."""
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        message = shorten(finding.message, MAX_LINE)
        yield f"{finding.severity:7}  {finding.subject:{width}}  {message}"
        margin = " " * (width + 11)
        if finding.advice:
            yield f"{margin}-> {finding.advice}"
        for example in finding.examples[:MAX_EXAMPLES]:
            yield f"{margin}   {shorten(example, MAX_LINE)}"
        if len(finding.examples) > MAX_EXAMPLES:
            yield f"{margin}   ... (report.json has more)"


def buckets_text(report: DatasetReport) -> Iterator[str]:
    """Yield the padding of each choice of buckets, and below it each bucket."""
    for name, table in report.buckets.tables.items():
        yield f"{name:18}  {table.padding_overhead:6.1%} padding"
        epochs = sum(row.images for row in table.rows) / len(report.parts["train"])
        for row in table.rows:
            height, width = row.bucket
            yield (
                f"    {height:4} x {width:<4}  {row.images / epochs:8.4g} images per epoch  "
                f"{row.padding_overhead:6.1%} padding"
            )


def categories_text(report: DatasetReport) -> Iterator[str]:
    """Yield the number of boxes of each category, and the fraction without an anchor."""
    rows = category_rows(report)
    rows.sort(key=lambda row: -row["train"])
    half = MAX_CATEGORIES // 2
    omitted = range(half, len(rows) - half) if len(rows) > MAX_CATEGORIES else range(0)
    yield f"{'id':>6}  {'train':>8}  {'eval':>8}  {'no anchor':>9}  name"
    for index, row in enumerate(rows):
        if index in omitted:
            if index == omitted[0]:
                yield f"   ...  ({len(omitted)} more: report.json)"
            continue
        no_anchor, name = percent(row["no_anchor"]), shorten(row["name"])
        yield f"{row['id']:6}  {row['train']:8}  {row['eval']:8}  {no_anchor:>9}  {name}"


def category_rows(report: DatasetReport) -> list[dict[str, Any]]:
    """Return a row per category of train.

    Its fields are id, name, the numbers of boxes in train, eval and the sample that is matched with
    anchors, and no_anchor, the fraction of the latter without an anchor, and their median height
    and width in input pixels (None if no box was sampled).
    """
    counts = {part: named_counts(report.parts[part], report.boxes[part]) for part in report.parts}
    rows = []
    for k, category in enumerate(report.parts["train"].categories):
        sampled, no_anchor, sides = 0, None, None
        if report.anchors is not None:
            configured = report.anchors.configured
            sampled = int(configured.classes.boxes[k])
            sides = typical_sides(configured, k)
            no_anchor = float(configured.classes.fractions[k]) if sampled else None
        row = {
            "id": category.id,
            "name": category.name,
            "train": counts["train"][category.name],
            "eval": counts.get("eval", {}).get(category.name, 0),
            "sampled": sampled,
            "no_anchor": no_anchor,
            "median_sides": sides,
        }
        rows.append(row)
    return rows


def named_counts(source: Source, boxes: AnnotatedBoxes) -> dict[str, int]:
    """Return the number of objects of each category, by the category's name."""
    counts = np.bincount(boxes.classes[boxes.object_mask], minlength=len(source.categories))
    return {c.name: int(n) for c, n in zip(source.categories, counts, strict=True)}


def anchors_text(report: DatasetReport) -> Iterator[str]:
    """Yield the categories without anchors, and the coverage of each choice with its flags."""
    anchors, categories = report.anchors, report.parts["train"].categories
    assert anchors is not None
    yield (
        f"matched on {len(anchors.label_counts)} images (seed {report.config.seed}) with "
        f"{len(anchors.configured.boxes.ious)} boxes; the IoU of a box is that with the anchor "
        "that overlaps it most"
    )
    worst = anchors.configured.classes.worst_first.tolist()
    if worst:
        yield from worst_categories_text(report, worst)
        yield ""
    columns = worst[:NUM_COLUMNS] if anchors.configured.is_poor else []
    names = "".join(f"{shorten(categories[k].name, COLUMN - 2):>{COLUMN}}" for k in columns)
    covered = f"at IoU {report.config.matching.foreground_iou}"
    yield f"{'':20}  {covered:>11}  mean IoU  anchors per image{names}"
    for choice in (anchors.configured, *anchors.proposals):
        fractions = choice.classes.fractions[columns]
        by_class = "".join(f"{percent(1 - fraction):>{COLUMN}}" for fraction in fractions.tolist())
        yield (
            f"{choice.name:20}  {1 - choice.uncovered:11.1%}  {choice.mean_iou:8.3f}  "
            f"{choice.anchors_per_image:17.0f}{by_class}"
        )
        if choice.fields:
            yield f"    {flags(choice.fields)}"


def worst_categories_text(report: DatasetReport, worst: Sequence[int]) -> Iterator[str]:
    """Yield a table of the categories with the most boxes without an anchor, the worst first."""
    rows = category_rows(report)
    yield f"{'no anchor':>9}  {'of boxes':>8}  {'median height x width':>21}  category"
    for row in (rows[k] for k in worst[:MAX_WORST]):
        height, width = row["median_sides"]
        sides = f"{height:.0f} x {width:.0f}"
        name = shorten(row["name"])
        yield f"{percent(row['no_anchor']):>9}  {row['sampled']:8}  {sides:>21}  {name}"
    if len(worst) > MAX_WORST:
        yield f"      ...  ({len(worst) - MAX_WORST} more: report.json)"


def percent(fraction: float | None) -> str:
    """Return a fraction in percent; empty for None and NaN."""
    return "" if fraction is None or np.isnan(fraction) else f"{fraction:.1%}"


def histograms(anchors: AnchorFit) -> tuple[list[Bin], list[Bin]]:
    """Return the boxes by size and by aspect ratio, without empty bins at either end."""
    sides, uncovered = anchors.configured.boxes.sides, ~anchors.configured.boxes.covered
    sizes, ratios = np.sqrt(sides.prod(axis=1)), sides[:, 0] / sides[:, 1]
    return count_bins(sizes, uncovered, SIZE_EDGES), count_bins(ratios, uncovered, RATIO_EDGES)


def count_bins(
    values: Float[np.ndarray, " n"], uncovered: Bool[np.ndarray, " n"], edges: Sequence[float]
) -> list[Bin]:
    """Return a histogram without empty bins at either end.

    Args:
        values: The values, such as the sizes of boxes.
        uncovered: Which of them are also counted on their own.
        edges: The edges of the bins; a value at an edge is in the bin that it begins.
    """
    counts, _ = np.histogram(values, edges)
    uncovered_counts, _ = np.histogram(values[uncovered], edges)
    nonempty = np.flatnonzero(counts)
    return [
        Bin(float(edges[k]), float(edges[k + 1]), int(counts[k]), int(uncovered_counts[k]))
        for k in range(nonempty.min(initial=len(counts)), nonempty.max(initial=-1) + 1)
    ]


def bins_text(bins: Sequence[Bin]) -> Iterator[str]:
    """Yield each bin with a bar, of # for covered boxes and . for uncovered ones."""
    longest = max(b.boxes for b in bins)
    for b in bins:
        whole = round(BAR_LENGTH * b.boxes / longest)
        dots = round(BAR_LENGTH * b.uncovered / longest)
        fraction = f"{b.uncovered / b.boxes:.1%}" if b.boxes else ""
        yield (
            f"{b.low:6.3g} .. {b.high:<6.3g} {b.boxes:8} boxes  {fraction:>6} without anchor  "
            f"{'#' * (whole - dots)}{'.' * dots}"
        )


def as_json(report: DatasetReport) -> dict[str, Any]:
    """Return all numbers of the report in types that JSON has."""
    content = {
        "findings": [finding._asdict() for finding in report.findings],
        "parts": {
            part: {
                "name": source.name,
                "images": len(source),
                "boxes": len(report.boxes[part].ids),
                "boxes_trained_on": int(report.boxes[part].object_mask.sum()),
            }
            for part, source in report.parts.items()
        },
        "categories": category_rows(report),
        "buckets": {
            name: {
                "padding_overhead": table.padding_overhead,
                "rows": [row._asdict() for row in table.rows],
            }
            for name, table in report.buckets.tables.items()
        },
        "suggested_buckets": report.buckets.suggested,
    }
    return content | (_anchors_json(report, report.anchors) if report.anchors else {})


def _anchors_json(report: DatasetReport, anchors: AnchorFit) -> dict[str, Any]:
    """Return the part of the JSON report that is about anchors."""
    by_size, by_ratio = histograms(anchors)
    means = anchors.label_counts.mean(axis=0).tolist()
    return {
        "sample": {"images": len(anchors.label_counts), "seed": report.config.seed},
        "anchors": {
            choice.name: _choice_json(report, choice)
            for choice in (anchors.configured, *anchors.proposals)
        },
        "anchors_per_image": dict(zip(("foreground", "background", "ignored"), means, strict=True)),
        "boxes_by_size": [_finite(b) for b in by_size],
        "boxes_by_aspect_ratio": [_finite(b) for b in by_ratio],
    }


def _choice_json(report: DatasetReport, choice: AnchorChoice) -> dict[str, Any]:
    """Return the coverage of a choice of anchors; that of a category without boxes is None."""
    fields = choice.fields
    covered = [
        None if np.isnan(fraction) else 1 - fraction
        for fraction in choice.classes.fractions.tolist()
    ]
    names = [category.name for category in report.parts["train"].categories]
    return {
        "scales": fields.get("anchors.scales", tuple(report.config.anchors.scales)),
        "ratios": fields.get("anchors.ratios", tuple(report.config.anchors.ratios)),
        "covered": 1 - choice.uncovered,
        "mean_iou": choice.mean_iou,
        "covered_by_category": dict(zip(names, covered, strict=True)),
        "anchors_per_image": choice.anchors_per_image,
        "fields": fields,
        "flags": flags(fields),
    }


def _finite(b: Bin) -> dict[str, Any]:
    """Return the bin's fields with None for infinity, which JSON does not have."""
    return {**b._asdict(), "high": b.high if np.isfinite(b.high) else None}
