"""The logger of Weights & Biases (https://docs.wandb.ai)."""

import html
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from retinanet_jax.stored_config import plain
from retinanet_jax.utils.paths import is_remote

PROJECT = "retinanet_jax"
FINISH_SECONDS = 20.0  # for the upload at the end; `wandb sync` uploads what is left
FLUSH_SECONDS = 1.0  # what a killed run loses at most of wandb's own file


class WandbLogger:
    """A run of Weights & Biases.

    Its environment variables hold, such as WANDB_MODE=offline, WANDB_PROJECT and WANDB_NAME. The
    steps are those of the metric "step": the service's own steps cannot go back, but the AP of a
    step is known when later ones have been logged.

    Args:
        config: The run's config, which is stored with the run.
        workdir: The run's working directory, for wandb's own files if it is local.
        run_id: The id of the run to continue; None for a new one, named after `workdir`.

    Attributes:
        run_id: The run's id.
        address: Its URL or, offline, its folder.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, run_id: str | None) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            resume="allow",
            # A name that was changed at the service stays.
            name=None if run_id else os.environ.get("WANDB_NAME", workdir.name),
            dir=None if is_remote(workdir) else str(workdir),
            config=plain(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                finish_timeout=FINISH_SECONDS,
                x_transaction_log_flush_interval=FLUSH_SECONDS,
            ),
        )
        self._run.define_metric("*", step_metric="step")
        self.run_id = self._run.id
        self.address = self._run.settings.sync_dir if self._run.offline else str(self._run.url)

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars after a step."""
        self._run.log({"step": step, **values})

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write an RGB image after a step."""
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text after a step."""
        page = f"<pre>{html.escape(text)}</pre>"
        self._run.log({"step": step, name: self._wandb.Html(page, inject=False)})

    def close(self, *, failed: bool) -> None:
        """End the run; one that resumes continues it."""
        self._run.finish(exit_code=int(failed))
