"""Datasets of a detected format: a config that reads one, and its conversion to COCO."""

import pathlib
from collections.abc import Collection, Iterator

from ml_collections import ConfigDict

from retinanet_jax.data.sources.coco import coco_json
from retinanet_jax.data.sources.detection import detect_dataset
from retinanet_jax.datasets.opening import (
    LIST_FIELDS,
    names_evaluation_data,
    open_both,
    open_source,
    splits_training_data,
)
from retinanet_jax.utils.files import check_absent, make_writable, write_json
from retinanet_jax.utils.remote import local_copy, with_remote_names

VALIDATION_FRACTION = 0.2  # of the images of a detected dataset without evaluation data
SPLIT_NOTE = "of the images are held out for evaluation"


def use_dataset(config: ConfigDict, path: pathlib.Path, given: Collection[str]) -> str:
    """Let a config read the dataset at a path, and return a line that describes it.

    If it has no evaluation data, some of the training images are held out.

    Args:
        config: The config of the run; its fields of `data` are set.
        path: As in `detect_dataset`, or a folder in remote storage.
        given: Fields that keep their values, by dotted names such as data.train.images.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If no format is detected.
    """
    local = local_copy(path)
    if local != path and local.is_file():
        raise ValueError(
            f"--data={path}: a dataset in remote storage is given as a folder; give that of this "
            "file and its images, or name both in the fields of config.data.train."
        )
    detected = detect_dataset(local)
    parts = {"train": detected.train, "eval": detected.evaluation or {"source": "coco"}}
    for part, fields in parts.items():
        for name in LIST_FIELDS:
            if f"data.{part}.{name}" not in given:
                config.data[part][name] = with_remote_names(fields.get(name, ""))
    description = f"data: {with_remote_names(detected.description)}"
    if names_evaluation_data(config):
        return description
    if not config.data.validation_fraction and "data.validation_fraction" not in given:
        config.data.validation_fraction = VALIDATION_FRACTION
    fraction = config.data.validation_fraction
    split = f"; {fraction:.0%} {SPLIT_NOTE}" if fraction else ""
    return description + split


def use_all_images(config: ConfigDict, trained: ConfigDict | None, given: Collection[str]) -> str:
    """Let an evaluation read all images of a dataset, except where some were held out of training.

    Args:
        config: The config of the evaluation, after `use_dataset`.
        trained: That of the run; None for detections of which no run is known.
        given: As in `use_dataset`.

    Returns:
        A line about the images that are evaluated; empty if nothing is special about them.
    """
    if names_evaluation_data(config):
        return ""
    if splits_training_data(config) and "data.validation_fraction" in given:
        return ""
    if trained and splits_training_data(config) and splits_training_data(trained):
        if all(config.data.train[name] == trained.data.train[name] for name in LIST_FIELDS):
            return ""
        return (
            "only the held-out images are used, as this may be the run's own dataset in "
            "another place; --config.data.validation_fraction=0 uses all"
        )
    for name in LIST_FIELDS:
        config.data.eval[name] = config.data.train[name]
    return "all images are used"


def use_evaluation_dataset(
    config: ConfigDict, path: pathlib.Path, trained: ConfigDict | None, given: Collection[str]
) -> str:
    """Let an evaluation read the dataset at a path, and return a line that describes it.

    Args:
        config: The config of the evaluation; its fields of `data` are set.
        path: As in `use_dataset`.
        trained: As in `use_all_images`.
        given: As in `use_dataset`.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If no format is detected.
    """
    description = use_dataset(config, path, given)
    images = use_all_images(config, trained, given)
    if description.endswith(SPLIT_NOTE) and names_evaluation_data(config):  # none are, after all
        description, _, _ = description.rpartition("; ")
    return "; ".join(filter(None, [description, images]))


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
        ValueError: If the output is no .json, or a dataset is invalid.
        OSError: If the folder of the output cannot be created or written.
    """
    if output.suffix.lower() != ".json":
        raise ValueError(f"--output={output}: give a name that ends with .json.")
    outputs = [output]
    if names_evaluation_data(config):
        outputs.append(output.with_stem(f"{output.stem}_eval"))
    for file in outputs:
        check_absent(file, "file")
    make_writable(output.parent)
    if len(outputs) == 1:
        sources = [open_source(config, "train", output.parent)]
    else:
        sources = open_both(config, output.parent)
    for file, source in zip(outputs, sources, strict=True):
        write_json(file, coco_json(source, file.parent))
        has_files = len(source) and source.path(0) is not None
        note = "" if has_files else "; write its images, which are no files, to a folder yourself"
        yield (
            f"{file}: {len(source)} images, {len(source.objects.ids)} boxes, "
            f"{len(source.categories)} categories{note}"
        )
