"""The model card next to an artifact: card.json for programs, README.md for people."""

import datetime
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import Any

import retinanet_jax
from retinanet_jax.evaluation.limits import LIMITS
from retinanet_jax.evaluation.records import own_evaluation
from retinanet_jax.export.any_size import known_shape, size_multiple
from retinanet_jax.export.raw import RawServable
from retinanet_jax.export.raw_verification import RawVerification
from retinanet_jax.export.servable import (
    INPUTS,
    PLATFORMS,
    Servable,
    default_image_size,
    evaluation_shapes,
    resize_options,
)
from retinanet_jax.export.verification import Verification
from retinanet_jax.stored_config import differences, plain
from retinanet_jax.utils.files import write_atomically, write_json
from retinanet_jax.utils.progress import format_count

FILE, README = "card.json", "README.md"
PLATFORMS_OF = {"onnx": ("cpu", "cuda"), "tflite": ("cpu",)}  # the others run on PLATFORMS
RESIZE_METHODS = {
    "bilinear": "bilinear with half-pixel centers, without antialiasing, rounded to integers",
    "bilinear_float": "bilinear with half-pixel centers, without antialiasing, not rounded",
    "pillow": "Pillow's `Image.resize` with `Image.Resampling.BILINEAR`, which is antialiased",
}


def write(
    folder: pathlib.Path,
    format_name: str,
    servable: Servable,
    packages: Sequence[str],
    verification: Verification | RawVerification,
    precision: str = "float32",
) -> None:
    """Write FILE and README into the folder of an artifact.

    Args:
        folder: The folder, which contains the finished artifact.
        format_name: The format of the artifact.
        servable: The detector that was exported.
        packages: The packages other than jax and flax with which it was exported.
        verification: The differences that the verification measured.
        precision: The precision of the artifact's weights, which the card has for tflite.
    """
    card = _make_card(folder, format_name, servable, packages, verification)
    if format_name == "tflite":
        card["precision"] = precision
    write_json(folder / FILE, card)
    write_atomically(folder / README, to_markdown(card, servable, verification.summary()))


