"""The files of evaluations, and a description of the dataset and the settings of each.

WORKDIR/eval/STEP.json is the evaluation that belongs to a run: that of its training, on the dataset
and with the settings of its config. Evaluations of other data, or with other settings, are in
folders of their own: WORKDIR/eval/DATASET-DIGEST/STEP.json.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import checkpoint
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.config import flatten
from retinanet_jax.data.sources.base import Source
from retinanet_jax.data.sources.objects import id_array
from retinanet_jax.datasets import splits_training_data
from retinanet_jax.stored_config import plain
from retinanet_jax.utils.files import write_json
from retinanet_jax.utils.paths import is_remote

FOLDER = "eval"
# The config fields, or beginnings of their names, that determine the detections of a dataset.
SETTINGS = (
    "dtype",
    "data.buckets",
    "data.eval_shapes",
    "data.resize",
    "data.eval_short_side",
    "data.long_side",
    "detections.",
)
NUM_HASHED_IMAGES = 8  # hashing all of a large dataset would take minutes
DIGEST_LENGTH = 8  # hexadecimal digits in the name of a folder
MAX_NAME_LENGTH = 100  # characters of a dataset's name in it


def describe(
    config: ConfigDict, source: Source, more_settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the dataset and the settings of an evaluation, for its JSON.

    Args:
        config: The config of the evaluation.
        source: The dataset.
        more_settings: Settings that no config field has, such as the views of test-time
            augmentation, by name.
    """
    own = {**settings(config), **(more_settings or {})}
    return {"dataset": describe_dataset(source), "settings": own}


def describe_dataset(source: Source) -> dict[str, Any]:
    """Return the name, the number of images and the digest of a dataset."""
    return {"name": short_name(source), "num_images": len(source), "sha256": digest(source)}


def settings(config: ConfigDict) -> dict[str, Any]:
    """Return the config fields that determine the detections of a dataset, by dotted name."""
    return {name: value for name, value in flatten(plain(config)) if name.startswith(SETTINGS)}


def dataset_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the config fields that name the evaluation dataset, with absolute paths."""
    data = plain(config)["data"]
    part, names = "eval", ["categories"]
    if splits_training_data(config):
        part, names = "train", ["categories", "validation_fraction"]
    paths = {
        name: os.path.abspath(value)
        if value and isinstance(value, str) and not is_remote(value)
        else value
        for name, value in data[part].items()
    }
    return {**paths, **{name: data[name] for name in names}}


def short_name(source: Source) -> str:
    """Return the name of a dataset, with its path shortened to the file and its folder."""
    parts = source.name.split(" + ")  # of a merged dataset
    return " + ".join("/".join(pathlib.PurePath(part).parts[-2:]) for part in parts)


def digest(source: Source) -> str:
    """Return the SHA-256 of a dataset: its images' ids, sizes and objects, and some of its files.

    It does not depend on the folder that the dataset is in, but on whether its images are there.
    """
    total = hashlib.sha256()
    total.update(json.dumps(source.categories).encode())
    ids = id_array(source.image_ids)
    total.update(ids.tobytes() if ids.dtype == np.int64 else json.dumps(ids.tolist()).encode())
    total.update(np.asarray(source.sizes, np.int32).tobytes())
    for index in range(len(source)):
        for field in source.annotations(index):
            total.update(np.ascontiguousarray(field).tobytes())
    spread = np.linspace(0, len(source) - 1, min(NUM_HASHED_IMAGES, len(source)))
    for index in spread.astype(int).tolist() if source.has_images else ():
        content = source.read(index)
        total.update(source.image(index).tobytes() if content is None else content)
    return total.hexdigest()


def same_evaluation(config: ConfigDict, other: ConfigDict) -> bool:
    """Return whether two configs name the same evaluation dataset and have the same settings."""
    return settings(config) == settings(other) and dataset_fields(config) == dataset_fields(other)


def evaluation_folder(
    workdir: pathlib.Path, trained: Checkpoint, config: ConfigDict, description: dict[str, Any]
) -> pathlib.Path:
    """Return the folder for an evaluation of a checkpoint after its training.

    Args:
        workdir: The working directory that contains the checkpoint.
        trained: The checkpoint.
        config: The config of the evaluation.
        description: Its dataset and settings, from `describe`.
    """
    folder = workdir / FOLDER
    if is_own_evaluation(folder / f"{trained.step}.json", trained, config, description):
        return folder
    identity = json.dumps([description["dataset"]["sha256"], description["settings"]])
    suffix = hashlib.sha256(identity.encode()).hexdigest()[:DIGEST_LENGTH]
    name = re.sub(r"\.\w+$", "", description["dataset"]["name"])[:MAX_NAME_LENGTH]
    name = re.sub(r"[^-.\w]+", "-", name)
    return folder / f"{name}-{suffix}"


def is_own_evaluation(
    file: pathlib.Path, trained: Checkpoint, config: ConfigDict, description: dict[str, Any]
) -> bool:
    """Return whether an evaluation has the dataset and the settings of the checkpoint's run.

    Args:
        file: The JSON of the run's own evaluation; it need not exist. If it describes the dataset,
            the description decides, otherwise the fields of the two configs.
        trained: The checkpoint.
        config: The config of the evaluation.
        description: Its dataset and settings, from `describe`.
    """
    if settings(trained.config) != description["settings"]:
        return False
    stored = read_evaluation(file) or {}
    if "dataset" in stored:
        return stored["dataset"]["sha256"] == description["dataset"]["sha256"]
    is_imported = trained.step == 0  # its own dataset is the first that it is evaluated on
    return is_imported or same_evaluation(trained.config, config)


def own_evaluation(trained: Checkpoint) -> dict[str, Any] | None:
    """Return the evaluation that belongs to the run of a checkpoint, or None if there is none.

    Args:
        trained: A checkpoint. If it was copied out of its run, its evaluation is not known.

    Returns:
        The metrics (see `coco_metrics`) and what `describe` returns. Versions before 0.3 did not
        write the latter.
    """
    folder = trained.folder
    if (folder.parent.name, folder.name) != (checkpoint.FOLDER, str(trained.step)):
        return None
    evaluation = read_evaluation(folder.parent.parent / FOLDER / f"{trained.step}.json")
    if evaluation is None:
        return None
    # Versions before 0.3 replaced the run's own evaluation by that of any other data.
    aps = (checkpoint.NOT_MEASURED, evaluation.get("AP"))
    is_replaced = "dataset" not in evaluation and checkpoint.saved_ap(folder) not in aps
    return None if is_replaced else evaluation


def read_evaluation(file: pathlib.Path) -> dict[str, Any] | None:
    """Return the content of an evaluation's JSON, or None if it is missing or damaged.

    Args:
        file: The file. Numbers that JSON does not have, such as NaN, are read as None.
    """
    try:
        evaluation = json.loads(file.read_bytes(), parse_constant=lambda _: None)
    except (OSError, ValueError):
        return None
    return evaluation if isinstance(evaluation, dict) else None


def detections_file(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Return the file of all detections of an evaluation, in COCO's results format."""
    return folder / f"{step}_detections.json"


