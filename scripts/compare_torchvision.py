"""Compare our detections with torchvision's, from image files on, with the same seeded weights.

Run: python scripts/compare_torchvision.py [--version v1 v2] [--sides 800 1333] IMAGE_OR_FOLDER...

It prints a line per image, and exits with status 1 if a box differs by more than 0.05 pixels of
the original image, a score by more than 1e-4, or if more than 0.2% of all detections have no
counterpart. PyTorch and torchvision are required. Each shape of a padded image is compiled, which
takes half a minute on a few cores; smaller --sides take less.
"""

import argparse
import json
import pathlib
import runpy
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from retinanet_jax import core
from retinanet_jax.config import load_config
from retinanet_jax.data.image_files import find_images
from retinanet_jax.detector import Detector
from retinanet_jax.export.comparison import (
    BOX_TOLERANCE,
    SCORE_TOLERANCE,
    DetectionArrays,
    DetectionDifference,
    compare_detections,
)
from retinanet_jax.weights.convert import read_detector

NUM_OUTPUTS = 91  # COCO's ids from 0 to 90
MAX_UNMATCHED = 0.002  # as a fraction of all detections
STATE_DICTS = pathlib.Path(__file__).parent.parent / "tests" / "weights" / "state_dicts.py"


def seeded_state_dict(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Return random values for a model, with which one score in a hundred or so passes 0.05."""
    parity_value = runpy.run_path(str(STATE_DICTS))["parity_value"]
    return {
        name: parity_value(name, tuple(value.shape), seed, -5.0, bias_deviations=(0.1, 0.1))
        for name, value in model.state_dict().items()
    }


def make_reference(version: str, sides: tuple[int, int], seed: int) -> Any:
    """Return torchvision's model in evaluation mode, with seeded weights."""
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
    arrays = seeded_state_dict(model, seed)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return model.eval()


def reference_detections(model: Any, path: pathlib.Path) -> DetectionArrays:
    """Return torchvision's detections in an image file, which is read as in its documentation."""
    import torch
    from torchvision.transforms import functional

    with Image.open(path) as file:
        image = functional.to_tensor(ImageOps.exif_transpose(file).convert("RGB"))
    with torch.inference_mode():
        (outputs,) = model([image])
    boxes, scores, classes = (outputs[name].numpy() for name in ("boxes", "scores", "labels"))
    return DetectionArrays(core.xyxy_to_yxyx(boxes), scores, classes)


def make_detector(version: str, sides: tuple[int, int], model: Any) -> Detector:
    """Return our detector with the weights of `model` and, except for the sides, the preset."""
    import torch

    config = load_config(f"configs/torchvision.py:{version}").unlock()
    config.data.update(short_sides=sides[:1], eval_short_side=sides[0], long_side=sides[1])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "detector.pth"
        torch.save(model.state_dict(), path)
        imported = read_detector(path, f"torchvision_{version}", outputs="all", config=config)
    return Detector(imported.checkpoint)


def our_detections(detector: Detector, path: pathlib.Path) -> DetectionArrays:
    """Return our detections in an image file, which is read as by the predict command."""
    detections = detector(path)
    boxes = core.xyxy_to_yxyx(detections.boxes)
    return DetectionArrays(boxes, detections.scores, detections.classes)


def compare(reference: DetectionArrays, actual: DetectionArrays) -> DetectionDifference:
    """Compare each reference detection, best first, with the nearest remaining one of its class."""
    order = np.argsort(-reference.scores, stable=True)
    best_first = DetectionArrays(*(x[order] for x in reference))
    return compare_detections(best_first, actual, config=None)


def compare_version(
    version: str, sides: tuple[int, int], seed: int, images: list[pathlib.Path]
) -> list[dict[str, Any]]:
    """Return the differences of each image, and print them."""
    reference = make_reference(version, sides, seed)
    detector = make_detector(version, sides, reference)
    results = []
    for path in images:
        start = time.monotonic()
        difference = compare(reference_detections(reference, path), our_detections(detector, path))
        results.append({"version": version, "image": path.name, **difference._asdict()})
        print(
            f"{version:4}{path.name:32}{difference.num_detections:10}{difference.box:10.5f}"
            f"{difference.score:10.2e}{difference.num_unmatched:10}"
            f"{time.monotonic() - start:7.1f}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="image files, and folders of them")
    parser.add_argument(
        "--version",
        nargs="+",
        choices=("v1", "v2"),
        default=["v1", "v2"],
        help="torchvision's detectors to compare with; the default is both",
    )
    parser.add_argument(
        "--sides",
        nargs=2,
        type=int,
        default=(800, 1333),
        help="pixels of the short side and most pixels of the long side; the default is 800 1333",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights; the default is 0")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the results to")
    options = parser.parse_args()
    if options.json and options.json.exists():
        parser.error(f"--json={options.json} exists; give another file.")
    images, sides, results = find_images(options.images), tuple(options.sides), []
    print(f"{'':4}{'image':32}{'detections':>10}{'box':>10}{'score':>10}{'unmatched':>10}{'s':>7}")
    for version in options.version:
        results += compare_version(version, sides, options.seed, images)
    if options.json:
        versions = {name: sys.modules[name].__version__ for name in ("torch", "torchvision", "jax")}
        record = {"sides": sides, "seed": options.seed, "versions": versions, "images": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    box, score = (max(result[name] for result in results) for name in ("box", "score"))
    num_unmatched = sum(result["num_unmatched"] for result in results)
    unmatched = num_unmatched / max(1, 2 * sum(result["num_detections"] for result in results))
    print(
        f"largest difference of a box {box:.5f} pixels, of a score {score:.2e}; "
        f"{unmatched:.3%} of the detections have no counterpart"
    )
    if box > BOX_TOLERANCE or score > SCORE_TOLERANCE or unmatched > MAX_UNMATCHED:
        sys.exit("error: the detections differ by more than rounding explains.")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a GPU may multiply with fewer bits
    main()
