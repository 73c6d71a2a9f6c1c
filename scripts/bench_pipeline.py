"""Images a second of each stage of the input pipeline, beside bare tf.data on the same pictures.

Run: python scripts/bench_pipeline.py [--pictures=FOLDER] [--json=FILE]

Stages take turns, so that what else the machine does slows them alike; figures are medians over
the turns. `of resize` and `of bare` are medians of the ratios within a turn: to tf.data's bare
read, decode and resize, and to that with rounding, padding and batching. CPU ms is the processor
time of all threads for one picture, which other programs disturb less than the clock.
"""

import argparse
import itertools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sizes import resized_sizes
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.packed import write_packed

BOXES = 7  # a picture, as in COCO
PREFETCH = 2  # batches
RESIZE, BARE = "+ resize", "+ round, pad, batch = bare"  # what ratios are taken to
SUFFIXES = (".jpeg", ".jpg")


class Turn(NamedTuple):
    """What one stage did in one turn."""

    images_per_second: float
    cpu_ms: float  # of one picture


def draw_pictures(folder: pathlib.Path, count: int) -> None:
    """COCO-like JPEGs: 640 x 480, about 160 KB."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 16, smooth.shape)
        pixels = np.clip(noisy, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=87)


def open_pictures(folder: pathlib.Path, annotations: pathlib.Path) -> CocoSource:
    """The JPEGs of a folder, with boxes of no meaning."""
    images, boxes = [], []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        with Image.open(path) as picture:
            width, height = picture.size
        number = len(images) + 1
        images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        box = [width / 4, height / 4, width / 2, height / 2]
        boxes += [{"image_id": number, "category_id": 1, "bbox": box}] * BOXES
    if not images:
        raise SystemExit(f"{folder} holds no JPEG ({', '.join(SUFFIXES)}).")
    content = {
        "images": images,
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, 1)],
        "categories": [{"id": 1, "name": "thing"}],
    }
    annotations.write_text(json.dumps(content))
    return CocoSource(annotations, folder)


def bare_stages(
    folder: pathlib.Path, source: CocoSource, plan: TrainPlan
) -> dict[str, Callable[[], Iterator[int]]]:
    """What anyone would write in tf.data, on the plan's pictures, sizes and buckets."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    rows = [plan.batch(step) for step in range(plan.steps_per_epoch)]
    index = np.concatenate([one.index for one in rows])
    paths = [str(folder / source.file_name(i)) for i in index]
    sizes = np.concatenate([one.resized for one in rows])
    buckets = np.concatenate([np.tile(np.int32(one.bucket), (len(one.index), 1)) for one in rows])

    def read(path, size, bucket):
        return tf.io.read_file(path)

    def decode(path, size, bucket):
        return tf.io.decode_jpeg(tf.io.read_file(path), channels=3)

    def resize(path, size, bucket):
        return tf.image.resize(decode(path, size, bucket), size)

    def pad(path, size, bucket):
        image = tf.cast(tf.round(resize(path, size, bucket)), tf.uint8)
        return tf.image.pad_to_bounding_box(image, 0, 0, bucket[0], bucket[1])

    def stage(function: Callable, batch_size: int = 0) -> Callable[[], Iterator[int]]:
        dataset = tf.data.Dataset.from_tensor_slices((paths, sizes, buckets)).repeat()
        dataset = dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE)
        if batch_size:
            dataset = dataset.batch(batch_size)
        dataset = dataset.prefetch(PREFETCH if batch_size else PREFETCH * plan.batch_size)
        return lambda: (batch_size or 1 for _ in dataset.as_numpy_iterator())

    return {
        "read": stage(read),
        "+ decode": stage(decode),
        RESIZE: stage(resize),
        BARE: stage(pad, plan.batch_size),
    }


def our_stage(source: Source, plan: TrainPlan, loader: str) -> Callable[[], Iterator[int]]:
    """Whole batches, boxes and all."""
    return lambda: (
        len(batch.index)
        for batch in batches(
            source,
            plan,
            start_step=0,
            num_steps=None,
            prefetch=PREFETCH,
            loader=loader,
            min_visible=0.0,
        )
    )


