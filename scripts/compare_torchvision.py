"""From picture files to detections: ours beside torchvision's own, on the same seeded weights.

Run: python scripts/compare_torchvision.py [--version v1 v2] [--sides 800 1333] PICTURE_OR_FOLDER...

Prints a line a picture, and ends with status 1 where a box differs by more than 0.05 pixels of the
original picture or a score by more than 1e-4, or where more than 0.2% of all detections have no
counterpart.
Needs PyTorch and torchvision. Every shape of the padded picture compiles anew: half a minute each
on a few cores, which smaller --sides shorten.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
import zlib
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image, ImageOps

from retinanet_jax import checkpoint, core, weights
from retinanet_jax.configs import torchvision as recipe
from retinanet_jax.data.image_files import find_images
from retinanet_jax.data.sources.base import Category
from retinanet_jax.detector import Detector
from retinanet_jax.export import verification
from retinanet_jax.export.verification import BOX_TOLERANCE, SCORE_TOLERANCE, DetectionArrays

NUM_OUTPUTS = 91  # COCO's ids from 0 to 90
UNMATCHED_SHARE = 0.002


class Difference(NamedTuple):
    """Between two lists of detections of one picture."""

    detections: int  # of theirs
    box: float  # largest difference of a coordinate, of those that have a counterpart
    score: float
    unmatched: int  # of theirs and ours together


def seeded(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Values for one entry of a state dict, such that about one score in a hundred passes 0.05.

    Norms are random too, or a wrong epsilon would not show; each block's last one is small, or 16
    of them would add up to huge activations.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif kind == "running_mean":
        values = rng.normal(0, 0.1, shape)
    elif kind == "bias":
        values = rng.normal(-5.0 if "cls_logits" in name else 0.0, 0.1, shape)
    elif len(shape) == 1:
        values = rng.uniform(0.2, 0.4, shape) if ".bn3." in name else rng.uniform(0.6, 1.4, shape)
    else:
        gains = {"cls_logits": 0.7, "bbox_reg": 0.25, "fpn": 0.5}
        gain = next((gain for part, gain in gains.items() if part in name), 2**0.5)
        values = rng.normal(0, gain / np.prod(shape[1:]) ** 0.5, shape)
    return values.astype(np.float32)


def their_detector(version: str, sides: tuple[int, int], seed: int):
    """torchvision's model in evaluation, with seeded weights."""
    import torch
    from torchvision.models import detection

    build = {"v1": detection.retinanet_resnet50_fpn, "v2": detection.retinanet_resnet50_fpn_v2}
    model = build[version](
        weights=None,
        weights_backbone=None,
        num_classes=NUM_OUTPUTS,
        min_size=sides[0],
        max_size=sides[1],
    )
    state = {
        name: torch.from_numpy(seeded(name, tuple(value.shape), seed))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model.eval()


def their_detections(model, path: pathlib.Path) -> DetectionArrays:
    """Of a picture file, read as torchvision's users read it."""
    import torch
    from torchvision.transforms import functional

    with Image.open(path) as file:
        picture = functional.to_tensor(ImageOps.exif_transpose(file).convert("RGB"))
    with torch.inference_mode():
        (found,) = model([picture])
    boxes, scores, classes = (found[name].numpy() for name in ("boxes", "scores", "labels"))
    return DetectionArrays(core.xyxy_to_yxyx(boxes), scores, classes)


def our_detector(version: str, sides: tuple[int, int], model) -> Detector:
    """The imported weights of `model`, in the preset as it stands but for the sides."""
    import torch

    config = recipe.get_config(version).unlock()
    config.data.update(short_sides=sides[:1], eval_short_side=sides[0], long_side=sides[1])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "detector.pth"
        torch.save(model.state_dict(), path)
        variables = weights.load_detector(
            f"torchvision_{version}",
            path,
            architecture=config.model.backbone,
            norm=config.model.norm,
            outputs="all",
        )
    categories = tuple(Category(number, str(number)) for number in range(NUM_OUTPUTS))
    trained = checkpoint.Checkpoint(variables, config, categories, 0, pathlib.Path("torchvision"))
    return Detector(trained)


def our_detections(detector: Detector, path: pathlib.Path) -> DetectionArrays:
    """Of a picture file, as the predict command reads it."""
    detections = detector(path)
    boxes = core.xyxy_to_yxyx(detections.boxes)
    return DetectionArrays(boxes, detections.scores, detections.classes)


def compare(theirs: DetectionArrays, ours: DetectionArrays) -> Difference:
    """Each of theirs, best score first, with the nearest one left of ours of its class."""
    order = np.argsort(-theirs.scores, kind="stable")
    best_first = DetectionArrays(*(x[order] for x in theirs))
    # Every one counts that has no counterpart, however low its score.
    one = verification.compare_detections(best_first, ours, certain_score=-np.inf)
    return Difference(one.num_detections, one.box, one.score, one.num_unmatched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--version", nargs="+", choices=("v1", "v2"), default=["v1", "v2"])
    parser.add_argument("--sides", nargs=2, type=int, default=(800, 1333))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="where the figures go too")
    options = parser.parse_args()
    pictures, sides, lines = find_images(options.pictures), tuple(options.sides), []
    print(f"{'':4}{'picture':32}{'found':>6}{'box':>10}{'score':>10}{'unmatched':>10}{'s':>7}")
    for version in options.version:
        theirs = their_detector(version, sides, options.seed)
        ours = our_detector(version, sides, theirs)
        for path in pictures:
            began = time.monotonic()
            one = compare(their_detections(theirs, path), our_detections(ours, path))
            lines.append({"version": version, "picture": path.name, **one._asdict()})
            print(
                f"{version:4}{path.name:32}{one.detections:6}{one.box:10.5f}{one.score:10.2e}"
                f"{one.unmatched:10}{time.monotonic() - began:7.1f}",
                flush=True,
            )
    if options.json:
        versions = {name: sys.modules[name].__version__ for name in ("torch", "torchvision", "jax")}
        record = {"sides": sides, "seed": options.seed, "versions": versions, "pictures": lines}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    box, score = (max(line[name] for line in lines) for name in ("box", "score"))
    unmatched = sum(line["unmatched"] for line in lines)
    share = unmatched / max(1, 2 * sum(line["detections"] for line in lines))
    print(
        f"largest difference of a box {box:.5f} pixels, of a score {score:.2e}; "
        f"{share:.3%} without a counterpart"
    )
    if box > BOX_TOLERANCE or score > SCORE_TOLERANCE or share > UNMATCHED_SHARE:
        sys.exit("error: that is more than rounding explains.")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a GPU may multiply in fewer bits
    main()
