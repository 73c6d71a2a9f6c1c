"""The dataset report: the problems of a dataset, and of a config that reads it, before training.

`make_report` prints the findings, the most severe first, each with advice, and then the numbers
that they are based on. It reads the files of all images, and decodes a random sample and matches it
with anchors.
"""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.augmentation_presets import augmented_data
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.sources.base import Source, subset
from retinanet_jax.data_report import annotation_checks, figures, image_checks, sheet, summary
from retinanet_jax.data_report.anchor_fit import (
    AnchorFit,
    check_any_box,
    check_coverage,
    check_crops,
    check_foreground,
    fit_anchors,
)
from retinanet_jax.data_report.annotation_checks import AnnotatedBoxes, read_boxes
from retinanet_jax.data_report.augmentation_sheet import augmentation_sheet
from retinanet_jax.data_report.bucket_fit import (
    check_buckets,
    check_evaluation_buckets,
    fit_buckets,
    with_buckets,
)
from retinanet_jax.data_report.dense_images import check_dense_images
from retinanet_jax.data_report.findings import SEVERITIES, WARNING, Finding
from retinanet_jax.data_report.image_checks import Fingerprints, take_fingerprints
from retinanet_jax.data_report.reading import open_parts
from retinanet_jax.data_report.summary import DatasetReport
from retinanet_jax.data_report.views import epoch_views
from retinanet_jax.utils.files import to_json
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.progress import make_progress, one_line

MAX_IMAGES = 2000  # the default size of the sample
TEXT, JSON, BATCHES, ANCHORS = "report.txt", "report.json", "batches.png", "anchors.png"
AUGMENTATION = "augmentation.png"


def make_report(config: ConfigDict, output: pathlib.Path, max_images: int) -> list[Finding]:
    """Check the datasets of a config, print the report and write it; return the findings.

    The files are report.txt, report.json (the same report with all numbers and examples),
    batches.png (augmented images as the network sees them, with their anchors), augmentation.png
    (the same with each preset of augmentation) and anchors.png (histograms; requires matplotlib).

    Args:
        config: The config of the run.
        output: The folder to write the report to; it is created if it does not exist. Only files of
            earlier reports are replaced.
        max_images: The number of images, sampled with config.seed, that are decoded and matched
            with anchors; 0 means all.

    Raises:
        ValueError: If `max_images` is negative, or if a config field or a dataset is invalid.
        OSError: If a dataset cannot be read, or the report cannot be written, for example because
            the folder contains a file of the same name that no report wrote.
    """
    check_fields(config)
    if max_images < 0:
        raise ValueError(f"--max_images={max_images} must not be negative; 0 means all images.")
    folder = OutputFolder(output)
    folder.prepare(TEXT, JSON, BATCHES, ANCHORS, AUGMENTATION)
    parts, reading_findings = open_parts(config, output)
    boxes = {part: read_boxes(source) for part, source in parts.items()}
    fingerprints = {}
    for part, source in parts.items():
        fingerprints[part] = take_fingerprints(
            source,
            decoded=set(sample_indices(len(source), max_images, config.seed)),
            progress=make_progress(f"reading {part}", len(source)),
        )
    findings = reading_findings + check_data(config, parts, boxes, fingerprints)
    train = parts["train"]
    buckets = fit_buckets(config, train)
    findings.append(check_buckets(buckets))
    config = with_buckets(config, buckets.suggested) if buckets.error else config
    if "eval" in parts:
        findings.append(check_evaluation_buckets(config, parts["eval"]))
    anchors = None
    if boxes["train"].object_mask.any():
        sample = subset(train, sample_indices(len(train), max_images, config.seed))
        anchors, anchor_findings = check_anchors(config, sample, parts)
        findings += anchor_findings
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    write_report(DatasetReport(config, parts, boxes, buckets, anchors, findings), folder)
    return findings


def sample_indices(count: int, max_count: int, seed: int) -> list[int]:
    """Return a sorted random sample of the indices 0..count-1.

    Args:
        count: The number of indices to sample from.
        max_count: The largest size of the sample; 0 for all indices.
        seed: The seed of the sample.
    """
    if max_count in (0, count) or count < max_count:
        return list(range(count))
    return np.sort(np.random.default_rng(seed).permutation(count)[:max_count]).tolist()


