"""Videos, cameras and streams, which PyAV (https://pyav.basswood.io) reads frame by frame."""

import contextlib
import glob
import os
import pathlib
import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from jaxtyping import UInt8

from retinanet_jax.inference.names import safe_name
from retinanet_jax.utils.download import split_url
from retinanet_jax.utils.packages import import_optional
from retinanet_jax.utils.paths import scheme_of
from retinanet_jax.utils.progress import format_count, one_line
from retinanet_jax.utils.remote import local_copy, with_remote_names

# Other files count as images, also animated ones, of which the first frame is read.
SUFFIXES = {
    *(".3gp", ".avi", ".flv", ".m2ts", ".m3u8", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv", ".y4m"),
}
LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp")
# How FFmpeg opens a camera: its format, and the name of a camera by its number.
CAMERAS = {
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}"),
    "win32": ("dshow", "video={}"),
}
CAMERA_POLL = 0.005  # seconds
TIMEOUT = 10.0  # seconds that a camera or a stream may be silent
DEFAULT_RATE = Fraction(30)  # frames/s of a stream that states none
TOLERANCE = 1.0  # seconds of a video that may be missing at its end
VIDEO_EXTRA = "retinanet-jax[video]"


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        image: RGB pixels, rotated by the video's metadata.
        index: Its number in the video, from 0.
        seconds: Its time, from that of the first frame.
    """

    image: UInt8[np.ndarray, "H W 3"]
    index: int
    seconds: float


class Video(NamedTuple):
    """Where frames come from: a video file, a camera or a stream.

    Attributes:
        url: What FFmpeg opens.
        name: What messages and results call it; it contains no password.
        path: A path after which files of results are named; a file there is not overwritten.
        is_live: Whether frames come at their own time, whether they are read or not.
        format: FFmpeg's name of the format; None if the content shows it.
    """

    url: str
    name: str
    path: pathlib.Path
    is_live: bool = False
    format: str | None = None


class VideoFacts(NamedTuple):
    """What the header of a video states.

    Attributes:
        rate: The nominal number of frames per second.
        time_base: The unit of time stamps in seconds.
        num_frames: The number of frames; None if it is unknown.
        has_audio: Whether it also contains sound.
    """

    rate: Fraction
    time_base: Fraction
    num_frames: int | None
    has_audio: bool


def is_video(argument: str) -> bool:
    """Return whether an argument names a video, a pattern of videos, a camera or a stream."""
    scheme = scheme_of(argument)
    path = split_url(argument).path if scheme in ("http", "https") else argument
    is_device = bool(re.fullmatch(r"/dev/video\d+", argument))
    return scheme in LIVE_SCHEMES or pathlib.PurePath(path).suffix.lower() in SUFFIXES or is_device


def find_videos(arguments: Iterable[str]) -> list[Video]:
    """Return the videos that arguments name, without duplicates.

    Args:
        arguments: Files, patterns such as `clips/*.mp4`, cameras such as /dev/video0, and URLs.

    Raises:
        FileNotFoundError: If a file does not exist, or a pattern matches none.
    """
    videos: dict[str, Video] = {}
    for argument in arguments:
        if argument.startswith("/dev/"):
            matches = [camera(argument)]
        elif scheme_of(argument) in (*LIVE_SCHEMES, "http", "https"):
            matches = [_stream(argument)]
        else:
            path = local_copy(os.path.expanduser(argument))
            files = [path] if path.exists() else sorted(map(pathlib.Path, glob.iglob(str(path))))
            matches = [Video(str(file), with_remote_names(str(file)), file) for file in files]
        if not matches:
            raise FileNotFoundError(f"{argument}: no such video.")
        videos.update((video.url, video) for video in matches)
    return list(videos.values())


def camera(name: str) -> Video:
    """Return a camera of this computer, or one with a stream at a URL.

    Args:
        name: The number of the camera, such as 0 for /dev/video0 of Linux, or on Windows its name;
            its device; or the URL of its stream.
    """
    if scheme_of(name):
        return _stream(name)._replace(is_live=True)
    video_format, pattern = CAMERAS.get(sys.platform, CAMERAS["linux"])
    device = name if name.startswith("/dev/") else pattern.format(name)
    path = pathlib.Path(f"camera-{safe_name(pathlib.PurePath(name).name)}.mp4")
    return Video(device, f"camera {name}", path, True, video_format)


def _stream(url: str) -> Video:
    """Return a stream or a video at a URL, with a name that contains no password."""
    parts = split_url(url)
    public = parts._replace(query="", fragment="").geturl()
    stem = pathlib.PurePosixPath(unquote(parts.path)).stem or parts.hostname or "stream"
    path = pathlib.Path(f"{safe_name(stem)}.mp4")
    return Video(url, public, path, parts.scheme in LIVE_SCHEMES)


def video_facts(video: str | os.PathLike[str] | Video) -> VideoFacts:
    """Open a video, and return what its header states.

    Args:
        video: As in `read_frames`.

    Raises:
        ValueError: If it cannot be opened, or contains no video, or PyAV is not installed.
    """
    with _opened(_as_video(video)) as (container, stream):
        return VideoFacts(
            Fraction(stream.guessed_rate or stream.average_rate or DEFAULT_RATE),
            Fraction(stream.time_base),
            stream.frames or None,
            bool(container.streams.audio),
        )


def read_frames(
    video: str | os.PathLike[str] | Video, every: int = 1
) -> Generator[Frame, None, None]:
    """Yield the frames of a video, camera or stream, each decoded when it is requested.

    Examples:
        >>> detector = Detector.load("runs/pets")
        >>> images = (frame.image for frame in read_frames("clip.mp4"))
        >>> for detections in detector.batch(images):
        ...     print(detections)

    Args:
        video: The path of a file, a URL, or what `find_videos` and `camera` return.
        every: Only every n-th frame is returned, from the first one.

    Raises:
        ValueError: If it cannot be opened. If something could not be decoded, the connection was
            lost, or the file ends early, after all frames that could be.
    """
    video = _as_video(video)
    with _opened(video) as (container, stream):
        ending = _Ending(video.name)
        start = None
        for index, frame in enumerate(_decoded(container, stream, ending)):
            if frame.pts is None:
                seconds = float(index / (stream.guessed_rate or DEFAULT_RATE))
            else:  # PyAV's `frame.time` is wrong for the last frames before an error
                seconds = float(frame.pts * stream.time_base)
            start = seconds if start is None else start
            ending.add(seconds - start, float((frame.duration or 0) * stream.time_base))
            if index % every == 0:
                # FFmpeg states by which angle a frame has to be rotated counterclockwise.
                image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield Frame(np.ascontiguousarray(image), index, ending.seconds)
        ending.check(container, stream)


def _as_video(video: str | os.PathLike[str] | Video) -> Video:
    """Return the video that a path or a URL names."""
    return video if isinstance(video, Video) else find_videos([os.fspath(video)])[0]


class _Ending:
    """Collects what prevents a video from being read to its end.

    Attributes:
        seconds: The time of the latest frame.
        end: Until when it is shown, as long as its duration or the frame before it.
        num_errors: How many packets could not be decoded.
        num_damaged: How many packets and frames FFmpeg has marked as damaged.
        reason: Why no more packets could be read; "" if the end was reached.
    """

    def __init__(self, name: str) -> None:
        self._name, self.reason = name, ""
        self.num_errors = self.num_damaged = 0
        self.seconds = self.end = 0.0

    def add(self, seconds: float, duration: float) -> None:
        """Note the time of the next frame, and its duration, or 0 if that is unknown."""
        self.end = seconds + max(duration, seconds - self.seconds)
        self.seconds = seconds

    def check(self, container: Any, stream: Any) -> None:
        """Raise ValueError if a video could not be read to its end.

        Args:
            container: Of PyAV, at its end.
            stream: Its video.
        """
        total = None
        if stream.duration is not None:
            total = float(stream.duration * stream.time_base)
        elif container.duration is not None and len(container.streams) == 1:
            total = container.duration / 1_000_000
        is_early = total is not None and self.end < total - TOLERANCE
        parts = [
            f"{format_count(self.num_errors, 'packet')} could not be decoded"
            * bool(self.num_errors),
            f"damaged in {format_count(self.num_damaged, 'place')}" * bool(self.num_damaged),
            f"ends after {self.end:.1f} of {total:.1f} seconds" if is_early else "",
            self.reason,
        ]
        if any(parts):
            reasons = "; ".join(filter(None, parts))
            raise ValueError(f"{self._name}: {reasons}; what could be read is used.")


def _decoded(container: Any, stream: Any, ending: _Ending) -> Iterator[Any]:
    """Yield PyAV's frames of a stream, as far as they can be read and decoded."""
    av = import_av()
    for packet in _packets(container, stream, ending):
        ending.num_damaged += packet is not None and packet.is_corrupt
        try:
            for frame in stream.decode(packet):
                ending.num_damaged += frame.is_corrupt
                yield frame
        except av.FFmpegError:
            ending.num_errors += 1


