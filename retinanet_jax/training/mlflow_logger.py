"""The logger of MLflow (https://mlflow.org)."""

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from retinanet_jax.config import flatten
from retinanet_jax.stored_config import plain

EXPERIMENT = "retinanet_jax"
MAX_PARAMS = 100  # that a request may have


class MlflowLogger:
    """A run of MLflow, at the server or the database that MLFLOW_TRACKING_URI names.

    MLFLOW_EXPERIMENT_NAME and MLFLOW_RUN_NAME hold, too.

    Args:
        config: The run's config. Its fields are the parameters of a new run; MLflow does not allow
            to change them when a run continues.
        workdir: The run's working directory.
        run_id: The id of the run to continue; None for a new one, named after `workdir`.

    Attributes:
        run_id: The run's id.
        address: The tracking URI and the run's id.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, run_id: str | None) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        if run_id is None:
            self.run_id = self._create(workdir.name)
            self._write_params(config)
        else:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
        self.address = f"{mlflow.get_tracking_uri()}, run {self.run_id}"

    def _create(self, name: str) -> str:
        """Create a run, and the experiment if there is none of its name, and return its id."""
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(title)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(title)
        )
        name = os.environ.get("MLFLOW_RUN_NAME", name)
        return self._client.create_run(experiment_id, run_name=name).info.run_id

    def _write_params(self, config: ConfigDict) -> None:
        fields = flatten(plain(config))
        params = [self._entities.Param(name, str(value)) for name, value in fields]
        for start in range(0, len(params), MAX_PARAMS):
            self._log(params=params[start : start + MAX_PARAMS])

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars after a step; "loss" is "loss/total" if there is "loss/box".

        MLflow's file store has a folder for the names before a slash.
        """
        now, metric = int(time.time() * 1000), self._entities.Metric
        groups = {name.partition("/")[0] for name in values if "/" in name}
        names = [f"{name}/total" if name in groups else name for name in values]
        rows = zip(names, values.values(), strict=True)
        self._log(metrics=[metric(name, value, now, step) for name, value in rows])

    def _log(self, **entities: Any) -> None:
        self._client.log_batch(self.run_id, **entities, synchronous=True)

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write an RGB image after a step."""
        self._client.log_image(self.run_id, image, key=name, step=step, synchronous=True)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text after a step, as an artifact."""
        self._client.log_text(self.run_id, text, f"{name}/{step}.txt")

    def close(self, *, failed: bool) -> None:
        """End the run; one that resumes continues it."""
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
