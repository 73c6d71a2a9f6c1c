"""The doctor's report as text and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report.coverage import Coverage
from retinanet_jax.data_report.findings import Boxes, Finding
from retinanet_jax.data_report.fit import Anchors, Buckets, anchor_flags, anchor_sides

MANY_CATEGORIES = 40  # of more, the text lists the most frequent and the rarest
BAR = 40  # characters of the longest bar
SIDES = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, np.inf)  # input pixels
FORMS = (0, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 1 / 1.4, 1.4, 2, 3, 4, 8, np.inf)  # height / width


class Inspection(NamedTuple):
    """All that was looked at; "train" and mostly "eval" are the parts."""

    config: ConfigDict
    parts: dict[str, Source]
    boxes: dict[str, Boxes]
    buckets: Buckets
    anchors: Anchors | None  # None: there are no boxes
    findings: Sequence[Finding]  # worst first


class Bin(NamedTuple):
    """One row of a histogram."""

    low: float
    high: float
    boxes: int
    uncovered: int  # of them, by any anchor


def text(seen: Inspection) -> str:
    """Findings first, then the figures."""
    lines = ["", "== findings", *findings_text(seen.findings)]
    lines += ["", "== buckets", *buckets_text(seen)]
    lines += ["", "== categories", *categories_text(seen)]
    if seen.anchors is not None:
        lines += ["", "== anchors", *anchors_text(seen.config, seen.anchors)]
        sides = ", ".join(f"{side:.0f}" for side in anchor_sides(seen.config))
        ratios = ", ".join(f"{ratio:.3g}" for ratio in seen.config.anchors.ratios)
        by_side, by_form = histograms(seen.config, seen.anchors)
        lines += ["", "== sizes: square root of a box's area, input pixels", f"anchors: {sides}"]
        lines += bins_text(by_side)
        lines += ["", "== forms: height / width", f"anchors: {ratios}", *bins_text(by_form)]
    return "\n".join(lines) + "\n"


def findings_text(found: Sequence[Finding]) -> Iterator[str]:
    """Verdict, subject, what there is; below, what to do and examples."""
    width = max(len(one.subject) for one in found)
    for one in found:
        yield f"{one.verdict:5}  {one.subject:{width}}  {one.says}"
        margin = " " * (width + 9)
        if one.advice:
            yield f"{margin}-> {one.advice}"
        yield from (f"{margin}   {example}" for example in one.examples[:3])
        if len(one.examples) > 3:
            yield f"{margin}   ... (report.json has more)"


def buckets_text(seen: Inspection) -> Iterator[str]:
    """Each choice of shapes with its padding, and below it each shape."""
    for name, table in seen.buckets.tables.items():
        yield f"{name:13}  {table.padding_overhead:6.1%} padding"
        epochs = sum(row.pictures for row in table.rows) / len(seen.parts["train"])
        for row in table.rows:
            height, width = row.bucket
            yield (
                f"    {height:4} x {width:<4}  {row.pictures / epochs:8.4g} pictures an epoch  "
                f"{row.padding_overhead:6.1%} padding"
            )


def categories_text(seen: Inspection) -> Iterator[str]:
    """Boxes of each category, and how many have no anchor."""
    rows = category_rows(seen)
    rows.sort(key=lambda row: -row["train"])
    hidden = (
        rows[MANY_CATEGORIES // 2 : -MANY_CATEGORIES // 2] if len(rows) > MANY_CATEGORIES else []
    )
    yield f"{'id':>6}  {'train':>8}  {'eval':>8}  {'no anchor':>9}  name"
    for row in rows:
        if row in hidden:
            if row is hidden[0]:
                yield f"   ...  ({len(hidden)} more: report.json)"
            continue
        share = "" if row["no_anchor"] is None else f"{row['no_anchor']:.1%}"
        yield f"{row['id']:6}  {row['train']:8}  {row['eval']:8}  {share:>9}  {row['name']}"


def category_rows(seen: Inspection) -> list[dict[str, Any]]:
    """Each category of train: its boxes, and the share of the sampled ones without an anchor."""
    counts = {part: named_counts(seen.parts[part], seen.boxes[part]) for part in seen.parts}
    categories = seen.parts["train"].categories
    shown, missed = np.zeros(len(categories), int), np.zeros(len(categories), int)
    if seen.anchors is not None:
        own = seen.anchors.seen
        threshold = seen.config.matching.foreground_iou
        shown = np.bincount(own.classes, minlength=len(categories))
        missed = np.bincount(own.classes[own.ious < threshold], minlength=len(categories))
    return [
        {
            "id": category.id,
            "name": category.name,
            "train": counts["train"][category.name],
            "eval": counts.get("eval", {}).get(category.name, 0),
            "no_anchor": float(missed[k] / shown[k]) if shown[k] else None,
        }
        for k, category in enumerate(categories)
    ]


def named_counts(source: Source, boxes: Boxes) -> dict[str, int]:
    """Boxes that are trained on, by the name of their category."""
    counts = np.bincount(boxes.classes[boxes.usable], minlength=len(source.categories))
    return {c.name: int(n) for c, n in zip(source.categories, counts, strict=True)}


def anchors_text(config: ConfigDict, anchors: Anchors) -> Iterator[str]:
    """The config's anchors and better ones, with the flags that set them."""
    yield (
        f"matched on {len(anchors.labels)} pictures (seed {config.seed}), "
        f"{len(anchors.seen.ious)} boxes; IoU of each with the anchor that overlaps it most"
    )
    yield f"{'':13}  at IoU {config.matching.foreground_iou}   mean IoU"
    for name, one in named_anchors(anchors):
        yield f"{name:13}  {one.covered:10.1%}   {one.mean_iou:8.3f}"
        if one is not anchors.configured:
            yield f"    {anchor_flags(one)}"


