"""Print how the configs of two runs differ, and by how much the second run is better.

Run: python scripts/compare_runs.py runs/a runs/b

Of each run the checkpoint with the highest AP counts, by the detections that its evaluation has
written. Both must have been evaluated on the same dataset. The intervals are those of the same
samples of its images for both runs (retinanet_jax/analysis/intervals.py): they contain what is due
to the choice of the images, and not what another seed of the training would change.
"""

import argparse
import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from retinanet_jax import checkpoint
from retinanet_jax.analysis.evaluated import Evaluated, evaluate_detections, twelve_metrics
from retinanet_jax.analysis.intervals import CONFIDENCE, METRICS, compare_detectors
from retinanet_jax.analysis.text import format_difference
from retinanet_jax.evaluation import records
from retinanet_jax.evaluation.evaluator import open_checkpoint_and_data
from retinanet_jax.stored_config import differences


class Run(NamedTuple):
    """A run's best checkpoint, and its detections compared with the objects."""

    name: str
    config: ConfigDict
    step: int
    evaluated: Evaluated


def open_run(workdir: pathlib.Path) -> Run:
    """Return the best checkpoint of a run and the detections of its evaluation.

    Raises:
        FileNotFoundError: If there is no checkpoint, or the dataset is missing.
        ValueError: If the checkpoint is not evaluated.
    """
    trained, config, source = open_checkpoint_and_data(checkpoint.best_config(workdir), workdir)
    description = records.describe(config, source)
    folder = records.evaluation_folder(workdir, trained, config, description)
    results = records.stored_detections(folder, trained.step, description)
    if results is None:
        raise ValueError(
            f"{trained.folder} is not evaluated; run `retinanet-jax evaluate --workdir={workdir}`."
        )
    evaluated = evaluate_detections(source, results, config)
    return Run(str(workdir), trained.config, trained.step, evaluated)


def compare(first: Run, second: Run) -> str:
    """Return tables of the fields that differ and of the results.

    Raises:
        ValueError: If the runs were evaluated on different datasets.
    """
    compared = compare_detectors(second.evaluated, first.evaluated, first.name)["metrics"]
    fields = [[name, str(a), str(b)] for name, a, b in differences(first.config, second.config)]
    results = [
        [name, f"{a:.3f}", f"{b:.3f}", format_difference(compared[name])]
        for name, a, b in zip(METRICS, metrics(first), metrics(second), strict=True)
    ]
    steps = [f"{run.step} of {run.config.total_steps}" for run in (first, second)]
    names = [first.name, second.name]
    return "\n\n".join(
        (
            table(["config", *names], fields) if fields else "The configs are equal.",
            table(
                ["result", *names, f"difference ({CONFIDENCE:.0%} interval)"],
                [["step", *steps, ""], *results],
            ),
        )
    )


def metrics(run: Run) -> list[float]:
    """Return METRICS of a run; NaN where they are undefined."""
    values = twelve_metrics(run.evaluated)
    return [float("nan") if (value := values[name]) is None else value for name in METRICS]


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Compare the runs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=pathlib.Path, help="The working directory of a run.")
    parser.add_argument("second", type=pathlib.Path, help="That of the run it is compared with.")
    options = parser.parse_args()
    try:
        print(compare(open_run(options.first), open_run(options.second)))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
