"""Measure what a trained detector brings to other categories with few images.

Run: python scripts/transfer.py runs/transfer [--images 20] [--seeds 0 1 2] [--steps 400]
The same command resumes after an interruption: finished runs are not repeated.

A detector learns three of the categories of `shapes` (configs/shapes.py, 2,400 steps), and then a
few images of the three others are learned with equal settings from three starts: random weights;
the detector's backbone, with a random pyramid and heads; and the whole detector, but for the rows
of its classes. Each image has objects of one of the two groups only, so that no detector learns
that the others are background. The script writes transfer.json and prints a table of AP, evaluated
on 300 other images.
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

from ml_collections import ConfigDict

from retinanet_jax import checkpoint, modeling
from retinanet_jax.cli import train as train_command
from retinanet_jax.configs import shapes
from retinanet_jax.data.sources.synthetic import ANNOTATIONS, CATEGORIES, IMAGES, write_shapes
from retinanet_jax.utils.files import write_json
from retinanet_jax.weights import cached

STARTS = ("random weights", "backbone", "whole detector")
FIRST_STEPS = 2_400
POOL, IMAGE_SIZE = 6_000, 128  # a sixth of the images has objects of one group only
NUM_EVAL = 300
GROUPS = (CATEGORIES[:3], CATEGORIES[3:])


def write_data(output: pathlib.Path, num_images: int) -> None:
    """Write the images, and the annotations first.json, few.json and eval.json.

    Args:
        output: The folder of everything.
        num_images: The number of images in few.json.
    """
    pool = write_shapes(output / "pool", seed=11, num_images=POOL, image_size=IMAGE_SIZE)
    content = json.loads((pool / ANNOTATIONS).read_text())
    categories: dict[int, set[int]] = {}
    for annotation in content["annotations"]:
        categories.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    ids = [{category.id for category in group} for group in GROUPS]
    of_first, of_second = (
        [image for image in content["images"] if categories.get(image["id"], set()) <= group]
        for group in ids
    )
    if not 0 < num_images <= len(of_second) - NUM_EVAL:
        raise SystemExit(
            f"error: --images={num_images} must be from 1 to {len(of_second) - NUM_EVAL}."
        )
    chosen = {
        "first": (of_first, GROUPS[0]),
        "few": (of_second[NUM_EVAL : NUM_EVAL + num_images], GROUPS[1]),
        "eval": (of_second[:NUM_EVAL], GROUPS[1]),
    }
    for name, (images, group) in chosen.items():
        image_ids = {image["id"] for image in images}
        part = {
            "images": images,
            "annotations": [a for a in content["annotations"] if a["image_id"] in image_ids],
            "categories": [category._asdict() for category in group],
        }
        write_json(output / f"{name}.json", part)


def run_config(output: pathlib.Path, annotations: str, *, steps: int, seed: int) -> ConfigDict:
    """Return the config of a run on the images of one annotation file, from random weights.

    Args:
        output: The folder that `write_data` wrote.
        annotations: The name of the file.
        steps: The number of training steps.
        seed: The seed of the run.
    """
    config = shapes.get_config().unlock()
    config.seed = seed
    config.update(total_steps=steps, checkpoint_every=steps, evaluate_every=steps)
    images = str(output / "pool" / IMAGES)
    for part, name in ((config.data.train, annotations), (config.data.eval, "eval")):
        part.update(source="coco", annotations=str(output / f"{name}.json"), images=images)
    return config


def train_first(output: pathlib.Path) -> pathlib.Path:
    """Train the detector of the first three categories, and return its working directory."""
    workdir = output / "first"
    if not (workdir / checkpoint.FOLDER / str(FIRST_STEPS)).exists():
        config = run_config(output, "first", steps=FIRST_STEPS, seed=0)
        train_command.train_or_evaluate(config.lock(), str(workdir), "train")
    return workdir


def write_backbone(first: pathlib.Path, workdir: pathlib.Path, seed: int) -> pathlib.Path:
    """Write a checkpoint with a detector's backbone and otherwise random weights.

    Args:
        first: The working directory of the detector.
        workdir: The working directory to write.
        seed: The seed of the random weights.

    Returns:
        `workdir`.
    """
    if not (workdir / checkpoint.FOLDER / "0").exists():
        detector = cached.load(str(first))
        start = modeling.initialize(detector.config, len(detector.categories), seed)
        for collection, tree in detector.variables.items():
            start[collection] = {**start[collection], "backbone": tree["backbone"]}
        checkpoint.write_imported(workdir, start, detector.config, detector.categories)
    return workdir


def run(output: pathlib.Path, start: str, seed: int, steps: int, num_images: int) -> dict[str, Any]:
    """Train from one of STARTS with one seed, unless that has been done, and return its AP.

    Args:
        output: The folder of everything, with the first detector.
        start: One of STARTS.
        seed: The seed.
        steps: The number of training steps.
        num_images: The number of images, part of the folder's name.
    """
    name = f"{start.replace(' ', '-')}-seed{seed}-{num_images}-{steps}"
    workdir = output / name
    evaluation = workdir / "eval" / f"{steps}.json"
    if not evaluation.exists():
        print(f"\n== {start}, seed {seed}", flush=True)
        config = run_config(output, "few", steps=steps, seed=seed)
        if start != STARTS[0]:
            path = output / "first"
            if start == "backbone":
                path = write_backbone(path, output / f"start-with-backbone-seed{seed}", seed)
            config.init.update(source="checkpoint", path=str(path))
        train_command.train_or_evaluate(config.lock(), str(workdir), "train_and_evaluate")
    metrics = json.loads(evaluation.read_text())
    return {"start": start, "seed": seed, "AP": metrics["AP"], "AP50": metrics["AP50"]}


def table(results: list[dict[str, Any]]) -> str:
    """Return a table of the mean and the range of AP and AP50 over the seeds, by start."""
    lines = ["| start | AP | AP50 |", "| --- | --- | --- |"]
    for start in STARTS:
        cells = []
        for metric in ("AP", "AP50"):
            values = [result[metric] for result in results if result["start"] == start]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        lines.append(f"| {start} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Run all starts and seeds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="The folder of all runs and the results.")
    parser.add_argument("--images", type=int, default=20, help="The number of images to learn.")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="The seeds of each start."
    )
    parser.add_argument("--steps", type=int, default=400, help="The training steps on them.")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    write_data(options.output, options.images)
    train_first(options.output)
    results = []
    for seed in options.seeds:
        for start in STARTS:
            results.append(run(options.output, start, seed, options.steps, options.images))
            write_json(options.output / "transfer.json", results)
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