def _make_card(
    folder: pathlib.Path,
    format_name: str,
    servable: Servable,
    packages: Sequence[str],
    verification: Verification | RawVerification,
) -> dict[str, Any]:
    """Return the content of card.json; the arguments are those of `write`."""
    checkpoint, config = servable.checkpoint, servable.config
    options = resize_options(config)
    return {
        "format": format_name,
        "platforms": list(PLATFORMS_OF.get(format_name, PLATFORMS)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "checkpoint": {
            "folder": str(checkpoint.folder),
            "step": checkpoint.step,
            "metrics": own_evaluation(checkpoint),
            "config": plain(config),
        },
        "changed_since_evaluation": changes_since_evaluation(servable),
        "inputs": {
            name: {"shape": known_shape(spec.shape), "dtype": str(spec.dtype)}
            for name, spec in zip(INPUTS, servable.specs(servable.batch_size), strict=True)
        },
        "outputs": list(servable.output_names),
        "raw": isinstance(servable, RawServable),
        "image_size": servable.image_size and list(servable.image_size),
        "size_multiple": None if servable.image_size else size_multiple(config),
        "resize": {
            "short_side": options["short_side"],
            "long_side": options["long_side"],
            "kind": options["resize"],
        },
        **{name: config.detections[name] for name in LIMITS},
        "score_thresholds": stored_thresholds(servable),
        "categories": [
            {"id": category.id, "name": category.name} for category in checkpoint.categories
        ],
        "verified": verification.measurements(),
        "versions": package_versions(packages),
        "sha256": checksums(folder),
    }


def stored_thresholds(servable: Servable) -> dict[str, float] | None:
    """Return the score threshold of each category, by name; None if they have a common one."""
    thresholds = servable.checkpoint.score_thresholds
    if thresholds is None:
        return None
    names = [category.name for category in servable.checkpoint.categories]
    return dict(zip(names, thresholds, strict=True))


def ap_text(metrics: dict[str, Any] | None) -> str:
    """Return AP and AP50 with their dataset as text, as far as the metrics contain them."""
    if metrics is None:
        return "AP not measured"

    def number(value: Any) -> str:
        is_defined = isinstance(value, int | float) and 0 <= value <= 1
        return f"{value:.3f}" if is_defined else "undefined"

    numbers = ", ".join(f"{name} {number(metrics.get(name))}" for name in ("AP", "AP50"))
    try:
        dataset = metrics["dataset"]["name"], metrics["dataset"]["num_images"]
    except (KeyError, TypeError):  # versions before 0.3 did not write it
        return numbers
    return f"{numbers} on {dataset[0]} ({format_count(dataset[1], 'image')})"


def changes_since_evaluation(servable: Servable) -> list[str]:
    """Return why the AP of the checkpoint's evaluation need not be that of the artifact."""
    config, size = servable.config, servable.image_size
    changes = [
        f"config.{name} is {now} instead of {before}"
        for name, before, now in differences(servable.checkpoint.config, config)
    ]
    if stored_thresholds(servable):
        changes.append(
            "only detections above the score threshold of their category are returned, instead of "
            f"all above {config.detections.score_threshold}"
        )
    needed = default_image_size(config)
    if size and (size[0] < needed[0] or size[1] < needed[1]):
        changes.append(
            f"images that do not fit {format_shape(size)} pixels at the size that evaluation uses "
            "are resized to a smaller one"
        )
    if config.model.padding == "plain" and evaluation_shapes(config) != [size]:
        padded = format_shape(size) if size else f"multiples of {size_multiple(config)}"
        changes.append(
            f"images are padded to {padded} pixels instead of to their buckets, on "
            "which detections depend with config.model.padding='plain'"
        )
    return changes


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of this package and of those with which the artifact was exported."""
    versions = {"retinanet_jax": retinanet_jax.__version__}
    for name in ("jax", "flax", "numpy", *packages):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu provides tensorflow
            versions[name] = importlib.metadata.version(f"{name}-cpu")
    return versions


def checksums(folder: pathlib.Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder, by its path relative to the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def to_markdown(card: dict[str, Any], servable: Servable, verified: str) -> str:
    """Return the text of README.md for the content of card.json, and what was verified."""
    checkpoint = card["checkpoint"]
    ap, changes = ap_text(checkpoint["metrics"]), card["changed_since_evaluation"]
    measured = f" AP was measured differently: {'; '.join(changes)}." if changes else ""
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    precision = f" in {card['precision']}" if "precision" in card else ""
    thresholds = card["score_thresholds"] or {}
    categories = ", ".join(
        f"{c['id']} {c['name']}" + (f" ({thresholds[c['name']]:.3g})" if thresholds else "")
        for c in card["categories"]
    )
    inputs = [
        f"| {name} | {spec['dtype']} | {format_shape(spec['shape'])} |"
        for name, spec in card["inputs"].items()
    ]
    lines = [
        f"# RetinaNet, {card['format']}{precision}",
        "",
        f"Exported from {checkpoint['folder']}, step {checkpoint['step']}: {ap}.{measured}",
        f"Exported on {card['date']} with {versions}.",
        "",
        "| input | type | shape |",
        "| --- | --- | --- |",
        *inputs,
        "",
        "`images`: RGB, 0 to 255, each image in the top left corner; other pixels are ignored.",
        "`sizes`: the height and width of each image inside `images`.",
        "",
        *resize_instructions(servable),
        "",
        *(raw_outputs_text(servable) if card["raw"] else outputs_text(card)),
        "",
        f"Categories{' (score threshold)' if thresholds else ''}: {categories}.",
        "",
        f"{verified[0].upper()}{verified[1:]}.",
        "",
        "SHA-256 of the files:",
        "",
        *(f"    {digest}  {name}" for name, digest in card["sha256"].items()),
        "",
    ]
    return "\n".join(lines)


def resize_instructions(servable: Servable) -> list[str]:
    """Return the instructions to resize images for an artifact, as lines of markdown."""
    options = resize_options(servable.config)
    method = options.pop("resize")
    arguments = {
        **options,
        "method": method,
        "input_size": servable.image_size and list(servable.image_size),
    }
    values = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return [
        "`prepare` in `client.py`, which requires numpy and Pillow, makes both of an image file.",
        "In another language, resize each image to the size that `resized_size` in it returns for",
        f"its height and width, with `{values}`.",
        f"The method is {RESIZE_METHODS[method]}.",
        *([] if servable.image_size else [any_size_text(servable)]),
    ]


def any_size_text(servable: Servable) -> str:
    """Return which heights and widths an artifact of any size accepts, as a line of markdown."""
    return (
        "The height and the width of `images` are multiples of "
        f"{size_multiple(servable.config)} that contain the images of the call."
    )


def outputs_text(card: dict[str, Any]) -> list[str]:
    """Return the description of the outputs of an artifact with NMS, as lines of markdown."""
    of_which = "of any category" if card["class_agnostic"] else "of each category"
    is_by_category = bool(card["score_thresholds"])
    threshold = "the threshold of their category" if is_by_category else card["score_threshold"]
    return [
        "`boxes` (x0 y0 x1 y1 in pixels of `images`), `scores` and `categories` are sorted, best",
        "score first, and zero after the first `count` elements. Scores are above "
        f"{threshold}; there are at most",
        f"{card['max_detections']} detections per image, after NMS among the boxes {of_which} at "
        f"IoU {card['iou_threshold']}.",
    ]


def raw_outputs_text(servable: Servable) -> list[str]:
    """Return the description of the outputs of an artifact without NMS, as lines of markdown."""
    clip = servable.config.detections.clip
    are_clipped = "are clipped to it" if clip == "before_nms" else "may extend beyond it"
    return [
        "The outputs are raw: those of every anchor, before the best ones are selected and before",
        "NMS. `boxes` are x0 y0 x1 y1 in pixels of `images`; those of an image "
        f"{are_clipped}. `scores`",
        "has a column for each category, in the order below, and is zero in the padding of an",
        "image. `select` in `client.py` selects the detections in numpy.",
    ]


def format_shape(shape: Sequence[int | None]) -> str:
    """Return a shape as text; None is any size."""
    return " x ".join("any" if size is None else str(size) for size in shape)
