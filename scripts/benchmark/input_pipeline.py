"""Images per second of each stage of the input pipeline, compared with bare tf.data.

The stages are measured in turn, so that other load on the machine slows them alike; figures are
medians over the rounds. `of resize` and `of bare` are medians of the ratios within a round: to
plain tf.data that reads, decodes and resizes, and to plain tf.data that also rounds, pads and
batches. CPU ms is the processor time of all threads per image, which other programs disturb less
than wall time.
"""

import functools
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from retinanet_jax.data.augmentation import Augmentation
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sizes import SIZE_MULTIPLE, resized_sizes
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.packed import write_packed
from scripts.benchmark.timing import interleave, median_ratio

BOXES_PER_IMAGE = 7  # as in COCO
PREFETCH = 2  # batches
RESIZE, BARE = "+ resize", "+ round, pad, batch = bare"  # the stages that ratios refer to
SUFFIXES = (".jpeg", ".jpg")  # tf.data decodes only JPEG

Stage = Callable[[], Generator[int, None, None]]  # yields the number of images of each element


class Options(NamedTuple):
    """The images, and how the pipeline reads them."""

    images: pathlib.Path | None  # a folder of JPEGs; None to generate some
    num_generated: int
    short_side: int
    long_side: int
    batch: int
    seconds: float  # of each stage in each round


class Rate(NamedTuple):
    """The rate of one stage in one round."""

    images_per_second: float
    cpu_ms: float  # per image


def generate_images(folder: pathlib.Path, count: int) -> None:
    """Write JPEGs like COCO's: 640 x 480, about 160 KB."""
    for index in range(count):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 16, smooth.shape)
        pixels = np.clip(noisy, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04d}.jpg", quality=87)


def open_images(folder: pathlib.Path, annotations: pathlib.Path) -> CocoSource:
    """Return a dataset of the JPEGs in a folder, with arbitrary boxes.

    Args:
        folder: The folder with the images.
        annotations: The path to which its COCO JSON is written.

    Raises:
        ValueError: If the folder has no JPEG.
    """
    images, boxes = [], []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        with Image.open(path) as image:
            width, height = image.size
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": path.name, "height": height, "width": width})
        box = [width / 4, height / 4, width / 2, height / 2]
        boxes += [{"image_id": image_id, "category_id": 1, "bbox": box}] * BOXES_PER_IMAGE
    if not images:
        raise ValueError(f"{folder} has no JPEG ({', '.join(SUFFIXES)}); give another folder.")
    content = {
        "images": images,
        "annotations": [{"id": box_id, **box} for box_id, box in enumerate(boxes, 1)],
        "categories": [{"id": 1, "name": "object"}],
    }
    annotations.write_text(json.dumps(content))
    return CocoSource(annotations, folder)


