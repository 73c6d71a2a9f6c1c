"""The TensorBoard file of a run, which a killed run leaves complete up to its latest line."""

import pathlib
import textwrap
import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter

# Protocol buffers make these classes when they are imported, where no type checker finds them.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from retinanet_jax.utils.files import errors_name


class TensorBoard:
    """Writes a file of TensorBoard, each call at once.

    tensorboardX's own SummaryWriter passes events through two threads, and a killed run loses those
    of the last minutes.

    Args:
        folder: The folder, which is created.
        start_step: Number of steps that were done before. TensorBoard ignores what earlier files in
            the folder have about later steps.
    """

    def __init__(self, folder: pathlib.Path, start_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._file = folder, EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=start_step + 1, session_log=start))

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars after a step."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Write an RGB image after a step."""
        self._write(Event(step=step, summary=summary.image(name, image, dataformats="HWC")))

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text after a step; TensorBoard, which renders Markdown, shows it as it is."""
        block = textwrap.indent(text, "    ")
        self._write(Event(step=step, summary=summary.text(name, block)))

    def close(self, *, failed: bool) -> None:
        """Close the file, which has no field for whether the run `failed`."""
        with errors_name(self._folder):
            self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with errors_name(self._folder):
            self._file.write_event(event)
            self._file.flush()
