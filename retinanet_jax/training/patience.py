"""Early stopping: a run ends when AP has not become better in `config.patience` evaluations."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from retinanet_jax.checkpoint import newest_step
from retinanet_jax.checkpoint.reading import step_of_first_host
from retinanet_jax.data.sources.base import Source
from retinanet_jax.evaluation import records
from retinanet_jax.utils.progress import format_count


def step_not_exceeded(aps: Mapping[int, float], patience: int) -> int | None:
    """Return the first step of the highest AP, if `patience` later ones are not higher, or None.

    Args:
        aps: AP by step.
        patience: A number of evaluations, at least 1.
    """
    best = max(sorted(aps), key=lambda step: aps[step], default=None)
    return best if best is not None and sum(step > best for step in aps) >= patience else None


def last_better_step(
    config: ConfigDict, workdir: pathlib.Path, description: Mapping[str, Any], step: int
) -> int | None:
    """Return the step that a run ends because of after a step, or None if it does not end.

    It depends only on the files of the run's evaluations, which a run that was killed and resumed
    writes again with the same content.

    Args:
        config: The run's config; its `patience` is not 0.
        workdir: The run's working directory.
        description: Dataset and settings of the evaluations that are compared, from
            `records.describe`.
        step: Number of steps done.
    """
    aps = records.defined_aps(workdir / records.FOLDER, description)
    return step_not_exceeded({k: ap for k, ap in aps.items() if k <= step}, config.patience)


def check_patience_left(config: ConfigDict, workdir: pathlib.Path, eval_data: Source) -> None:
    """Raise ValueError if a run has ended early and is started again; all hosts must call this.

    Args:
        config: The run's config.
        workdir: The run's working directory.
        eval_data: The evaluation data.
    """
    step = newest_step(workdir)
    if not (config.patience and step):
        return
    best = step_of_first_host(
        lambda: last_better_step(config, workdir, records.describe(config, eval_data), step)
    )
    if best is not None:
        evaluations = format_count(config.patience, "evaluation")
        raise ValueError(
            f"already done; {workdir} has {evaluations} without a better AP than "
            f"that of step {best}, and config.patience={config.patience}. Give a larger "
            "--config.patience (0: never) to train on, --mode=evaluate to evaluate, or another "
            "--workdir."
        )
