"""The command `retinanet-jax analyze`: what a detector gets wrong on a dataset, and what to try."""

import pathlib
import shlex
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from retinanet_jax import checkpoint
from retinanet_jax.analysis import report
from retinanet_jax.analysis.evaluated import Evaluated, evaluate_detections
from retinanet_jax.analysis.focal_loss_curves import focal_loss_curves
from retinanet_jax.analysis.text import summarize
from retinanet_jax.analysis.thresholds import find_thresholds, thresholds_to_store
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.cli.common import Command, define_config, define_data, output_path
from retinanet_jax.cli.evaluate import config_of_detections, define_detections
from retinanet_jax.cli.evaluation_config import evaluation_config
from retinanet_jax.cli.train import train_or_evaluate
from retinanet_jax.compilation import use_run_cache
from retinanet_jax.config import CONFIGS
from retinanet_jax.data.sources.base import Source
from retinanet_jax.evaluation import records
from retinanet_jax.evaluation.evaluator import open_checkpoint_and_data
from retinanet_jax.evaluation.results_file import describe_results, open_annotations, read_results
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.paths import is_remote, to_path
from retinanet_jax.utils.run_lock import RunLock

FOLDER = "analysis"  # in a working directory


class Detected(NamedTuple):
    """The detections of a dataset, and where they are from.

    Attributes:
        source: The dataset.
        results: The detections in COCO's results format; None if they are not computed yet.
        origin: Where the detections are from, except for the command.
        config: The detector's config; None if it is not known.
        trained: The checkpoint; None if it is not known.
    """

    source: Source
    results: list[dict[str, Any]] | None
    origin: report.Origin
    config: ConfigDict | None = None
    trained: Checkpoint | None = None


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `analyze`."""
    flags.DEFINE_string(
        "workdir",
        None,
        "The working directory of a run. If its best checkpoint is not evaluated with these "
        "settings yet, that is done first.",
        flag_values=values,
    )
    define_detections(values)
    define_data(values)
    flags.DEFINE_string(
        "compare",
        None,
        "Another working directory, or a file of detections of the same dataset, with which AP is "
        "compared.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        None,
        "The folder that index.html and analysis.json are written to. Of the files in it, only "
        "those of earlier analyses are replaced. The default is WORKDIR/analysis/STEP, and for "
        "other data or settings than the run's a folder in WORKDIR/analysis.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "store_thresholds",
        False,
        "Store the score threshold of the highest F1 of each category in the checkpoint, for "
        "predict and export. The default is to leave the checkpoint unchanged.",
        flag_values=values,
    )
    define_config(
        values,
        argv,
        str(CONFIGS / "finetune.py"),
        "A config, FILE or FILE:ARGUMENT, instead of the checkpoint's own. --config.FIELD=VALUE "
        "overrides a field.",
    )


def run(values: Any, _: list[str]) -> int:
    """Write the analysis, and print its summary."""
    check_flags(values)
    detected = open_run(values, to_path(values.workdir)) if values.workdir else open_file(values)
    folder = OutputFolder(output_folder(values, detected))
    report.prepare(folder)
    other = open_other(values, detected) if values.compare else None
    evaluated = compare_with_objects(values.workdir, detected)
    analysis = report.analyze(
        evaluated,
        detected.origin._replace(command=command_line(values)),
        other=other and (values.compare, compare_with_objects(values.compare, other)),
        focal_loss=focal_loss(values.workdir, detected),
    )
    report.write(analysis, folder)
    print(summarize(analysis))
    if values.store_thresholds:
        # A run that is training here may be writing the same digests.
        with RunLock(to_path(values.workdir)):
            store_thresholds(detected, evaluated)
    print(f"written to {folder.path / report.PAGE}", flush=True)
    return 0


def check_flags(values: Any) -> None:
    """Raise ValueError if the flags name no detections, or two, or no folder to write to."""
    if bool(values.workdir) == bool(values.detections):
        raise ValueError(
            "give --workdir=DIR of a run, or --detections=FILE --data=FOLDER_OR_FILE --output=DIR; "
            "--help explains them."
        )
    if values.detections and values.store_thresholds:
        raise ValueError("--store_thresholds requires the checkpoint of a --workdir; leave it out.")
    if not values.output and (values.detections or is_remote(values.workdir)):
        raise ValueError("no --output: give a folder on a local disk for the page.")


def open_run(values: Any, workdir: pathlib.Path) -> Detected:
    """Return the dataset of a run's best checkpoint, and its detections if it is evaluated."""
    trained, config, source = open_checkpoint_and_data(evaluation_config(values, workdir), workdir)
    description = records.describe(config, source)
    folder = records.evaluation_folder(workdir, trained, config, description)
    results = records.stored_detections(folder, trained.step, description)
    file = records.detections_file(folder, trained.step)
    origin = report.Origin(
        **description, checkpoint=str(trained.folder), step=trained.step, detections=str(file)
    )
    return Detected(source, results, origin, config, trained)


