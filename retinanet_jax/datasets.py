"""Opens the datasets that config.data describes, and checks them before a run.

Importing this module and opening a dataset import neither flax nor the network.
"""

import pathlib
from collections.abc import Collection, Iterator, Sequence

from absl import logging
from ml_collections import ConfigDict

from retinanet_jax.config import unknown_choice
from retinanet_jax.data.sources import synthetic
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.coco import CocoSource, coco_json
from retinanet_jax.data.sources.conventions import recognize_convention
from retinanet_jax.data.sources.csv_files import CsvSource
from retinanet_jax.data.sources.cvat import CvatSource
from retinanet_jax.data.sources.detection import detect_dataset
from retinanet_jax.data.sources.labelme import LabelmeSource
from retinanet_jax.data.sources.merged import merge
from retinanet_jax.data.sources.packed import PackedSource
from retinanet_jax.data.sources.split import split_by_groups, split_by_hash
from retinanet_jax.data.sources.tfds import TfdsSource
from retinanet_jax.data.sources.voc import VocSource
from retinanet_jax.data.sources.yolo import YoloSource
from retinanet_jax.utils.files import check_absent, write_json
from retinanet_jax.utils.progress import make_progress
from retinanet_jax.utils.threads import map_ahead

PARTS = ("train", "eval")  # the sections of config.data that name datasets
SOURCES = ("coco", "yolo", "voc", "csv", "labelme", "cvat", "tfds", "packed", "shapes")
# Formats whose files list no categories, only the names of the objects in them.
UNLISTED_CATEGORIES = ("voc", "csv", "labelme")
# The fields of a section that may be lists separated by commas, with an entry for each dataset.
LIST_FIELDS = ("source", "annotations", "images", "split", "classes", "official")
# The values that an error message suggests for missing fields.
FIELD_EXAMPLES = {
    "annotations": "FILE_OR_FOLDER",
    "images": "FOLDER",
    "split": "train",
    "classes": "FILE.csv",
}
HELD_OUT_FRACTION = 0.2  # of the images of a detected dataset without evaluation data
# Decoding this many images takes seconds, but an invalid image may end a run after hours.
MAX_IMAGES_TO_CHECK = 1_000