def take_turn(stage: Callable[[], Iterator[int]], warm_up: int, seconds: float) -> Turn:
    """Runs a stage for some seconds, after `warm_up` pictures that do not count."""
    pictures = stage()
    for total in itertools.accumulate(pictures):
        if total >= warm_up:
            break
    began, cpu = time.perf_counter(), time.process_time()
    done = 0
    while (elapsed := time.perf_counter() - began) < seconds:
        done += next(pictures)
    used = time.process_time() - cpu
    pictures.close()
    return Turn(done / elapsed, 1000 * used / done)


def summary(turns: dict[str, list[Turn]]) -> dict[str, dict[str, float]]:
    """Medians over the turns."""

    def ratio(name: str, other: str) -> float:
        pairs = zip(turns[name], turns[other], strict=True)
        return float(np.median([a.images_per_second / b.images_per_second for a, b in pairs]))

    return {
        name: {
            "images_per_second": float(np.median([one.images_per_second for one in own])),
            "cpu_ms": float(np.median([one.cpu_ms for one in own])),
            "of_resize": ratio(name, RESIZE),
            "of_bare": ratio(name, BARE),
        }
        for name, own in turns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=pathlib.Path, help="folder of JPEGs; drawn if not given")
    parser.add_argument("--count", type=int, default=64, help="how many are drawn")
    parser.add_argument("--short_side", type=int, default=800)
    parser.add_argument("--long_side", type=int, default=1333)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each stage in each turn")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measured = bench(options, pathlib.Path(scratch))
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


def bench(options: argparse.Namespace, scratch: pathlib.Path) -> dict:
    folder = options.pictures
    if folder is None:
        folder = scratch / "pictures"
        folder.mkdir()
        draw_pictures(folder, options.count)
    source = open_pictures(folder, scratch / "instances.json")
    plan = make_plan(source, options)
    packed = write_packed(
        source,
        scratch / "packed",
        short_side=options.short_side,
        long_side=options.long_side,
        resize="bilinear",
        progress=lambda done: None,
    )
    stages = bare_stages(folder, source, plan) | {
        "ours, loader tf": our_stage(source, plan, "tf"),
        "ours, loader numpy": our_stage(source, plan, "numpy"),
        "ours, packed": our_stage(packed, plan, "numpy"),
    }
    mean_bytes = np.mean([len(source.read(index)) for index in range(len(source))])
    print(
        f"{len(source)} pictures of {mean_bytes / 1000:.0f} KB at {options.short_side}/"
        f"{options.long_side}, batch {options.batch_size}; {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} before"
    )
    turns: dict[str, list[Turn]] = {name: [] for name in stages}
    for _ in range(options.turns):
        for name, stage in stages.items():
            warm_up = (PREFETCH + 2) * options.batch_size
            turns[name].append(take_turn(stage, warm_up, options.seconds))
    stages = summary(turns)
    print(f"{'':28}{'images/s':>9}{'CPU ms':>8}{'of resize':>11}{'of bare':>9}")
    for name, one in stages.items():
        print(
            f"{name:28}{one['images_per_second']:9.1f}{one['cpu_ms']:8.2f}"
            f"{one['of_resize']:11.2f}{one['of_bare']:9.2f}"
        )
    print(f"load {os.getloadavg()[0]:.1f} after")
    return {"pictures": len(source), "cores": os.cpu_count(), "stages": stages}


def make_plan(source: Source, options: argparse.Namespace) -> TrainPlan:
    """One short side, no augmentation but the flip, buckets around the pictures' own forms."""
    sides = {"short_side": options.short_side, "long_side": options.long_side}
    held = resized_sizes(source.sizes, **sides, resize="bilinear")
    buckets = {tuple(side) for side in (-(-held // 32) * 32).tolist()}
    return TrainPlan(
        source.sizes,
        seed=0,
        batch_size=options.batch_size,
        buckets=tuple(buckets),
        resize="bilinear",
        short_sides=(options.short_side,),
        short_side_sampling="choice",
        long_side=options.long_side,
        flip=False,
        scale_jitter=None,
        crop_size=None,
        rot90=False,
        color_jitter=dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0),
    )


if __name__ == "__main__":
    main()