def stored_detections(
    folder: pathlib.Path, step: int, description: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """Return the detections of a finished evaluation of a checkpoint, or None if there is none.

    Args:
        folder: The folder of the evaluation, from `evaluation_folder`.
        step: The step of the checkpoint.
        description: The dataset and settings, from `describe`, that it must have.
    """
    evaluation = read_evaluation(folder / f"{step}.json") or {}
    file = detections_file(folder, step)
    if not (has_description(evaluation, description) and file.exists()):
        return None
    return json.loads(file.read_bytes())


def has_description(evaluation: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
    """Return whether an evaluation is that of this dataset, with these settings.

    Args:
        evaluation: The content of an evaluation's JSON.
        description: The dataset and settings, from `describe`.
    """
    return all(evaluation.get(name) == value for name, value in description.items())


def defined_aps(folder: pathlib.Path, description: Mapping[str, Any]) -> dict[int, float]:
    """Return AP by step of the evaluations in a folder, without those where it is undefined.

    Args:
        folder: The folder; it need not exist.
        description: The dataset and settings, from `describe`, that the evaluations must have.
    """
    files = [file for file in folder.glob("*.json") if file.stem.isdigit()]
    evaluations = {int(file.stem): read_evaluation(file) or {} for file in files}
    return {
        step: evaluation["AP"]
        for step, evaluation in evaluations.items()
        if has_description(evaluation, description) and evaluation.get("AP") is not None
    }


def write_detections(results: list[dict[str, Any]], step: int, folder: pathlib.Path) -> None:
    """Write the detections of an evaluation, before its AP is computed from them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(detections_file(folder, step), results)


def remove_evaluation(workdir: pathlib.Path, step: int) -> None:
    """Remove the run's own evaluation of a step, if there is one.

    Args:
        workdir: The working directory.
        step: A step of which another checkpoint is saved that is not evaluated. Otherwise the
            detections and the AP of the earlier one would be taken for those of the new one.
    """
    for ending in (".json", ".jpg", "_detections.json"):
        (workdir / FOLDER / f"{step}{ending}").unlink(missing_ok=True)


def interruption_file(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Return the file that marks a step of which an interrupted evaluation is still due."""
    return workdir / FOLDER / f"{step}_interrupted"


def has_work_left(workdir: pathlib.Path) -> bool:
    """Return whether evaluations of a run's checkpoints were interrupted or await their AP."""
    step = checkpoint.newest_step(workdir)
    return bool(steps_without_ap(workdir)) or interruption_file(workdir, step).exists()


def steps_without_ap(workdir: pathlib.Path) -> list[int]:
    """Return the steps with a checkpoint that awaits an AP, which a killed run did not compute.

    Their detections are in the folder of evaluations.
    """
    return [
        int(folder.name)
        for folder in checkpoint.step_folders(workdir / checkpoint.FOLDER)
        if not checkpoint.has_ap(folder)
        if detections_file(workdir / FOLDER, int(folder.name)).exists()
    ]
