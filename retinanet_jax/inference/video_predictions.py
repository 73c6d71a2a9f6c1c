"""Detection in videos; the detections are written as JSON, as CSV and as annotated videos.

Reading, the network, drawing and encoding work at the same time on different frames, of which a
bounded number is in memory. So a stream may be endless.
"""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.detecting import ImageDetector
from retinanet_jax.inference.drawings import drawing_names
from retinanet_jax.inference.predictions import RESULTS, TABLE
from retinanet_jax.inference.video import Frame, Video, VideoFacts, read_frames
from retinanet_jax.inference.video_results import VideoResults, open_results
from retinanet_jax.inference.video_writing import VideoWriter
from retinanet_jax.stopping import Interrupted, Stopped, Stopping
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.progress import CLOCK, MIN_MEASURED, format_count, make_progress
from retinanet_jax.utils.threads import in_background, map_ahead, newest

NUM_DRAWING = 2  # threads that draw, and frames that drawing and encoding are each behind
NUM_WAITING = 8  # the newest frames of a camera or a stream that wait for the network

Detected = tuple[Detections | ValueError, Frame]  # a frame with its detections, or with its error


class VideoOptions(NamedTuple):
    """How `predict_videos` processes each video.

    Attributes:
        batch_size: The number of frames that the network processes at once.
        every: Only every n-th frame is processed, from the first one.
        draw_threshold: The lowest score of a detection that is drawn; None for no annotated video.
        table: Whether to write detections.csv as well.
    """

    batch_size: int = 1
    every: int = 1
    draw_threshold: float | None = 0.5
    table: bool = False


def predict_videos(
    detector: ImageDetector,
    videos: Mapping[Video, VideoFacts],
    output: pathlib.Path,
    options: VideoOptions,
) -> list[str]:
    """Detect the objects in the frames of videos, and write detections.json and annotated videos.

    detections.json is in COCO's results format, in which each frame is an image with an id from 1.
    Each detection also has the file_name of its video, the number of its frame and the seconds from
    the first frame. Only files of earlier runs are replaced. After a signal, the files contain all
    frames that are finished by then.

    Args:
        detector: The detector.
        videos: The videos, from `find_videos`, with their `video_facts`; one after the other.
        output: The folder, which is created if it does not exist.
        options: How each video is processed.

    Returns:
        An error message for each video that could not be used, or not to its end.

    Raises:
        Interrupted: After a signal, when all files are written.
        OSError: If a file cannot be written, for example because the folder contains a file of the
            same name that no run wrote.
    """
    folder = OutputFolder(output)
    folder.prepare(RESULTS, *[TABLE] * options.table)
    names = drawing_names([video.path for video in videos], folder, suffix=".mp4")
    errors: list[str] = []
    with (
        Stopping(unit="frame") as stopping,
        open_results(folder, options.draw_threshold, options.table) as results,
    ):
        stopping.begin(lambda: (results.num_frames, 0))
        for (video, facts), name in zip(videos.items(), names, strict=True):
            if stopping.is_asked:
                break
            start, num_before = CLOCK.now(), results.num_frames
            frames = _read_ahead(video, options, stopping.check, errors)
            detected = detect_frames(detector, frames, options.batch_size)
            with contextlib.ExitStack() as stack:
                writer = None
                if options.draw_threshold is not None:
                    path = stack.enter_context(folder.draft(name))
                    writer = VideoWriter(path, facts.rate / options.every, facts.time_base)
                    stack.enter_context(writer)
                written = write_frames(detected, video, results, writer)
                stack.enter_context(contextlib.suppress(Stopped))
                stack.enter_context(contextlib.closing(written))
                for outcome, frame in _with_progress(written, video, facts, options):
                    stopping.check()
                    if isinstance(outcome, ValueError):
                        errors.append(f"{video.name}: frame {frame.index}: {outcome}")
                        break  # the next frames have the same size
            count, seconds = results.num_frames - num_before, CLOCK.now() - start
            num_dropped = results.last_frame // options.every + 1 - count if video.is_live else 0
            print(_summary(video, count, seconds, num_dropped), flush=True)
    print(f"{results.summary()}: {folder.path / RESULTS}")
    if stopping.signal:
        raise Interrupted(stopping.signal)
    return errors


def detect_frames(
    detector: ImageDetector, frames: Generator[Frame, None, None], batch_size: int = 1
) -> Generator[Detected, None, None]:
    """Yield the detections of each frame, or its error, with the frame.

    Args:
        detector: The detector.
        frames: The frames, which are closed at the end.
        batch_size: The number of frames that the network processes at once.
    """
    ahead, behind = itertools.tee(frames)
    with contextlib.closing(frames):
        images = (frame.image for frame in ahead)
        yield from zip(detector.batch_with_errors(images, batch_size), behind)  # noqa: B905


def write_frames(
    detected: Iterable[Detected], video: Video, results: VideoResults, writer: VideoWriter | None
) -> Generator[Detected, None, None]:
    """Yield what is given, when threads have drawn and written it.

    Args:
        detected: The frames of a video with their detections.
        video: The video.
        results: What writes the detections.
        writer: What writes the annotated video; None for no such video.
    """

    def draw(pair: Detected) -> tuple[Detected, np.ndarray | None]:
        detections, threshold = pair[0], results.draw_threshold
        if threshold is None or isinstance(detections, ValueError):
            return pair, None
        return pair, np.asarray(detections.draw(threshold))

    def write(annotated: tuple[Detected, np.ndarray | None]) -> Detected:
        (detections, frame), image = annotated
        if not isinstance(detections, ValueError):
            results.add(video, frame, detections)
        if writer is not None and image is not None:
            writer.write(image, frame.seconds)
        return detections, frame

    annotated = map_ahead(draw, detected, num_ahead=NUM_DRAWING, num_threads=NUM_DRAWING)
    return map_ahead(write, annotated, num_ahead=NUM_DRAWING, num_threads=1)  # in their order


def _read_ahead(
    video: Video, options: VideoOptions, check: Callable[[], None], errors: list[str]
) -> Generator[Frame, None, None]:
    """Yield the frames of a video, read by a thread; an error ends them and is added to `errors`.

    The wait for a frame ends where `check` raises.
    """

    def read() -> Generator[Frame, None, None]:
        try:
            yield from read_frames(video, options.every)
        except ValueError as error:
            errors.append(str(error))

    if video.is_live:
        return newest(read(), max(NUM_WAITING, options.batch_size), check)
    return in_background(read(), check)


def _with_progress(
    written: Iterable[Detected], video: Video, facts: VideoFacts, options: VideoOptions
) -> Iterator[Detected]:
    """Yield what is given, and print the progress of whole batches."""
    total = facts.num_frames and -(-facts.num_frames // options.every)
    print_progress = make_progress(f"predicting {video.name}", total, "frames")
    for count, pair in enumerate(written, 1):
        if count % options.batch_size == 0 or count == total:
            print_progress(count)
        yield pair


def _summary(video: Video, count: int, seconds: float, num_dropped: int) -> str:
    """Return a line about a video that was processed in some seconds."""
    parts = [f"{video.name}: {format_count(count, 'frame')}"]
    if seconds >= MIN_MEASURED:
        parts.append(f"{count / seconds:.1f} frames/s")
    if num_dropped:
        parts.append(f"{format_count(num_dropped, 'frame')} dropped, which came too fast")
    return ", ".join(parts)
