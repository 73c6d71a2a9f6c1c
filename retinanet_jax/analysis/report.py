"""The analysis of a detector: all of its parts, as JSON and as a page.

`analyze` computes the parts in turn, each by a module of its own; `write` puts them into
analysis.json and index.html. The page contains nothing that analysis.json does not have.
"""

import datetime
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import retinanet_jax
from retinanet_jax.analysis.advice import advise
from retinanet_jax.analysis.categories import category_rows
from retinanet_jax.analysis.curves import calibration, precision_recall_curves
from retinanet_jax.analysis.errors import confusion, error_table
from retinanet_jax.analysis.evaluated import Evaluated, hotcoco_api, twelve_metrics
from retinanet_jax.analysis.facts import collect_facts
from retinanet_jax.analysis.image_properties import image_properties
from retinanet_jax.analysis.intervals import (
    CONFIDENCE,
    NUM_SAMPLES,
    compare_detectors,
    confidence_intervals,
)
from retinanet_jax.analysis.missed import missed_objects
from retinanet_jax.analysis.offsets import offsets
from retinanet_jax.analysis.page import render, template_engine
from retinanet_jax.analysis.suspicious import suspicious_labels
from retinanet_jax.analysis.thresholds import OperatingPoints, find_thresholds, threshold_curve
from retinanet_jax.analysis.worst_images import worst_images
from retinanet_jax.data.sources.base import Source
from retinanet_jax.utils.files import to_json
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.progress import make_progress

JSON, PAGE = "analysis.json", "index.html"


class Origin(NamedTuple):
    """Where the detections are from; what does not apply is None.

    Attributes:
        dataset: The dataset, from `records.describe_dataset`.
        command: The command that was run.
        checkpoint: The folder of the detector's checkpoint.
        step: Its step.
        detections: The file of detections.
        settings: The settings of the detector.
    """

    dataset: Mapping[str, Any]
    command: str = ""
    checkpoint: str | None = None
    step: int | None = None
    detections: str | None = None
    settings: Mapping[str, Any] | None = None


def prepare(folder: OutputFolder) -> None:
    """Check, before anything is computed, that the analysis can be computed and written.

    Raises:
        ValueError: If a package that it requires is not installed.
        OSError: If the folder cannot be written, or contains a file of the same name that no
            analysis wrote.
    """
    hotcoco_api()
    template_engine()
    folder.prepare(JSON, PAGE)


def analyze(
    evaluated: Evaluated,
    origin: Origin,
    *,
    other: tuple[str, Evaluated] | None = None,
    focal_loss: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the analysis as in analysis.json, and print the progress of its computation.

    Args:
        evaluated: The dataset and the detections.
        origin: Where the detections are from.
        other: The name of another detector, and its detections of the same dataset, with which the
            first one is compared.
        focal_loss: The focal loss of the detector's anchors, as in analysis.json.

    Raises:
        ValueError: If the datasets of both detectors differ.
    """
    thresholds = find_thresholds(evaluated)
    threshold = thresholds.overall.threshold
    facts = collect_facts(evaluated, thresholds)
    parts: dict[str, Callable[[], Any]] = {
        "summary": lambda: _summary(evaluated, thresholds),
        "errors": lambda: error_table(evaluated),
        "confusion": lambda: confusion(evaluated, threshold, facts.confusion),
        "curves": lambda: precision_recall_curves(evaluated, thresholds),
        "threshold_curve": lambda: threshold_curve(evaluated),
        "calibration": lambda: calibration(evaluated),
        "categories": lambda: category_rows(evaluated, thresholds),
        "image_properties": lambda: image_properties(evaluated),
        "missed": lambda: missed_objects(evaluated, facts.boxes),
        "offsets": lambda: offsets(facts.pairs, evaluated.source.categories),
        "suspicious_labels": lambda: suspicious_labels(evaluated, threshold),
        "images": lambda: worst_images(evaluated, threshold),
        "comparison": lambda: other and compare_detectors(evaluated, other[1], other[0]),
        "provenance": lambda: _provenance(evaluated.source, origin),
    }
    analysis: dict[str, Any] = {"focal_loss": focal_loss}
    progress = make_progress("analyzing", len(parts), "parts")
    for name, compute in parts.items():
        analysis[name] = compute()
        progress(len(analysis) - 1)
    return analysis | {"advice": advise(facts, analysis["errors"])}


def write(analysis: Mapping[str, Any], folder: OutputFolder) -> None:
    """Write analysis.json and index.html, of which only those of earlier analyses are replaced."""
    folder.write(JSON, to_json(analysis))
    folder.write(PAGE, render(analysis))


def _summary(evaluated: Evaluated, thresholds: OperatingPoints) -> dict[str, Any]:
    """Return the metrics of all categories together."""
    return {
        "metrics": twelve_metrics(evaluated),
        "intervals": confidence_intervals(evaluated),
        "confidence": CONFIDENCE,
        "bootstrap": NUM_SAMPLES,
        **thresholds.overall._asdict(),
        "images": len(evaluated.source),
        "objects": int((~evaluated.objects.is_crowd).sum()),
        "detections": len(evaluated.detections.score),
    }


def _provenance(source: Source, origin: Origin) -> dict[str, Any]:
    """Return what is needed to compute the analysis again."""
    return {
        "retinanet_jax": retinanet_jax.__version__,
        "hotcoco": importlib.metadata.version("hotcoco"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **origin._asdict(),
        "dataset": {
            "name": origin.dataset["name"],
            "images": len(source),
            "objects": len(source.objects.classes),
            "categories": len(source.categories),
            "sha256": origin.dataset["sha256"],
        },
    }