def _packets(container: Any, stream: Any, ending: _Ending) -> Iterator[Any]:
    """Yield PyAV's packets of a stream; at an error None, at which the decoder returns the rest."""
    av = import_av()
    while True:
        try:
            yield from container.demux(stream)
            return
        except av.BlockingIOError:  # a camera of macOS has no new frame
            time.sleep(CAMERA_POLL)
        except av.FFmpegError as error:
            ending.reason = _reason(error)
            yield None
            return


@contextlib.contextmanager
def _opened(video: Video) -> Iterator[tuple[Any, Any]]:
    """Open a video; yield PyAV's container and the video stream in it."""
    av = import_av()
    timeout = TIMEOUT if scheme_of(video.url) or video.is_live else None
    # Over UDP, which is FFmpeg's default, a lost packet damages frames.
    options = {"rtsp_transport": "tcp"} if scheme_of(video.url) == "rtsp" else {}
    try:
        container = av.open(video.url, format=video.format, timeout=timeout, options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError(
            f"{video.name}: cannot be read as a video ({_reason(error)}); {_fix(video)}."
        ) from None
    with container:
        if not container.streams.video:
            raise ValueError(f"{video.name}: contains no video.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"  # frames are decoded by several threads
        yield container, stream


def import_av() -> Any:
    """Return the module av; ValueError with what to install if it is missing."""
    return import_optional("av", "reading a video", VIDEO_EXTRA)


def _fix(video: Video) -> str:
    """Return what to do about a video that cannot be opened."""
    if video.format:
        return "attach the camera, end what uses it, or give the number or device of another one"
    return "check the URL" if scheme_of(video.url) else "replace or remove it"


def _reason(error: Exception) -> str:
    """Return FFmpeg's reason without the URL, which may contain a password."""
    if isinstance(error, import_av().error.ExitError):
        return f"no data for {TIMEOUT:g} seconds"
    return getattr(error, "strerror", None) or one_line(error)
