"""From the config's data section to the sources and plans of a run."""

import os
import pathlib
import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent import futures

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline
from retinanet_jax.config import check_fields, choose
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan, Plan, TrainPlan
from retinanet_jax.data.sources import synthetic
from retinanet_jax.data.sources.base import Source, split_by_hash
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.csv import CsvSource
from retinanet_jax.data.sources.merged import merged
from retinanet_jax.data.sources.packed import PackedSource, write_packed
from retinanet_jax.data.sources.tfds import TfdsSource
from retinanet_jax.data.sources.voc import VocSource
from retinanet_jax.utils.progress import format_duration, make_progress

MAX_IMAGES_TO_CHECK = (
    1_000  # pictures: decoding so many takes seconds, a run that ends late costs hours
)
LISTED = ("source", "annotations", "images", "split", "classes", "official")
EXAMPLES = {
    "annotations": "FILE_OR_FOLDER",
    "images": "FOLDER",
    "split": "train",
    "classes": "FILE.csv",
}


def open_source(config: ConfigDict, part: str, workdir: pathlib.Path) -> Source:
    """The data that config.data.train or config.data.eval names; `part` is "train" or "eval".

    Fields that hold lists with commas name several sources, which are merged; a list of one is
    each one's.
    """
    section = config.data[part]
    lists = {name: section[name].split(",") for name in LISTED}
    count = max(map(len, lists.values()))
    for name, values in lists.items():
        if len(values) not in (1, count):
            raise ValueError(
                f"data.{part}.{name} lists {len(values)} sources where another field lists "
                f"{count}; give one for all, or {count}."
            )
    each = [
        {name: values[number % len(values)].strip() for name, values in lists.items()}
        for number in range(count)
    ]
    return merged([open_one(ConfigDict({**section, **one}), config, part, workdir) for one in each])


def open_one(section: ConfigDict, config: ConfigDict, part: str, workdir: pathlib.Path) -> Source:
    """One source; `section` is config.data[part] with each field naming one."""

    def given(*names: str) -> None:
        missing = [name for name in names if not section[name]]
        if missing:
            wanted = " ".join(f"--config.data.{part}.{name}={EXAMPLES[name]}" for name in missing)
            raise ValueError(f"no data: source={section.source!r} needs {wanted}.")

    def drawn() -> Source:
        if section.annotations:
            raise ValueError(
                f"data.{part}.annotations={section.annotations} would not be read: "
                f"data.{part}.source is 'shapes', which draws its own; set it to 'coco'."
            )
        folder = pathlib.Path(section.images or workdir / "data" / f"shapes-{section.seed}")
        print(f"shapes: {section.count} pictures in {folder}, drawn now if they are not there")
        written = synthetic.write_shapes(
            folder, seed=section.seed, images=section.count, image_size=section.image_size
        )
        return CocoSource(written / synthetic.ANNOTATIONS, written / synthetic.PICTURES)

    def coco() -> Source:
        given("annotations", "images")
        return CocoSource(section.annotations, section.images)

    def voc() -> Source:
        given("annotations")
        return VocSource(
            section.annotations,
            images=section.images or None,
            split=section.split,
            categories=tuple(config.data.categories),
        )

    def csv() -> Source:
        given("annotations", "classes")
        return CsvSource(section.annotations, section.classes, section.images)

    def tfds() -> Source:
        given("annotations", "split")
        return TfdsSource(
            section.annotations,
            data_dir=section.images or None,
            split=section.split,
            official=section.official,
        )

    def packed() -> Source:
        given("images")
        source = PackedSource(section.images)
        if source.resize != config.data.resize:
            raise ValueError(
                f"data.{part}.images={section.images} holds pictures resized by {source.resize!r}, "
                f"and data.resize is {config.data.resize!r}; set it to {source.resize!r}, or read "
                "the files that were packed."
            )
        return source

    kinds = {"coco": coco, "voc": voc, "csv": csv, "tfds": tfds, "packed": packed, "shapes": drawn}
    return choose(f"data.{part}.source", section.source, kinds)()


def holds_out(config: ConfigDict) -> bool:
    """Whether a share of the training data is kept for evaluation, for want of other data."""
    own = config.data.eval.annotations or config.data.eval.images
    return bool(config.data.validation_fraction) and not own