def open_file(values: Any) -> Detected:
    """Return the dataset and the detections of a file."""
    path, config = to_path(values.detections), config_of_detections(values)
    source = open_annotations(config, to_path("."))
    origin = report.Origin(records.describe_dataset(source), detections=str(path))
    return Detected(source, read_results(path, source), origin)


def open_other(values: Any, detected: Detected) -> Detected:
    """Return the dataset and the detections of --compare.

    Raises:
        ValueError: If the dataset is another one.
    """
    path = to_path(values.compare)
    if path.is_file():
        results = read_results(path, detected.source)
        origin = report.Origin(detected.origin.dataset, detections=str(path))
        return detected._replace(results=results, origin=origin, config=None)
    other = open_run(values, path)
    first, second = (d.origin.dataset for d in (detected, other))
    if first["sha256"] != second["sha256"]:
        raise ValueError(
            f"--compare={values.compare} is of {second['name']} ({second['num_images']} images), "
            f"and not of {first['name']} ({first['num_images']} images); give "
            "--data=FOLDER_OR_FILE to evaluate both on the same dataset."
        )
    return other


def compare_with_objects(workdir: str, detected: Detected) -> Evaluated:
    """Return the detections, which may have to be computed first, compared with the objects.

    Args:
        workdir: The working directory, if the detections are those of a checkpoint.
        detected: The dataset and its detections.
    """
    source, results, origin, config, trained = detected
    if results is None:
        assert config is not None
        assert trained is not None
        print(f"{trained.folder} is not evaluated yet on {source.name} with these settings")
        train_or_evaluate(config, workdir, "evaluate")
        folder = pathlib.Path(str(origin.detections)).parent
        description = {"dataset": origin.dataset, "settings": origin.settings}
        results = records.stored_detections(folder, trained.step, description) or []
    print(f"{origin.detections}: {describe_results(results, source)}", flush=True)
    return evaluate_detections(source, results, config)


def focal_loss(workdir: str, detected: Detected) -> dict[str, Any] | None:
    """Return the focal loss of the anchors of a few images; None if there is no checkpoint."""
    if detected.trained is None or detected.config is None:
        return None
    use_run_cache(to_path(workdir))
    return focal_loss_curves(detected.trained.variables, detected.config, detected.source)


def output_folder(values: Any, detected: Detected) -> pathlib.Path:
    """Return the folder for the analysis, which is like that of the evaluation by default."""
    if values.output:
        return output_path(values.output)
    workdir, evaluation = to_path(values.workdir), pathlib.Path(str(detected.origin.detections))
    within = evaluation.parent.relative_to(workdir / records.FOLDER)
    return workdir / FOLDER / within / str(detected.origin.step)


def store_thresholds(detected: Detected, evaluated: Evaluated) -> None:
    """Store the score thresholds of the highest F1 in the checkpoint, and print them."""
    assert detected.trained is not None  # `check_flags` requires a workdir
    thresholds = thresholds_to_store(find_thresholds(evaluated), evaluated.source.categories)
    checkpoint.store_thresholds(detected.trained.folder, thresholds)
    print(
        f"stored in {detected.trained.folder}: the score thresholds of "
        f"{len(thresholds.categories)} categories, and {thresholds.overall:.3f} for all others"
    )


def command_line(values: flags.FlagValues) -> str:
    """Return the command, with the flags that were given."""
    given = [values[name].serialize() for name in values if values[name].present]
    return shlex.join(["retinanet-jax", "analyze", *given])


COMMAND = Command(
    usage=(
        "retinanet-jax analyze --workdir=DIR [--data=FOLDER_OR_FILE] [--compare=DIR_OR_FILE] "
        "[--output=DIR] [--store_thresholds]\n"
        "       retinanet-jax analyze --detections=FILE --data=FOLDER_OR_FILE --output=DIR"
    ),
    description=(
        "Reports what a detector gets wrong on a dataset, and what to try: errors by type, "
        "categories, thresholds, missed objects, suspicious labels and the worst images. Writes "
        "index.html, a page without references to other files, and analysis.json."
    ),
    define_flags=define_flags,
    run=run,
    memory_flag="--config.data.eval_batch_size",
)
