"""Opens the datasets that config.data describes."""

import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from retinanet_jax.config import unknown_choice
from retinanet_jax.data.decoding import Decoding
from retinanet_jax.data.sources import synthetic
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.csv_files import CsvSource
from retinanet_jax.data.sources.cvat import CvatSource
from retinanet_jax.data.sources.fields import MAX_NAMES
from retinanet_jax.data.sources.labelme import LabelmeSource
from retinanet_jax.data.sources.merged import merge
from retinanet_jax.data.sources.packed import PackedSource
from retinanet_jax.data.sources.split import split_by_groups, split_by_hash
from retinanet_jax.data.sources.tfds import TfdsSource
from retinanet_jax.data.sources.voc import VocSource
from retinanet_jax.data.sources.yolo import YoloSource
from retinanet_jax.data.value_range import parse_value_range
from retinanet_jax.utils.paths import is_remote, split_list
from retinanet_jax.utils.progress import join_first, make_progress
from retinanet_jax.utils.remote import copy_path, local_copy, local_folder

PARTS = ("train", "eval")  # the sections of config.data that name datasets
SOURCES = ("coco", "yolo", "voc", "csv", "labelme", "cvat", "tfds", "packed", "shapes")
# Formats with files that list no categories, only the names of the objects in them.
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


def open_sources(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """Open the training and the evaluation data.

    Args:
        config: The run's config.
        workdir: The folder for generated datasets.

    Raises:
        ValueError: If their categories differ, or as in `open_source`.
    """
    train, evaluation = open_both(config, workdir)
    if train.categories == evaluation.categories:
        return train, evaluation
    advice = "list the same ids and names in both"
    if any(finds_categories(config, part) for part in PARTS):
        names = {category.name for category in (*train.categories, *evaluation.categories)}
        listed = str(tuple(sorted(names))) if len(names) <= MAX_NAMES else "(NAME, ...)"
        advice = f'list all of them: --config.data.categories="{listed}"'
    raise ValueError(
        f"{train.name} and {evaluation.name} have different categories (only in the former: "
        f"{_list_others(train, evaluation)}; only in the latter: "
        f"{_list_others(evaluation, train)}); {advice}."
    )


def _list_others(source: Source, other: Source) -> str:
    """Return the ids and names of the categories that another dataset lacks, for a message."""
    others = sorted(set(source.categories) - set(other.categories))
    return (
        join_first([f"{category_id} {name}" for category_id, name in others], MAX_NAMES) or "none"
    )


def open_both(config: ConfigDict, workdir: pathlib.Path) -> tuple[Source, Source]:
    """Open the training and the evaluation data; their categories may differ.

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


def with_missing_categories(config: ConfigDict, names: Sequence[str]) -> ConfigDict:
    """Return the config with data.categories if its evaluation data does not list any.

    Args:
        config: The config of an evaluation.
        names: The names of a checkpoint's categories.
    """
    return with_categories(config, names) if finds_categories(config, "eval") else config


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


def names_evaluation_data(config: ConfigDict) -> bool:
    """Return whether config.data.eval names files; the dataset `shapes` requires none."""
    return bool(config.data.eval.annotations or config.data.eval.images)


def splits_training_data(config: ConfigDict) -> bool:
    """Return whether part of the training data is held out, as there is no evaluation data."""
    return bool(config.data.validation_fraction) and not names_evaluation_data(config)


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
    with a single entry applies to all of them. A comma in an existing path belongs to it.

    Args:
        config: The run's config.
        part: "train" or "eval".
        workdir: The folder for generated datasets.

    Raises:
        ValueError: If a field is missing, lists differ in length, or a file is invalid.
        OSError: If a file cannot be read.
    """
    section = config.data[part]
    lists = {name: split_list(section[name]) for name in LIST_FIELDS}
    count = max(map(len, lists.values()))
    for name, values in lists.items():
        if len(values) not in (1, count):
            raise ValueError(
                f"data.{part}.{name} lists {len(values)} sources, but another field lists {count}; "
                f"give one for all, or {count}."
            )
    sections = [
        {name: values[index % len(values)] for name, values in lists.items()}
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
    _use_local_copies(section)
    decoding = Decoding(parse_value_range(config.data.value_range), config.data.exif)
    options = {
        "images": section.images or None,
        "categories": tuple(config.data.categories),
        "decoding": decoding,
    }
    match section.source:
        case "coco":
            _require(section, part, "annotations", "images")
            return CocoSource(section.annotations, section.images, decoding=decoding)
        case "voc" | "yolo" | "cvat" as name:
            _require(section, part, "annotations")
            source_type = {"voc": VocSource, "yolo": YoloSource, "cvat": CvatSource}[name]
            return source_type(section.annotations, split=section.split, **options)
        case "labelme":
            _require(section, part, "annotations")
            return LabelmeSource(section.annotations, **options)
        case "csv":
            _require(section, part, "annotations")
            return CsvSource(section.annotations, section.classes, **options)
        case "tfds":
            _require(section, part, "annotations", "split")
            return TfdsSource(
                section.annotations,
                data_dir=section.images or None,
                split=section.split,
                official=section.official,
                decoding=decoding,
            )
        case "packed":
            _require(section, part, "images")
            return _open_packed(section, part, config.data.resize)
        case "shapes":
            return _open_shapes(section, part, workdir)
        case unknown:
            raise unknown_choice(f"data.{part}.source", unknown, SOURCES)


def _use_local_copies(section: ConfigDict) -> None:
    """Replace the paths in remote storage by those of local copies, which are made or updated."""
    if section.source == "tfds" and is_remote(section.images):  # of the datasets in a data_dir, one
        builder = section.annotations.replace(":", "/")
        local_copy(f"{section.images.rstrip('/')}/{builder}")
        section.images = str(copy_path(section.images))
    for name in ("annotations", "images", "classes", "official"):
        if is_remote(section[name]):
            section[name] = str(local_copy(section[name]))


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
    default = local_folder(workdir, "data") / f"shapes-{section.seed}"
    folder = pathlib.Path(section.images or default)
    print(f"shapes: {section.count} images in {folder}, generated now if they do not exist")
    written = synthetic.write_shapes(
        folder, seed=section.seed, num_images=section.count, image_size=section.image_size
    )
    return CocoSource(written / synthetic.ANNOTATIONS, written / synthetic.IMAGES)
