"""The model card next to an artifact: card.json for programs, README.md for people."""

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import retinanet_jax
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.export.servable import INPUTS, OUTPUTS, PLATFORMS, Servable
from retinanet_jax.export.verification import DetectionDifference, summary
from retinanet_jax.stored_config import plain
from retinanet_jax.utils.files import write_atomically, write_json

FILE, README = "card.json", "README.md"


def write(
    folder: pathlib.Path,
    format_name: str,
    servable: Servable,
    packages: Sequence[str],
    difference: DetectionDifference,
) -> None:
    """Write FILE and README into the folder of an artifact.

    Args:
        folder: The folder, which contains the finished artifact.
        format_name: The format of the artifact.
        servable: The detector that was exported.
        packages: The packages other than jax and flax with which it was exported.
        difference: The differences that the verification measured.
    """
    card = _make_card(folder, format_name, servable, packages, difference)
    write_json(folder / FILE, card)
    write_atomically(folder / README, to_markdown(card, difference))


def _make_card(
    folder: pathlib.Path,
    format_name: str,
    servable: Servable,
    packages: Sequence[str],
    difference: DetectionDifference,
) -> dict[str, Any]:
    """Return the content of card.json; the arguments are those of `write`."""
    checkpoint, config = servable.checkpoint, servable.config
    return {
        "format": format_name,
        "platforms": ["cpu", "cuda"] if format_name == "onnx" else list(PLATFORMS),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "checkpoint": {
            "folder": str(checkpoint.folder),
            "step": checkpoint.step,
            "metrics": evaluation_metrics(checkpoint),
            "config": plain(config),
        },
        "inputs": {
            name: {"shape": [servable.batch_size, *spec.shape[1:]], "dtype": str(spec.dtype)}
            for name, spec in zip(INPUTS, servable.specs(1), strict=True)
        },
        "outputs": list(OUTPUTS),
        "image_size": list(servable.image_size),
        "resize": {
            "short_side": config.data.eval_short_side,
            "long_side": config.data.long_side,
            "kind": config.data.resize,
        },
        "score_threshold": config.detections.score_threshold,
        "iou_threshold": config.detections.iou_threshold,
        "max_detections": config.detections.max_detections,
        "categories": [
            {"id": category.id, "name": category.name} for category in checkpoint.categories
        ],
        "verified": {
            "pictures": difference.num_images,
            "detections": difference.num_detections,
            "box": difference.box,
            "score": difference.score,
            "unmatched": difference.num_unmatched,
        },
        "versions": package_versions(packages),
        "sha256": checksums(folder),
    }


def evaluation_metrics(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the metrics that evaluation wrote for this step, or None if it wrote none."""
    file = checkpoint.folder.parent.parent / "eval" / f"{checkpoint.step}.json"
    return json.loads(file.read_text()) if file.is_file() else None


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


def to_markdown(card: dict[str, Any], difference: DetectionDifference) -> str:
    """Return the text of README.md for the content of card.json."""
    verified = summary(difference)
    checkpoint, resize, method = card["checkpoint"], card["resize"], card["resize"]["kind"]
    metrics = checkpoint["metrics"]
    ap = f"AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}" if metrics else "AP not measured"
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    categories = ", ".join(f"{c['id']} {c['name']}" for c in card["categories"])
    inputs = [
        f"| {name} | {spec['dtype']} | {format_shape(spec['shape'])} |"
        for name, spec in card["inputs"].items()
    ]
    lines = [
        f"# RetinaNet, {card['format']}",
        "",
        f"Exported from {checkpoint['folder']}, step {checkpoint['step']}: {ap}.",
        f"Exported on {card['date']} with {versions}.",
        "",
        "| input | type | shape |",
        "| --- | --- | --- |",
        *inputs,
        "",
        "`images`: RGB, 0 to 255, each image in the top left corner; other pixels are ignored.",
        "`sizes`: the height and width of each image inside `images`.",
        f"Resize each image (method: {method}) so that its short side is "
        f"{resize['short_side']} pixels, but its",
        f"long side at most {resize['long_side']} pixels; reduce it further if it does not fit the "
        "input.",
        "",
        "`boxes` (x0 y0 x1 y1 in pixels of `images`), `scores` and `categories` are sorted, best",
        "score first, and zero after the first `count` elements. Scores are above "
        f"{card['score_threshold']}; there are at most",
        f"{card['max_detections']} detections per image, after NMS at IoU {card['iou_threshold']}.",
        "",
        f"Categories: {categories}.",
        "",
        f"{verified[0].upper()}{verified[1:]}.",
        "",
        "SHA-256 of the files:",
        "",
        *(f"    {digest}  {name}" for name, digest in card["sha256"].items()),
        "",
    ]
    return "\n".join(lines)


def format_shape(shape: Sequence[int | None]) -> str:
    """Return a shape as text; None is any size."""
    return " x ".join("any" if size is None else str(size) for size in shape)
