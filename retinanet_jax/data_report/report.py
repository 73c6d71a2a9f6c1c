"""The doctor: what is wrong with a data set or with how a config reads it, before it is trained on.

python -m retinanet_jax.inspect --config=FILE[:ARG] --output=DIR [--max_images=N]
    [--config.FIELD=VALUE ...]

Prints its findings, worst first, with what to do about each, then the figures behind them. Writes
OUTPUT/report.txt and report.json (the same, and every figure), batches.png (augmented pictures as
the network sees them, with their anchors) and anchors.png (histograms; needs matplotlib).
Every picture is read once; anchors are matched on at most N pictures, drawn by config.seed.
"""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.config import check_fields
from retinanet_jax.data.sources.base import Source, subset
from retinanet_jax.data_report import findings, sheets, summary
from retinanet_jax.data_report.findings import FAULT, LOOK, OK, Boxes, Finding, Fingerprints
from retinanet_jax.data_report.fit import (
    Anchors,
    bucket_finding,
    coverage_finding,
    crop_finding,
    evaluation_finding,
    fit_anchors,
    fit_buckets,
    foreground_finding,
    with_buckets,
)
from retinanet_jax.data_report.summary import Inspection
from retinanet_jax.data_report.views import epoch_views
from retinanet_jax.utils.files import write_atomically, write_json
from retinanet_jax.utils.progress import make_progress, one_line

MAX_IMAGES = 2000


def make_report(config: ConfigDict, output: pathlib.Path, max_images: int) -> list[Finding]:
    """Looks at everything and writes the report into `output`; returns what was found.

    max_images: pictures, at most, whose anchors are matched and that are decoded; 0 is all.
    """
    check_fields(config)
    if max_images < 0:
        raise ValueError(f"--max_images={max_images} must not be negative; 0 looks at all.")
    output.mkdir(parents=True, exist_ok=True)
    parts = open_parts(config, output)
    boxes = {part: findings.read_boxes(source) for part, source in parts.items()}
    prints = {}
    for part, source in parts.items():
        prints[part] = findings.take_fingerprints(
            source,
            decoded=set(sample_rows(len(source), max_images, config.seed)),
            tell=make_progress(f"reading {part}", len(source)),
        )
    found = data_findings(config, parts, boxes, prints)
    train = parts["train"]
    buckets = fit_buckets(config, train)
    found.append(bucket_finding(buckets))
    config = with_buckets(config, buckets.chosen) if buckets.refused else config
    if "eval" in parts:
        found.append(evaluation_finding(config, parts["eval"]))
    anchors = None
    if boxes["train"].usable.any():
        sample = subset(train, sample_rows(len(train), max_images, config.seed))
        anchors, more = look_at_anchors(config, sample)
        found += more
    found.sort(key=lambda one: (FAULT, LOOK, OK).index(one.verdict))
    seen = Inspection(config, parts, boxes, buckets, anchors, found)
    write_json(output / "report.json", summary.json_report(seen))
    write_atomically(output / "report.txt", summary.text(seen))
    print(summary.text(seen))
    draw_pictures(seen, output)
    return found


def open_parts(config: ConfigDict, output: pathlib.Path) -> dict[str, Source]:
    """ "train", and "eval" where the config names any; what is to be drawn is drawn in `output`."""
    if input_pipeline.holds_out(config):
        return dict(zip(("train", "eval"), input_pipeline.open_split(config, output), strict=True))
    parts = {"train": input_pipeline.open_training(config, output)}
    evaluation = config.data.eval
    if evaluation.annotations or evaluation.images or evaluation.source == "shapes":
        parts["eval"] = input_pipeline.open_evaluation(config, output)
    return parts


def sample_rows(count: int, most: int, seed: int) -> list[int]:
    """At most `most` of `count` rows, in order, drawn by `seed`; all where `most` is 0."""
    if most in (0, count) or count < most:
        return list(range(count))
    return np.sort(np.random.default_rng(seed).permutation(count)[:most]).tolist()


def data_findings(
    config: ConfigDict,
    parts: dict[str, Source],
    boxes: dict[str, Boxes],
    prints: dict[str, Fingerprints],
) -> list[Finding]:
    """What the annotations and the pictures' bytes tell."""
    found = []
    for part, source in parts.items():
        own = boxes[part]
        pairs = findings.same_boxes(own)
        of_part = [
            findings.content(source, own),
            findings.categories(source, own),
            findings.empty_pictures(source, own),
            findings.crowd_regions(source, own, crowd_ioa=config.matching.crowd_ioa),
            findings.boxes_without_area(source, own),
            findings.boxes_outside(source, own),
            findings.duplicate_boxes(source, own, pairs),
            findings.boxes_of_two_classes(source, own, pairs),
            findings.unusable_pictures(prints[part]),
            findings.duplicate_pictures(source, prints[part]),
        ]
        found += [one._replace(subject=f"{part}: {one.subject}") for one in of_part]
    if "eval" not in parts:
        advice = "give --config.data.eval or --config.data.validation_fraction."
        return [*found, Finding(LOOK, "eval", "there is no data to evaluate on", advice)]
    both = parts["train"], parts["eval"]
    return [
        *found,
        findings.leaked_pictures(*both, prints),
        findings.same_categories(*both),
        findings.unlearnt_categories(both[0], boxes["train"], both[1], boxes["eval"]),
    ]


def look_at_anchors(config: ConfigDict, sample: Source) -> tuple[Anchors, list[Finding]]:
    """How the anchors fit an epoch of `sample`, and what of that is worth telling."""
    plan = input_pipeline.train_plan(config, sample)
    views = list(epoch_views(sample, plan, min_visible=config.data.min_visible))
    anchors = fit_anchors(config, views, make_progress("matching", len(views)))
    found = [coverage_finding(config, sample, anchors), foreground_finding(config, anchors)]
    if config.data.crop_size:
        found.append(crop_finding(anchors))
    return anchors, found


def draw_pictures(seen: Inspection, output: pathlib.Path) -> None:
    """Writes the PNGs that can be drawn, and says which cannot and why."""
    config, train, anchors = seen.config, seen.parts["train"], seen.anchors
    pictures = {"batches.png": lambda: sheets.batch_sheet(config, train, seen.buckets.plan)}
    if anchors is not None:
        counts = summary.named_counts(train, seen.boxes["train"])
        pictures["anchors.png"] = lambda: sheets.histograms(config, anchors, counts)
    written = ["report.txt", "report.json"]
    for name, draw in pictures.items():
        try:
            data = draw()
        except (ImportError, OSError, ValueError) as error:
            print(f"no {name}: {one_line(error)}")
            continue
        write_atomically(output / name, data)
        written.append(name)
    print(f"written to {output}: {', '.join(written)}")