def open_sources(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """Open the training and the evaluation data.

    Args:
        config: The run's config.
        workdir: The folder for generated datasets.

    Raises:
        ValueError: If their categories differ, or as in `open_source`.
    """
    train, evaluation = open_both(config, workdir)
    if train.categories != evaluation.categories:
        raise ValueError(
            f"{train.name} has the categories {[tuple(c) for c in train.categories]}, "
            f"{evaluation.name} has {[tuple(c) for c in evaluation.categories]}; both must list "
            "the same ids and names."
        )
    return train, evaluation


def open_both(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """Open the training and the evaluation data, whose categories may differ.

    If neither lists its categories, those of both are the names that occur in either.

    Args:
        config: The run's config.
        workdir: The folder for generated datasets.
    """
    if splits_training_data(config):
        return open_split(config, workdir)
    train, evaluation = open_training(config, workdir), open_evaluation(config, workdir)
    if train.categories != evaluation.categories and all(
        finds_categories(config, part) for part in PARTS
    ):
        names = {category.name for category in (*train.categories, *evaluation.categories)}
        config = with_categories(config, sorted(names))
        train, evaluation = open_training(config, workdir), open_evaluation(config, workdir)
    return train, evaluation


def finds_categories(config: ConfigDict, part: str) -> bool:
    """Return whether the categories of a dataset are the names that occur in its boxes.

    Args:
        config: The run's config.
        part: "train" or "eval".
    """
    section = config.data[part]
    is_listed = section.classes or config.data.categories
    return not is_listed and set(section.source.split(",")) <= {*UNLISTED_CATEGORIES}


def with_categories(config: ConfigDict, names: Sequence[str]) -> ConfigDict:
    """Return a copy of a config with data.categories."""
    copy = config.copy_and_resolve_references()
    copy.data.categories = tuple(names)
    return copy


def open_training(config: ConfigDict, workdir: pathlib.Path) -> Source:
    """Open the training data, without the images that are held out for evaluation."""
    if splits_training_data(config):
        return open_split(config, workdir)[0]
    return open_source(config, "train", workdir)


def open_evaluation(config: ConfigDict, workdir: pathlib.Path) -> Source:
    """Open the evaluation data, which may be the held-out part of the training data."""
    if splits_training_data(config):
        return open_split(config, workdir)[1]
    return open_source(config, "eval", workdir)


def splits_training_data(config: ConfigDict) -> bool:
    """Return whether part of the training data is held out, as there is no evaluation data."""
    has_eval_data = config.data.eval.annotations or config.data.eval.images
    return bool(config.data.validation_fraction) and not has_eval_data


def open_split(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """Open the training data, and return the training images and the held-out images."""
    source = open_source(config, "train", workdir)
    fraction, rule = config.data.validation_fraction, config.data.split_groups
    if rule == "none":
        return split_by_hash(source, fraction)
    return split_by_groups(source, fraction, rule, make_progress("comparing", len(source)))


def open_source(config: ConfigDict, part: str, workdir: pathlib.Path) -> Source:
    """Open the dataset of config.data.train or config.data.eval.

    Fields that are lists separated by commas describe several datasets, which are merged. A field
    with a single entry applies to all of them.

    Args:
        config: The run's config.
        part: "train" or "eval".
        workdir: The folder for generated datasets.

    Raises:
        ValueError: If a field is missing, lists differ in length, or a file is invalid.
        OSError: If a file cannot be read.
    """
    section = config.data[part]
    lists = {name: section[name].split(",") for name in LIST_FIELDS}
    count = max(map(len, lists.values()))
    for name, values in lists.items():
        if len(values) not in (1, count):
            raise ValueError(
                f"data.{part}.{name} lists {len(values)} sources, but another field lists {count}; "
                f"give one for all, or {count}."
            )
    sections = [
        {name: values[index % len(values)].strip() for name, values in lists.items()}
        for index in range(count)
    ]
    return merge(
        [
            _open_dataset(ConfigDict({**section, **fields}), config, part, workdir)
            for fields in sections
        ]
    )


def _open_dataset(
    section: ConfigDict, config: ConfigDict, part: str, workdir: pathlib.Path
) -> Source:
    """Open one dataset; `section` is config.data[part] with one entry in each field."""
    categories = tuple(config.data.categories)
    match section.source:
        case "coco":
            _require(section, part, "annotations", "images")
            return CocoSource(section.annotations, section.images)
        case "voc":
            _require(section, part, "annotations")
            return VocSource(
                section.annotations,
                images=section.images or None,
                split=section.split,
                categories=categories,
            )
        case "csv":
            _require(section, part, "annotations")
            return CsvSource(
                section.annotations, section.classes, section.images, categories=categories
            )
        case "yolo":
            _require(section, part, "annotations")
            return YoloSource(
                section.annotations, section.images, split=section.split, categories=categories
            )
        case "labelme":
            _require(section, part, "annotations")
            return LabelmeSource(section.annotations, images=section.images, categories=categories)
        case "cvat":
            _require(section, part, "annotations")
            return CvatSource(section.annotations, images=section.images, categories=categories)
        case "tfds":
            _require(section, part, "annotations", "split")
            return TfdsSource(
                section.annotations,
                data_dir=section.images or None,
                split=section.split,
                official=section.official,
            )
        case "packed":
            _require(section, part, "images")
            return _open_packed(section, part, config.data.resize)
        case "shapes":
            return _open_shapes(section, part, workdir)
        case unknown:
            raise unknown_choice(f"data.{part}.source", unknown, SOURCES)


def use_dataset(config: ConfigDict, path: pathlib.Path, given: Collection[str]) -> str:
    """Let a config read the dataset at a path, and return a line that describes it.

    If it has no evaluation data, some of the training images are held out.

    Args:
        config: The config of the run; its fields of `data` are set.
        path: As in `detect_dataset`.
        given: Fields that keep their values, by dotted names such as data.train.images.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If no format is detected.
    """
    detected = detect_dataset(path)
    parts = {"train": detected.train, "eval": detected.evaluation or {"source": "coco"}}
    for part, fields in parts.items():
        for name in LIST_FIELDS:
            if f"data.{part}.{name}" not in given:
                config.data[part][name] = fields.get(name, "")
    description = f"data: {detected.description}"
    if config.data.eval.annotations or config.data.eval.images:
        return description
    if not config.data.validation_fraction and "data.validation_fraction" not in given:
        config.data.validation_fraction = HELD_OUT_FRACTION
    fraction = config.data.validation_fraction
    held_out = f"; {fraction:.0%} of the images are held out for evaluation" if fraction else ""
    return description + held_out


def _require(section: ConfigDict, part: str, *names: str) -> None:
    """Raise ValueError, with the missing flags, if one of the fields is empty."""
    missing = [name for name in names if not section[name]]
    if missing:
        flags = [f"--config.data.{part}.{name}={FIELD_EXAMPLES[name]}" for name in missing]
        raise ValueError(f"no data: source={section.source!r} requires {' '.join(flags)}.")


def _open_packed(section: ConfigDict, part: str, resize: str) -> PackedSource:
    """Open a packed dataset that was resized by the config's method."""
    source = PackedSource(section.images)
    if source.resize != resize:
        raise ValueError(
            f"data.{part}.images={section.images} contains images resized by {source.resize!r}, "
            f"but data.resize is {resize!r}; set it to {source.resize!r}, or read the files that "
            "were packed."
        )
    return source


def _open_shapes(section: ConfigDict, part: str, workdir: pathlib.Path) -> CocoSource:
    """Generate the synthetic dataset if it does not exist yet, and open it."""
    if section.annotations:
        raise ValueError(
            f"data.{part}.annotations={section.annotations} would not be read: "
            f"data.{part}.source is 'shapes', which generates its own; set it to 'coco'."
        )
    folder = pathlib.Path(section.images or workdir / "data" / f"shapes-{section.seed}")
    print(f"shapes: {section.count} images in {folder}, generated now if they do not exist")
    written = synthetic.write_shapes(
        folder, seed=section.seed, num_images=section.count, image_size=section.image_size
    )
    return CocoSource(written / synthetic.ANNOTATIONS, written / synthetic.IMAGES)


def convert_dataset(config: ConfigDict, output: pathlib.Path) -> Iterator[str]:
    """Write the training data, and the evaluation data if there is some, in COCO's format.

    Args:
        config: A config that names the datasets.
        output: The JSON file of the training data, which must not exist. That of the evaluation
            data has _eval before the suffix.

    Yields:
        A line about each file that was written.

    Raises:
        FileExistsError: If a file exists.
        ValueError: If a dataset is invalid.
    """
    outputs = {"train": output, "eval": output.with_stem(f"{output.stem}_eval")}
    if not (config.data.eval.annotations or config.data.eval.images):
        del outputs["eval"]
    for file in outputs.values():
        check_absent(file, "file")
    for part, file in outputs.items():
        source = open_source(config, part, output.parent)
        write_json(file, coco_json(source, file.parent))
        yield (
            f"{file}: {len(source)} images, {len(source.objects.ids)} boxes, "
            f"{len(source.categories)} categories"
        )


def check_training_data(source: Source) -> None:
    """Check that there are objects to learn from, and `check_images`.

    Raises:
        ValueError: If no image has an object, if the boxes are in another convention than that of
            their format, or as in `check_images`.
    """
    if not source.object_mask.any():
        raise ValueError(
            f"{source.name}: {_why_no_object(source)}; there is nothing to learn. Give the file "
            "that contains the annotations, or correct them."
        )
    _check_convention(source)
    check_images(source)


def check_evaluation_data(source: Source) -> None:
    """Check that the boxes can be evaluated, and log a warning if there is no object.

    Raises:
        ValueError: If the boxes are in another convention than that of their format.
    """
    if not source.object_mask.any():
        logging.warning(
            "%s: %s, so that AP will be undefined; give evaluation data with objects.",
            source.name,
            _why_no_object(source),
        )
    _check_convention(source)


def _check_convention(source: Source) -> None:
    """Raise ValueError if boxes are certainly in another convention than that of their format."""
    convention = recognize_convention(source)
    if convention and convention.is_certain:
        raise ValueError(f"{source.name}: {convention.message}; {convention.advice}.")


def _why_no_object(source: Source) -> str:
    """Return why a dataset has no object to learn."""
    count, num_crowd = len(source.objects.crowd), int(source.objects.crowd.sum())
    if not count:
        return f"none of its {len(source)} images has a box"
    if num_crowd == count:
        return f"all of its {count} boxes are crowd regions (iscrowd, ignore or difficult)"
    return f"none of its {count} boxes has an area inside its image and is no crowd region"


def check_images(source: Source) -> None:
    """Decode all images of a small dataset, so that invalid ones are reported before the run.

    For a large dataset, which takes minutes, use `retinanet-jax inspect`.

    Raises:
        ValueError: If an image is invalid.
        OSError: If an image cannot be read.
    """
    if len(source) <= MAX_IMAGES_TO_CHECK:
        # The threads return shapes instead of the images, which would fill the memory.
        for _ in map_ahead(lambda index: source.image(index).shape, range(len(source))):
            pass  # an invalid image raises its error
