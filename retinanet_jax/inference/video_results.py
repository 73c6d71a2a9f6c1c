"""The detections of videos in files that are written frame by frame, so that memory is constant."""

import contextlib
import csv
from collections.abc import Iterator
from typing import IO

import numpy as np

from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference import predictions
from retinanet_jax.inference.predictions import RESULTS, TABLE
from retinanet_jax.inference.video import Frame, Video
from retinanet_jax.utils.files import to_json
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.progress import format_count

# The columns of the table; "frame" is the number of the frame, from 0, and "seconds" its time.
COLUMNS = ("file_name", "frame", "seconds", *predictions.COLUMNS[1:])


class VideoResults:
    """Writes detections.json, in COCO's results format, and the table of the detections of videos.

    Attributes:
        num_frames: The number of frames; the image id of each frame is its number from 1.
        num_detections: The number of their detections.
        num_confident: How many of them are drawn.
        last_frame: The number of the latest frame in its video, from 0; at first -1.
        draw_threshold: The lowest score of a detection that is drawn; None if nothing is drawn.

    Args:
        json_file: An open file for COCO's results format.
        csv_file: An open file for the table; None to write none.
        draw_threshold: The attribute.
    """

    def __init__(
        self, json_file: IO[str], csv_file: IO[str] | None, draw_threshold: float | None
    ) -> None:
        self.num_frames = self.num_detections = self.num_confident = 0
        self.draw_threshold, self.last_frame = draw_threshold, -1
        self._json, self._table = json_file, csv.writer(csv_file) if csv_file else None
        self._json.write("[")
        if self._table:
            self._table.writerow(COLUMNS)

    def add(self, video: Video, frame: Frame, detections: Detections) -> None:
        """Write the detections of the next frame.

        Args:
            video: The video.
            frame: The frame.
            detections: Its detections.
        """
        self.num_frames += 1
        self.last_frame = frame.index
        of_frame = {"file_name": video.name, "frame": frame.index, "seconds": frame.seconds}
        for entry in detections.to_coco(self.num_frames):
            self._json.write(", " * bool(self.num_detections) + to_json({**entry, **of_frame}))
            self.num_detections += 1
        if self._table:
            columns = tuple(of_frame.values())
            rows = ((*columns, d.class_name, d.category_id, d.score, *d.box) for d in detections)
            self._table.writerows(rows)
        if self.draw_threshold is not None:
            self.num_confident += int(np.sum(detections.scores >= self.draw_threshold))

    def end(self) -> None:
        """Write the end of detections.json."""
        self._json.write("]")

    def summary(self) -> str:
        """Return a text with the numbers of frames and detections, and how many are drawn."""
        frames = format_count(self.num_frames, "frame")
        counts = f"{format_count(self.num_detections, 'detection')} in {frames}"
        if self.draw_threshold is None:
            return counts
        threshold = f"{self.draw_threshold:g}"
        return f"{counts} ({self.num_confident} with a score of {threshold} or more are drawn)"


@contextlib.contextmanager
def open_results(
    folder: OutputFolder, draw_threshold: float | None, table: bool
) -> Iterator[VideoResults]:
    """Yield what writes the detections; its files get their names at the end of a `with` statement.

    Args:
        folder: The folder to write to.
        draw_threshold: As in `VideoResults`.
        table: Whether to write detections.csv as well.

    Raises:
        OSError: If a file cannot be written.
    """
    with contextlib.ExitStack() as stack:

        def open_draft(name: str) -> IO[str]:
            path = stack.enter_context(folder.draft(name))
            # File names need not be valid UTF-8; they are written as the file system stores them.
            file = path.open("x", encoding="utf-8", errors="surrogateescape", newline="")
            return stack.enter_context(file)

        json_file = open_draft(RESULTS)
        results = VideoResults(json_file, open_draft(TABLE) if table else None, draw_threshold)
        yield results
        results.end()