def named_anchors(anchors: Anchors) -> Iterator[tuple[str, Coverage]]:
    """What is compared."""
    yield "the config's", anchors.configured
    for one in anchors.better:
        yield f"{len(one.scales)} x {len(one.ratios)} searched", one


def histograms(config: ConfigDict, anchors: Anchors) -> tuple[list[Bin], list[Bin]]:
    """Boxes by size and by form; bins at both ends that are empty are left out."""
    sides = anchors.seen.sides
    missed = anchors.seen.ious < config.matching.foreground_iou
    size, form = np.sqrt(sides.prod(axis=1)), sides[:, 0] / sides[:, 1]
    return _bins(size, missed, SIDES), _bins(form, missed, FORMS)


def bins_text(bins: Sequence[Bin]) -> Iterator[str]:
    """A bar each, of # for what is covered and . for what is not."""
    most = max(one.boxes for one in bins)
    for one in bins:
        whole = round(BAR * one.boxes / most)
        part = round(BAR * one.uncovered / most)
        share = f"{one.uncovered / one.boxes:.1%}" if one.boxes else ""
        yield (
            f"{one.low:6.3g} .. {one.high:<6.3g} {one.boxes:8} boxes  {share:>6} without anchor  "
            f"{'#' * (whole - part)}{'.' * part}"
        )


def json_report(seen: Inspection) -> dict[str, Any]:
    """Every figure; plain types alone."""
    report = {
        "findings": [one._asdict() for one in seen.findings],
        "parts": {
            part: {
                "name": source.name,
                "pictures": len(source),
                "boxes": len(seen.boxes[part].ids),
                "boxes_trained_on": int(seen.boxes[part].usable.sum()),
            }
            for part, source in seen.parts.items()
        },
        "categories": category_rows(seen),
        "buckets": {
            name: {
                "padding_overhead": table.padding_overhead,
                "rows": [r._asdict() for r in table.rows],
            }
            for name, table in seen.buckets.tables.items()
        },
        "chosen_buckets": seen.buckets.chosen,
    }
    if seen.anchors is None:
        return report
    by_side, by_form = histograms(seen.config, seen.anchors)
    labels = seen.anchors.labels.mean(axis=0).tolist()
    return {
        **report,
        "sample": {"pictures": len(seen.anchors.labels), "seed": seen.config.seed},
        "anchors": {
            name: {**one._asdict(), "flags": anchor_flags(one)}
            for name, one in named_anchors(seen.anchors)
        },
        "anchors_a_picture": dict(
            zip(("foreground", "background", "ignored"), labels, strict=True)
        ),
        "boxes_by_side": [_finite(one) for one in by_side],
        "boxes_by_height_over_width": [_finite(one) for one in by_form],
    }


def _bins(values: Float[np.ndarray, " n"], missed: np.ndarray, ends: Sequence[float]) -> list[Bin]:
    boxes, _ = np.histogram(values, ends)
    uncovered, _ = np.histogram(values[missed], ends)
    filled = np.flatnonzero(boxes)
    return [
        Bin(float(ends[k]), float(ends[k + 1]), int(boxes[k]), int(uncovered[k]))
        for k in range(filled[0], filled[-1] + 1)
    ]


def _finite(one: Bin) -> dict[str, Any]:
    """JSON has no infinity."""
    return {**one._asdict(), "high": one.high if np.isfinite(one.high) else None}