def open_split(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """The training data without the share that is held out, and that share."""
    return split_by_hash(open_source(config, "train", workdir), config.data.validation_fraction)


def open_training(config: ConfigDict, workdir: pathlib.Path) -> Source:
    """What is trained on."""
    if holds_out(config):
        return open_split(config, workdir)[0]
    return open_source(config, "train", workdir)


def check_training_data(source: Source) -> None:
    """Raises ValueError where no picture has a box, and as `check_images` does."""
    if not any(len(source.annotations(index).boxes) for index in range(len(source))):
        raise ValueError(
            f"{source.name}: none of its {len(source)} pictures has a box; there is nothing to "
            "learn. Give the file that has the annotations."
        )
    check_images(source)


def check_images(source: Source) -> None:
    """Raises ValueError or OSError at a picture that a run would end at, in a small data set.

    To read all of a large one takes minutes; `retinanet_jax.inspect` does it.
    """
    if len(source) <= MAX_IMAGES_TO_CHECK:
        with futures.ThreadPoolExecutor(os.cpu_count()) as readers:
            # Threads hand on what is wrong, and not the pixels.
            list(readers.map(lambda index: source.image(index).shape, range(len(source))))


def open_evaluation(config: ConfigDict, workdir: pathlib.Path) -> Source:
    """What is evaluated on."""
    if holds_out(config):
        return open_split(config, workdir)[1]
    return open_source(config, "eval", workdir)


def open_sources(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """(training, evaluation) data; raises ValueError where their categories differ."""
    if holds_out(config):
        return open_split(config, workdir)
    train, evaluation = open_training(config, workdir), open_evaluation(config, workdir)
    if train.categories != evaluation.categories:
        names = sorted({one.name for one in (*train.categories, *evaluation.categories)})
        remedy = "both files must list the same ids and names."
        if "voc" in config.data.train.source + config.data.eval.source:
            remedy = f'list them: --config.data.categories="{tuple(names)}".'
        raise ValueError(
            f"{train.name} has the categories {[tuple(c) for c in train.categories]}, "
            f"{evaluation.name} has {[tuple(c) for c in evaluation.categories]}; {remedy}"
        )
    return train, evaluation


def train_plan(config: ConfigDict, source: Source) -> TrainPlan:
    """Which pictures each training step sees, and how."""
    data = config.data
    return TrainPlan(
        source.sizes,
        seed=config.seed,
        batch_size=data.batch_size,
        buckets=data.buckets,
        resize=data.resize,
        short_sides=data.short_sides,
        long_side=data.long_side,
        flip=data.flip,
        short_side_sampling=data.short_side_sampling,
        scale_jitter=data.scale_jitter,
        crop_size=data.crop_size or None,
        rot90=data.rot90,
        color_jitter=data.color_jitter,
    )


def eval_plan(config: ConfigDict, sizes: Int[np.ndarray, "N 2"], *, batch_size: int) -> EvalPlan:
    """In which size and batch pictures of `sizes` (height, width) are evaluated."""
    data = config.data
    shapes = {"buckets": data.buckets, "own": ()}
    return EvalPlan(
        sizes,
        batch_size=batch_size,
        buckets=choose("data.eval_shapes", data.eval_shapes, shapes),
        resize=data.resize,
        short_side=data.eval_short_side,
        long_side=data.long_side,
    )


def host_batches(config: ConfigDict, source: Source, plan: Plan, steps: range) -> Iterator[Batch]:
    """This host's rows of the plan's batches, from steps.start to before steps.stop."""
    return batches(
        source,
        plan,
        start_step=steps.start,
        num_steps=len(steps),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        prefetch=config.data.prefetch,
        num_threads=config.data.threads or None,
        loader=config.data.loader,
        min_visible=config.data.min_visible,
    )


PARTS = ("train", "eval")


def pack_datasets(config: ConfigDict, parts: Sequence[str], output: pathlib.Path) -> list[str]:
    """Writes the parts ("train", "eval") into folders of `output`; returns a run's new flags."""
    check_fields(config)
    data = config.data
    if input_pipeline.holds_out(config) and set(parts) != set(PARTS):
        raise ValueError(
            f"data.validation_fraction={data.validation_fraction} parts the training data, and its two "
            "parts are of use together alone; give --part=both, or data.eval of its own."
        )
    sides = {"train": max(data.short_sides), "eval": data.eval_short_side}
    new = ["--config.data.loader=numpy"]
    for part, source in open_parts(config, parts, output):
        folder = output / part
        began = time.monotonic()
        packed = write_packed(
            source,
            folder,
            short_side=sides[part],
            long_side=data.long_side,
            resize=data.resize,
            num_threads=data.threads or None,
            progress=make_progress(part, len(source)),
        )
        print(
            f"{folder}: {len(packed)} pictures of {source.name} at short side {sides[part]}, in "
            f"{format_duration(time.monotonic() - began)}",
            flush=True,
        )
        new += new_flags(config, part, folder)
    return new


def open_parts(
    config: ConfigDict, parts: Sequence[str], output: pathlib.Path
) -> list[tuple[str, Source]]:
    """Each part's name and data; data that is to be drawn is drawn into `output`."""
    if set(parts) == set(PARTS):
        return list(zip(PARTS, input_pipeline.open_sources(config, output), strict=True))
    opened = {"train": input_pipeline.open_training, "eval": input_pipeline.open_evaluation}
    return [(part, opened[part](config, output)) for part in parts]


def new_flags(config: ConfigDict, part: str, folder: pathlib.Path) -> list[str]:
    """What turns the config's source of `part` into the packed one."""
    fields = {"source": "packed", "images": str(folder)}
    emptied = {
        name: "" for name in input_pipeline.LISTED if config.data[part][name] and name not in fields
    }
    return [
        shlex.quote(f"--config.data.{part}.{name}={value}")
        for name, value in (fields | emptied).items()
    ]
