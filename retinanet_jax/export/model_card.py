"""What an artifact is, beside it: card.json for programs, README.md for people."""

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any

import retinanet_jax
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.config import plain
from retinanet_jax.export.servable import OUTPUTS, PLATFORMS, Servable
from retinanet_jax.export.verification import Difference
from retinanet_jax.utils.files import write_atomically, write_json

FILE, README = "card.json", "README.md"


def write(
    folder: pathlib.Path,
    kind: str,
    servable: Servable,
    packages: tuple[str, ...],
    found: Difference,
) -> None:
    """Writes both, of the artifact that is in `folder`."""
    content = card(folder, kind, servable, packages, found)
    write_json(folder / FILE, content)
    write_atomically(folder / README, told(content))


def card(
    folder: pathlib.Path,
    kind: str,
    servable: Servable,
    packages: tuple[str, ...],
    found: Difference,
) -> dict[str, Any]:
    """All that is known; JSON."""
    trained, config = servable.trained, servable.config
    data, limits = config.data, config.detections
    images, sizes = servable.specs(1)
    batch = servable.batch_size
    return {
        "format": kind,
        "platforms": ["cpu", "cuda"] if kind == "onnx" else list(PLATFORMS),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "checkpoint": {
            "folder": str(trained.folder),
            "step": trained.step,
            "metrics": metrics(trained),
            "config": plain(config),
        },
        "inputs": {
            "images": {"shape": [batch, *images.shape[1:]], "dtype": str(images.dtype)},
            "sizes": {"shape": [batch, *sizes.shape[1:]], "dtype": str(sizes.dtype)},
        },
        "outputs": list(OUTPUTS),
        "image_size": list(servable.image_size),
        "resize": {
            "short_side": data.eval_short_side,
            "long_side": data.long_side,
            "kind": data.resize,
        },
        "score_threshold": limits.score_threshold,
        "iou_threshold": limits.iou_threshold,
        "max_detections": limits.max_detections,
        "categories": [{"id": one.id, "name": one.name} for one in trained.categories],
        "verified": found._asdict(),
        "versions": versions(packages),
        "sha256": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def metrics(trained: Checkpoint) -> dict[str, Any] | None:
    """What evaluation wrote of this step into the working directory, or None."""
    file = trained.folder.parent.parent / "eval" / f"{trained.step}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of what the artifact was made with."""
    known = {"retinanet_jax": retinanet_jax.__version__}
    for name in ("jax", "flax", "numpy", *packages):
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu is tensorflow too
            known[name] = importlib.metadata.version(f"{name}-cpu")
    return known


def told(card: dict[str, Any]) -> str:
    """The card as a page."""
    source, resize, verified = card["checkpoint"], card["resize"], card["verified"]
    measured = source["metrics"]
    ap = f"AP {measured['AP']:.3f}, AP50 {measured['AP50']:.3f}" if measured else "AP not measured"
    names = ", ".join(f"{one['id']} {one['name']}" for one in card["categories"])
    made_with = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    lines = [
        f"# RetinaNet, {card['format']}",
        "",
        f"From {source['folder']}, step {source['step']}: {ap}.",
        f"Exported {card['date']} with {made_with}.",
        "",
        "| input | type | shape |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {one['dtype']} | {dimensions(one)} |"
            for name, one in card["inputs"].items()
        ),
        "",
        "`images`: RGB, 0 to 255, the picture in the top left corner, anything beside it.",
        "`sizes`: its height and width in there.",
        f"Resize so that the short side is {resize['short_side']}, or the long one "
        f"{resize['long_side']} where that is smaller; smaller still where it must fit "
        f"({resize['kind']}).",
        "",
        "`boxes` (x0 y0 x1 y1 in pixels of `images`), `scores`, `categories`: best first, zero",
        f"after `count` rows. Scores are above {card['score_threshold']}, at most "
        f"{card['max_detections']} a picture, NMS at IoU {card['iou_threshold']}.",
        "",
        f"Categories: {names}.",
        "",
        f"Verified on {verified['pictures']} pictures with {verified['detections']} detections: "
        f"boxes within {verified['box']:.2g} pixels of the checkpoint's,",
        f"scores within {verified['score']:.2g}, categories equal.",
        "",
        *(f"    {digest}  {name}" for name, digest in card["sha256"].items()),
        "",
    ]
    return "\n".join(lines)


def dimensions(spec: dict[str, Any]) -> str:
    """Of an input."""
    return " x ".join("any" if size is None else str(size) for size in spec["shape"])
