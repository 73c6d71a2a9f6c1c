"""How a config's buckets and anchors fit a data set, and which would fit it better."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sizes import SIZE_MULTIPLE
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data_report import coverage
from retinanet_jax.data_report.bucket_search import (
    BucketTable,
    bucket_table,
    choose_buckets,
    drawn_sizes,
    largest_size,
    one_shape,
    two_shapes,
)
from retinanet_jax.data_report.coverage import Coverage
from retinanet_jax.data_report.findings import EXAMPLES, FAULT, LOOK, OK, Finding
from retinanet_jax.data_report.views import View, label_counts, make_matcher

DRAWS = 20_000  # pictures, at least, whose drawn sizes buckets are chosen for
MANY_BUCKETS = 8
SEARCHED = 10_000  # boxes, at most, that better anchors are searched with
POOR, BAD = 0.05, 0.25  # shares of boxes without an anchor: look, fault
GAIN = 0.01  # share of boxes that other anchors must cover more to be told of
WASTE = 0.05  # share of padding that other buckets must save to be told of


class Buckets(NamedTuple):
    """What the configured shapes cost, and others."""

    plan: TrainPlan  # by the configured buckets or, where these can't be, by the chosen ones
    refused: str  # why the configured ones can't be; empty where they can
    tables: dict[str, BucketTable]
    chosen: tuple[tuple[int, int], ...]  # as many as are configured, for the least padding


class Seen(NamedTuple):
    """The boxes that an epoch shows, in pixels of the network's input."""

    pictures: Int[np.ndarray, " n"]  # row of the source
    classes: Int[np.ndarray, " n"]
    sides: Float[np.ndarray, "n 2"]  # height and width
    ious: Float[np.ndarray, " n"]  # with the anchor that overlaps it most


class Anchors(NamedTuple):
    """What the configured anchors make of the boxes, and others."""

    seen: Seen
    configured: Coverage
    better: tuple[Coverage, ...]  # as many scales and ratios first; empty where none are
    labels: Int[np.ndarray, "v 3"]  # foreground, background, ignored anchors of each picture
    objects: Int[np.ndarray, " v"]  # boxes of each picture
    dropped: int  # boxes that crops cut below the share that must be visible


