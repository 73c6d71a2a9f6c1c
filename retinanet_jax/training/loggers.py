"""Loggers: where a run writes its metrics, next to metrics.jsonl.

TensorBoard's files are always written, and config.loggers names services that get the same. What
happens at a service never ends or slows a run: a thread writes to it, and the first error is a
warning. A run that resumes from a checkpoint continues the run of the service, of which the id and
the latest steps are in WORKDIR/SERVICE_run.json, so that each step is there once.
"""

import collections
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from retinanet_jax.config import choose
from retinanet_jax.training.mlflow_logger import MlflowLogger
from retinanet_jax.training.wandb_logger import WandbLogger
from retinanet_jax.utils.files import write_json
from retinanet_jax.utils.packages import import_optional
from retinanet_jax.utils.progress import shorten
from retinanet_jax.utils.threads import DaemonThreads

MAX_PENDING = 1000  # writes that wait for a service
CLOSE_SECONDS = 30.0  # how long the end of a run waits for a service
MAX_CAUSE = 200  # characters of an error's text in a message


class Logger(Protocol):
    """Writes what a run logs."""

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars after a step."""

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write an RGB image after a step."""

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text of several lines, such as a table, after a step."""

    def close(self, *, failed: bool) -> None:
        """End the log. An error has ended the run if `failed`."""


class Service(Logger, Protocol):
    """A logger of a service, in which a run has an id and an address."""

    run_id: str
    address: str


SERVICES: dict[str, Callable[[ConfigDict, pathlib.Path, str | None], Service]] = {
    "mlflow": MlflowLogger,
    "wandb": WandbLogger,
}
RECORDS = {name: f"{name}_run.json" for name in SERVICES}
ADVICE = {
    "mlflow": "set MLFLOW_TRACKING_URI to a server, or `pip install mlflow` for a local database",
    "wandb": "run `wandb login`, set WANDB_MODE=offline, or upgrade wandb",
}


def check_loggers(names: Sequence[str]) -> None:
    """Check that the loggers of a config are known and installed.

    Args:
        names: config.loggers.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        choose("loggers", name, SERVICES)
        import_optional(name, f"config.loggers={name}", f"retinanet-jax[{name}]", "leave it out")


def open_loggers(
    config: ConfigDict, workdir: pathlib.Path, folder: pathlib.Path, start_step: int
) -> list[Logger]:
    """Start or continue the run at each service of config.loggers.

    Args:
        config: The run's config.
        workdir: The run's working directory, after which the service's run is named.
        folder: The local folder with the records of the services.
        start_step: Number of steps that were done before. With 0 a new run starts.

    Raises:
        ValueError: If a new run cannot be started. One that cannot be continued is a warning.
    """
    loggers = []
    for name in dict.fromkeys(config.loggers):
        record = Record(folder / RECORDS[name], continues=start_step > 0)
        try:
            service = SERVICES[name](config, workdir, record.run_id)
        except Exception as error:
            if record.run_id is None:
                raise ValueError(
                    f"config.loggers has {name}, which cannot start ({cause(error)}); "
                    f"{ADVICE[name]}, or leave it out."
                ) from None
            print(f"warning: {name} cannot continue its run ({cause(error)})", flush=True)
            continue
        record.begin(service.run_id)
        print(f"logging to {name}: {service.address}", flush=True)
        loggers.append(BackgroundLogger(name, service, record))
    return loggers


def cause(error: BaseException) -> str:
    """Return the type and the text of an error in one line of bounded length."""
    return shorten(f"{type(error).__name__}: {error}", MAX_CAUSE)


class Record:
    """The file that has the id of a service's run, and the latest step of what was written to it.

    Args:
        file: The file; it need not exist.
        continues: Whether to continue the run that is recorded, if one is.

    Attributes:
        run_id: The id of the run that is continued; None if it is a new one.

    Raises:
        ValueError: If the file is damaged.
    """

    def __init__(self, file: pathlib.Path, *, continues: bool) -> None:
        self._file = file
        self.run_id: str | None = None
        self._steps: dict[str, int] = {}
        if continues and file.exists():
            try:
                stored = json.loads(file.read_bytes())
                self.run_id, self._steps = str(stored["run_id"]), dict(stored["steps"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{file} is damaged; remove it to log to a new run.") from None

    def begin(self, run_id: str) -> None:
        """Record the id of the run."""
        self.run_id = run_id
        self._write()

    def has(self, name: str, step: int) -> bool:
        """Return whether `name` was written for this step, or for a later one."""
        return step <= self._steps.get(name, -1)

    def add(self, name: str, step: int) -> None:
        """Record that `name` was written for a step."""
        self._steps[name] = step
        self._write()

    def _write(self) -> None:
        write_json(self._file, {"run_id": self.run_id, "steps": self._steps})


class BackgroundLogger:
    """Passes what a run logs to a service in a thread, each step once.

    Args:
        name: The service's name in warnings.
        service: The service.
        record: What was written before this start of the run.
    """

    def __init__(self, name: str, service: Service, record: Record) -> None:
        self._name, self._service, self._record = name, service, record
        self._thread = DaemonThreads(1)
        self._pending: collections.deque[futures.Future[None]] = collections.deque()
        self._has_warned = False

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars after a step, known in the record by the name of the first."""
        for first in list(values)[:1]:
            self._submit(first, step, self._service.write_scalars, step, values)

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write an RGB image after a step."""
        self._submit(f"image {name}", step, self._service.write_image, step, name, image)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text after a step."""
        self._submit(f"text {name}", step, self._service.write_text, step, name, text)

    def close(self, *, failed: bool) -> None:
        """Wait a while for the service, and end its run."""
        closing = self._thread.submit(functools.partial(self._service.close, failed=failed))
        if futures.wait([closing], CLOSE_SECONDS).not_done:
            self._warn(f"not all was written within {CLOSE_SECONDS:.0f} seconds")
        elif error := closing.exception():
            self._warn(cause(error))
        self._thread.close()

    def _submit(self, name: str, step: int, write: Callable[..., None], *arguments: Any) -> None:
        """Let the thread write, unless too much is waiting for it."""
        while self._pending and self._pending[0].done():
            self._pending.popleft()
        if len(self._pending) >= MAX_PENDING:
            self._warn("it does not answer")
            return
        self._pending.append(self._thread.submit(self._write, name, step, write, *arguments))

    def _write(self, name: str, step: int, write: Callable[..., None], *arguments: Any) -> None:
        """Write, in the thread, what was not written before the run resumed."""
        if self._record.has(name, step):
            return
        try:
            write(*arguments)
            self._record.add(name, step)
        except Exception as error:
            self._warn(cause(error))

    def _warn(self, problem: str) -> None:
        """Print the first problem."""
        if not self._has_warned:
            self._has_warned = True
            print(
                f"warning: {self._name} lacks some of this run ({problem}), which continues; "
                "metrics.jsonl and TensorBoard have all of it",
                flush=True,
            )