def check_data(
    config: ConfigDict,
    parts: dict[str, Source],
    boxes: dict[str, AnnotatedBoxes],
    fingerprints: dict[str, Fingerprints],
) -> list[Finding]:
    """Return the findings about annotations and image files.

    Args:
        config: The config of the run.
        parts: The datasets, by "train" and "eval"; the latter may be missing.
        boxes: The annotations of each.
        fingerprints: The fingerprints of each.
    """
    findings = []
    for part, source in parts.items():
        for finding in check_part(config, source, boxes[part], fingerprints[part]):
            findings.append(finding._replace(subject=f"{part}: {finding.subject}"))
    if "eval" not in parts:
        advice = "give --config.data.eval or --config.data.validation_fraction."
        return [*findings, Finding(WARNING, "eval", "there is no evaluation data", advice)]
    train, evaluation = parts["train"], parts["eval"]
    return [
        *findings,
        image_checks.check_leak(train, evaluation, fingerprints),
        image_checks.check_near_duplicates(train, evaluation, fingerprints),
        annotation_checks.check_same_categories(train, evaluation),
        annotation_checks.check_untrained_categories(
            train, boxes["train"], evaluation, boxes["eval"]
        ),
    ]


def check_part(
    config: ConfigDict, source: Source, boxes: AnnotatedBoxes, fingerprints: Fingerprints
) -> list[Finding]:
    """Return the findings about one dataset.

    Args:
        config: The config of the run.
        source: The dataset.
        boxes: Its annotations.
        fingerprints: The fingerprints of its images.
    """
    pairs = annotation_checks.duplicate_pairs(boxes)
    crowd_ioa = config.matching.crowd_ioa
    return [
        annotation_checks.check_content(source, boxes),
        annotation_checks.check_convention(source),
        annotation_checks.check_categories(source, boxes),
        annotation_checks.check_empty_images(source, boxes),
        annotation_checks.check_crowd_regions(source, boxes, crowd_ioa=crowd_ioa),
        annotation_checks.check_boxes_without_area(source, boxes),
        annotation_checks.check_boxes_outside(source, boxes),
        annotation_checks.check_duplicate_boxes(source, boxes, pairs),
        annotation_checks.check_boxes_of_two_classes(source, boxes, pairs),
        check_dense_images(source, max_detections=config.detections.max_detections),
        image_checks.check_readable(fingerprints),
        *image_checks.check_value_range(source, fingerprints),
        *image_checks.check_exif(source),
        image_checks.check_duplicate_images(source, fingerprints),
    ]


def check_anchors(
    config: ConfigDict, sample: Source, parts: dict[str, Source]
) -> tuple[AnchorFit | None, list[Finding]]:
    """Match the anchors in an epoch; return their fit and the findings about it.

    There is no fit if the sample, or what the crops leave of it, has no box.

    Args:
        config: The config of the run.
        sample: A sample of the training data.
        parts: All training and evaluation data.
    """
    plan = input_pipeline.train_plan(config, sample)
    min_visible = augmented_data(config).min_visible
    views = list(epoch_views(sample, plan, min_visible=min_visible))
    crops = []
    if config.data.crop_size:
        cropped = epoch_views(sample, plan, min_visible=min_visible, is_composed=False)
        crops.append(check_crops(list(cropped)))
    if not any(len(view.boxes) for view in views):
        return None, [check_any_box(views), *crops]
    anchors = fit_anchors(config, sample, views, parts, make_progress("matching", len(views)))
    return anchors, [check_coverage(config, sample, anchors), check_foreground(anchors), *crops]


def write_report(report: DatasetReport, folder: OutputFolder) -> None:
    """Print the report and write all of its files; an error in a figure is only printed."""
    text = summary.as_text(report)
    folder.write(JSON, to_json(summary.as_json(report)))
    folder.write(TEXT, text)
    print(text)
    config, train, anchors = report.config, report.parts["train"], report.anchors
    drawings = {
        BATCHES: lambda: sheet.batch_sheet(config, train, report.buckets.plan),
        AUGMENTATION: lambda: augmentation_sheet(config, train),
    }
    if anchors is not None:
        drawings[ANCHORS] = lambda: figures.histograms(config, train, anchors.configured)
    written = [TEXT, JSON]
    for name, draw in drawings.items():
        try:
            data = draw()
        except (OSError, ValueError) as error:
            print(f"{name} was not written: {one_line(error)}")
            continue
        folder.write(name, data)
        written.append(name)
    print(f"wrote {', '.join(written)} to {folder.path}")