def make_plan(source: Source, options: Options) -> TrainPlan:
    """Return a plan with one short side, no augmentation, and a bucket for each size of image."""
    sides = {"short_side": options.short_side, "long_side": options.long_side}
    sizes = resized_sizes(source.sizes, **sides, resize="bilinear")
    buckets = {tuple(size) for size in (-(-sizes // SIZE_MULTIPLE) * SIZE_MULTIPLE).tolist()}
    augmentation = Augmentation(
        short_sides=(options.short_side,),
        short_side_sampling="choice",
        long_side=options.long_side,
        scale_jitter=None,
        crop_size=None,
        flip=False,
        rot90=False,
        color_jitter=dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0),
    )
    return TrainPlan(
        source.sizes,
        augmentation,
        seed=0,
        batch_size=options.batch,
        buckets=tuple(buckets),
        resize="bilinear",
    )


def bare_stages(folder: pathlib.Path, source: CocoSource, plan: TrainPlan) -> dict[str, Stage]:
    """Return plain tf.data pipelines on the images, sizes and buckets of the plan.

    Args:
        folder: The folder with the images.
        source: The dataset of these images.
        plan: The plan of its batches.
    """
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    plans = [plan.batch(step) for step in range(plan.steps_per_epoch)]
    paths = [str(folder / source.file_name(i)) for batch in plans for i in batch.index]
    sizes = np.concatenate([batch.resized for batch in plans])
    buckets = np.concatenate(
        [np.tile(np.array(batch.bucket, np.int32), (len(batch.index), 1)) for batch in plans]
    )

    def read(path, size, bucket):
        return tf.io.read_file(path)

    def decode(path, size, bucket):
        return tf.io.decode_jpeg(tf.io.read_file(path), channels=3)

    def resize(path, size, bucket):
        return tf.image.resize(decode(path, size, bucket), size)

    def pad(path, size, bucket):
        image = tf.cast(tf.round(resize(path, size, bucket)), tf.uint8)
        return tf.image.pad_to_bounding_box(image, 0, 0, bucket[0], bucket[1])

    def make_stage(function: Callable, batch_size: int = 0) -> Stage:
        dataset = tf.data.Dataset.from_tensor_slices((paths, sizes, buckets)).repeat()
        dataset = dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE)
        if batch_size:
            dataset = dataset.batch(batch_size)
        dataset = dataset.prefetch(PREFETCH if batch_size else PREFETCH * plan.batch_size)
        return lambda: (batch_size or 1 for _ in dataset.as_numpy_iterator())

    return {
        "read": make_stage(read),
        "+ decode": make_stage(decode),
        RESIZE: make_stage(resize),
        BARE: make_stage(pad, plan.batch_size),
    }


def our_stage(source: Source, plan: TrainPlan, loader: str) -> Stage:
    """Return the stage of this project's pipeline, which loads whole batches with their boxes.

    Args:
        source: The dataset.
        plan: The plan of its batches.
        loader: "tf" or "numpy".
    """
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


def measure_stage(stage: Stage, warm_up: int, seconds: float) -> Rate:
    """Return the rate of a stage.

    Args:
        stage: The stage.
        warm_up: The number of images before the measurement starts.
        seconds: The duration of the measurement.
    """
    counts = stage()
    for total in itertools.accumulate(counts):
        if total >= warm_up:
            break
    start, cpu_start = time.perf_counter(), time.process_time()
    done = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        done += next(counts)
    cpu_seconds = time.process_time() - cpu_start
    counts.close()
    return Rate(done / elapsed, 1000 * cpu_seconds / done)


def summarize(rates: dict[str, list[Rate]]) -> dict[str, dict[str, float]]:
    """Return for each stage the medians over the rounds."""
    speeds = {name: [rate.images_per_second for rate in stage] for name, stage in rates.items()}
    return {
        name: {
            "images_per_second": statistics.median(speeds[name]),
            "cpu_ms": statistics.median(rate.cpu_ms for rate in stage),
            "of_resize": median_ratio(speeds[name], speeds[RESIZE]),
            "of_bare": median_ratio(speeds[name], speeds[BARE]),
        }
        for name, stage in rates.items()
    }


def measure_input_pipeline(options: Options, rounds: int) -> dict[str, Any]:
    """Measure all stages in turn, print a table, and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        source, stages = make_stages(options, pathlib.Path(folder))
        mean_bytes = np.mean([len(source.read(index) or b"") for index in range(len(source))])
        print(
            f"{len(source)} images of {mean_bytes / 1000:.0f} KB at {options.short_side}/"
            f"{options.long_side}, batch {options.batch}; load {os.getloadavg()[0]:.1f} before"
        )
        warm_up = (PREFETCH + 2) * options.batch
        rates = interleave(
            {
                name: functools.partial(measure_stage, stage, warm_up, options.seconds)
                for name, stage in stages.items()
            },
            rounds,
        )
    figures = summarize(rates)
    print(f"{'':28}{'images/s':>9}{'CPU ms':>8}{'of resize':>11}{'of bare':>9}")
    for name, row in figures.items():
        print(
            f"{name:28}{row['images_per_second']:9.1f}{row['cpu_ms']:8.2f}"
            f"{row['of_resize']:11.2f}{row['of_bare']:9.2f}"
        )
    print(f"load {os.getloadavg()[0]:.1f} after")
    return {"images": len(source), "stages": figures}


def make_stages(options: Options, scratch: pathlib.Path) -> tuple[CocoSource, dict[str, Stage]]:
    """Return the dataset and all stages by name.

    Args:
        options: The images, and how they are read.
        scratch: A folder for generated images, annotations and the packed dataset.
    """
    folder = options.images
    if folder is None:
        folder = scratch / "images"
        folder.mkdir()
        generate_images(folder, options.num_generated)
    source = open_images(folder, scratch / "instances.json")
    plan = make_plan(source, options)
    packed = write_packed(
        source,
        scratch / "packed",
        short_side=options.short_side,
        long_side=options.long_side,
        resize="bilinear",
        progress=lambda done: None,
    )
    return source, bare_stages(folder, source, plan) | {
        "ours, loader tf": our_stage(source, plan, "tf"),
        "ours, loader numpy": our_stage(source, plan, "numpy"),
        "ours, packed": our_stage(packed, plan, "numpy"),
    }