def fit_buckets(config: ConfigDict, source: Source) -> Buckets:
    """The config's buckets beside others, over the sizes that training draws."""
    refused = ""
    try:
        plan = input_pipeline.train_plan(config, source)
    except ValueError as error:
        # A bucket that holds anything tells whether the buckets are what is wrong.
        longest = math.ceil(max((config.data.long_side, *config.data.crop_size)))
        side = -(-longest // SIZE_MULTIPLE) * SIZE_MULTIPLE
        plan = input_pipeline.train_plan(with_buckets(config, ((side, side),)), source)
        refused = str(error)
    sizes = drawn_sizes(plan, draws=max(DRAWS, len(source)))
    every = np.concatenate([sizes, [largest_size(plan)]])
    chosen = choose_buckets(every, count=MANY_BUCKETS if refused else len(plan.buckets))
    if refused:
        plan = input_pipeline.train_plan(with_buckets(config, chosen), source)
    choices = {} if refused else {"the config's": config.data.buckets}
    choices |= {"one shape": one_shape(sizes), "two shapes": two_shapes(sizes)}
    for count in (len(plan.buckets), MANY_BUCKETS):
        found = choose_buckets(every, count=count)
        choices[f"{len(found)} chosen"] = found
    tables = {name: bucket_table(sizes, buckets) for name, buckets in choices.items()}
    return Buckets(plan, refused, tables, chosen)


def with_buckets(config: ConfigDict, buckets: Sequence[tuple[int, int]]) -> ConfigDict:
    """A copy of the config that has them."""
    changed = config.copy_and_resolve_references()
    changed.data.buckets = tuple(buckets)
    return changed


def fit_anchors(config: ConfigDict, views: Sequence[View], tell: Callable[[int], None]) -> Anchors:
    """The config's anchors beside better ones, where it leaves boxes without any.

    `views`: pictures of an epoch. `tell` hears how many are matched.
    """
    anchors = config.anchors
    boxes = np.concatenate([view.boxes for view in views])
    counts = [len(view.boxes) for view in views]
    buckets = np.repeat([view.bucket for view in views], counts, axis=0)
    sizes = np.repeat([view.size for view in views], counts, axis=0)
    placed = coverage.place(
        boxes,
        buckets,
        sizes if config.matching.ignore_padding else buckets,
        min_level=anchors.min_level,
        max_level=anchors.max_level,
        offset=anchors.offset,
        stride_rule=anchors.stride_rule,
    )
    ious = coverage.best_ious(placed, **anchor_shapes(config))
    configured = coverage.measure(
        ious, anchors.scales, anchors.ratios, threshold=config.matching.foreground_iou
    )
    seen = Seen(
        pictures=np.repeat([view.index for view in views], counts),
        classes=np.concatenate([view.classes for view in views]),
        sides=boxes[:, 2:] - boxes[:, :2],
        ious=ious,
    )
    return Anchors(
        seen,
        configured,
        better_anchors(config, placed, configured),
        labels=count_labels(config, views, tell),
        objects=np.array(counts),
        dropped=sum(view.dropped for view in views),
    )


def anchor_shapes(config: ConfigDict) -> dict[str, Any]:
    """What of the anchors does not depend on where they lie."""
    return {name: config.anchors[name] for name in ("base_scale", "scales", "ratios", "rounding")}


def better_anchors(
    config: ConfigDict, placed: coverage.Placed, configured: Coverage
) -> tuple[Coverage, ...]:
    """As many scales and ratios, but better; then one more of these, where that is not enough."""
    if configured.covered > 1 - POOR:
        return ()
    shapes, threshold = anchor_shapes(config), config.matching.foreground_iou
    few = thinned(placed, SEARCHED)

    def searched(scales: Sequence[float], ratios: Sequence[float]) -> Coverage:
        changed = {**shapes, "scales": scales, "ratios": ratios}
        found = coverage.search(few, **changed, threshold=threshold)
        # Of all boxes, not of those it was searched with.
        changed |= {"scales": found.scales, "ratios": found.ratios}
        ious = coverage.best_ious(placed, **changed)
        return coverage.measure(ious, found.scales, found.ratios, threshold=threshold)

    best, better = configured, []
    found = searched(configured.scales, configured.ratios)
    if found.covered > best.covered + GAIN:
        best, better = found, [found]
    if best.covered <= 1 - POOR:
        more = [
            searched((*found.scales, found.scales[-1] * 1.5), found.ratios),
            searched(found.scales, (*found.ratios, found.ratios[-1] * 1.5)),
        ]
        found = max(more, key=lambda one: one.covered)
        if found.covered > best.covered + GAIN:
            better.append(found)
    return tuple(better)


def thinned(placed: coverage.Placed, most: int) -> coverage.Placed:
    """At most `most` of the boxes, evenly spread."""
    count = placed.sides.shape[1]
    kept = np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
    return placed._replace(
        sides=np.ascontiguousarray(placed.sides[:, kept]),
        distances=np.ascontiguousarray(placed.distances[:, :, kept]),
    )


def count_labels(
    config: ConfigDict, views: Sequence[View], tell: Callable[[int], None]
) -> Int[np.ndarray, "v 3"]:
    """Foreground, background and ignored anchors of each view; compiles once a bucket."""
    counts = np.zeros((len(views), 3), np.int64)
    count = jax.jit(label_counts)
    done = 0
    for bucket in sorted({view.bucket for view in views}):
        match = make_matcher(config, bucket)
        for row, view in enumerate(views):
            if view.bucket == bucket:
                counts[row] = count(match(view).labels)
                done += 1
                tell(done)
    return counts


def bucket_finding(buckets: Buckets) -> Finding:
    """Whether the configured shapes hold the pictures without much padding."""
    flag = f"--config.data.buckets='{buckets.chosen}'"
    least = min(table.padding_overhead for table in buckets.tables.values())
    if buckets.refused:
        says = f"{buckets.refused} What follows uses others, with {least:.1%} of padding."
        return Finding(FAULT, "buckets", says, f"give {flag}.")
    table = buckets.tables["the config's"]
    chosen = buckets.tables[f"{len(buckets.chosen)} chosen"].padding_overhead
    count = len(table.rows)
    shapes = f"{count} shape{'s' if count > 1 else ''}"
    says = f"{table.padding_overhead:.1%} of what is computed is padding, with {shapes}"
    advice = []
    if table.padding_overhead - chosen > WASTE:
        advice.append(f"{flag} has {chosen:.1%}")
    if min(table.padding_overhead, chosen) - least > WASTE:
        advice.append(f"{MANY_BUCKETS} shapes, each compiled once, have {least:.1%} (see below)")
    if not advice:
        return Finding(OK, "buckets", says)
    return Finding(LOOK, "buckets", says, f"{'; '.join(advice)}.")


def evaluation_finding(config: ConfigDict, source: Source) -> Finding:
    """Whether the shapes hold the pictures of `source` at the size they are evaluated in."""
    try:
        plan = input_pipeline.eval_plan(
            config, source.sizes, batch_size=config.data.eval_batch_size
        )
    except ValueError as error:
        return Finding(FAULT, "eval: buckets", str(error), "add it to --config.data.buckets.")
    share = bucket_table(plan.views.size, plan.buckets.tolist()).padding_overhead
    return Finding(OK, "eval: buckets", f"{share:.1%} of what is computed is padding")


def coverage_finding(config: ConfigDict, source: Source, anchors: Anchors) -> Finding:
    """Boxes that no anchor overlaps enough, before the low-quality matches."""
    seen, threshold = anchors.seen, config.matching.foreground_iou
    rows = np.flatnonzero(seen.ious < threshold)
    share = len(rows) / len(seen.ious)
    says = f"{len(rows)} of {len(seen.ious)} boxes ({share:.1%}) have no anchor at IoU {threshold}"
    if share <= POOR:
        return Finding(OK, "coverage", says)
    sides = anchor_sides(config)
    size = np.sqrt(seen.sides[rows].prod(axis=1))
    form = seen.sides[rows, 0] / seen.sides[rows, 1]
    slender = (form < min(config.anchors.ratios)) | (form > max(config.anchors.ratios))
    says += (
        f": {(size < sides[0]).mean():.0%} of these are smaller than the smallest anchor "
        f"({sides[0]:.0f} px), {(size > sides[-1]).mean():.0%} larger than the largest "
        f"({sides[-1]:.0f} px), {slender.mean():.0%} of a form beyond all ratios"
    )
    advice = "no other scales and ratios of that number were found to cover more"
    if anchors.better:
        best = anchors.better[-1]
        advice = f"{anchor_flags(best)} cover {best.covered:.1%}"
    if (size < sides[0]).mean() > 0.5:
        advice += "; larger pictures (--config.data.short_sides) help small boxes"
    worst = rows[np.argsort(seen.ious[rows], kind="stable")[:EXAMPLES]]
    examples = tuple(
        f"{source.file_name(int(seen.pictures[row]))}: "
        f"{source.categories[seen.classes[row]].name}, "
        f"{seen.sides[row, 0]:.0f} high and {seen.sides[row, 1]:.0f} wide, IoU {seen.ious[row]:.2f}"
        for row in worst
    )
    return Finding(FAULT if share > BAD else LOOK, "coverage", says, f"{advice}.", examples)


def foreground_finding(config: ConfigDict, anchors: Anchors) -> Finding:
    """How few anchors are foreground."""
    foreground, background, ignored = anchors.labels.mean(axis=0)
    each = max(foreground, 1e-9)
    without = int(((anchors.labels[:, 0] == 0) & (anchors.objects > 0)).sum())
    says = (
        f"a picture has on average {foreground:.1f} foreground, {background:.0f} background and "
        f"{ignored:.0f} ignored anchors (1 : {background / each:.0f} : {ignored / each:.1f}); "
        f"{without} pictures with boxes have no foreground"
    )
    if not without:
        return Finding(OK, "foreground", says)
    advice = "set --config.matching.low_quality=True, or anchors that cover more."
    return Finding(LOOK, "foreground", says, advice)


def crop_finding(anchors: Anchors) -> Finding:
    """What an epoch's crops leave out."""
    every = anchors.dropped + len(anchors.seen.ious)
    share = anchors.dropped / every
    says = f"crops leave out {anchors.dropped} of {every} boxes ({share:.1%}) an epoch"
    if share <= BAD:
        return Finding(OK, "crops", says)
    advice = "lower --config.data.min_visible or raise --config.data.crop_size."
    return Finding(LOOK, "crops", says, advice)


def anchor_flags(anchors: Coverage) -> str:
    """What makes a run use them."""
    return f"--config.anchors.scales='{anchors.scales}' --config.anchors.ratios='{anchors.ratios}'"


def anchor_sides(config: ConfigDict) -> list[float]:
    """The square roots of the anchors' areas, smallest first."""
    levels = range(config.anchors.min_level, config.anchors.max_level + 1)
    return sorted(
        config.anchors.base_scale * 2**level * scale
        for level in levels
        for scale in config.anchors.scales
    )
