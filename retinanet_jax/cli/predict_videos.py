"""The flags of `predict` about videos, cameras and streams, and which arguments name them."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from retinanet_jax.inference.detecting import ImageDetector
from retinanet_jax.inference.network_inputs import check_images
from retinanet_jax.inference.video import (
    Video,
    VideoFacts,
    camera,
    find_videos,
    is_video,
    video_facts,
)
from retinanet_jax.inference.video_predictions import VideoOptions, predict_videos
from retinanet_jax.utils.progress import one_line


def define_video_flags(values: flags.FlagValues) -> None:
    """Define the flags of `predict` about videos.

    Args:
        values: The flags of the command.
    """
    flags.DEFINE_string(
        "camera",
        None,
        "Detect in the images of a camera until Ctrl-C ends the command: the number of a camera of "
        "this computer, such as 0, or the URL of its stream. The default is no camera.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "every",
        1,
        "Detect only in every n-th frame of a video, from the first one. The default is 1, all "
        "frames.",
        flag_values=values,
    )


def find_video_inputs(values: Any, arguments: Sequence[str]) -> dict[Video, VideoFacts]:
    """Return the videos that a command line names; none if it names images.

    Args:
        values: The values of the flags.
        arguments: The positional arguments.

    Raises:
        ValueError: If it names both, a flag has no effect, or a video cannot be opened.
        OSError: If there is no such video.
    """
    named = list(filter(is_video, arguments))
    others = [*([f"--data={values.data}"] if values.data else []), *arguments]
    if values.camera and others:
        raise ValueError(f"--camera={values.camera} and {others[0]} are two inputs; give one.")
    if named and len(named) < len(arguments):
        image = next(argument for argument in arguments if argument not in named)
        raise ValueError(
            f"{named[0]} is a video and {image} is not; give videos and images in two commands."
        )
    if not (named or values.camera):
        if values.every != 1:
            raise ValueError(f"--every={values.every} has no effect without a video.")
        return {}
    if values.every < 1:
        raise ValueError(f"--every={values.every} must be at least 1; try 1.")
    check_images((), values.batch_size)
    for name in ("format", "save_crops"):
        if values[name].value:
            raise ValueError(
                f"--{name} is for images only; detections.json and --csv contain each frame."
            )
    videos = [camera(values.camera)] if values.camera else find_videos(named)
    live = [video.name for video in videos if video.is_live]
    if live and len(videos) > 1:
        raise ValueError(f"{live[0]} has no end; give it in a command of its own.")
    return {video: video_facts(video) for video in videos}


def run_videos(
    detector: ImageDetector, videos: dict[Video, VideoFacts], output: pathlib.Path, values: Any
) -> int:
    """Detect objects in videos; return 1 if one could not be read to its end.

    Args:
        detector: The detector.
        videos: The videos, from `find_video_inputs`.
        output: The folder to write to.
        values: The values of the flags.

    Raises:
        OSError: As in `predict_videos`.
    """
    threshold = values.draw_threshold if values.draw else None
    options = VideoOptions(values.batch_size, values.every, threshold, values.csv)
    if options.draw_threshold is not None:
        for video, facts in videos.items():
            if facts.has_audio:
                print(f"{video.name}: the annotated video has no sound")
    errors = predict_videos(detector, videos, output, options)
    if errors:
        print(*map(one_line, errors), sep="\n", file=sys.stderr)
    return bool(errors)
