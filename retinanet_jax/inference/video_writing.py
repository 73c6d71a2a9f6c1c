"""Annotated videos, which PyAV (https://pyav.basswood.io) encodes as MP4 files."""

import contextlib
import os
import threading
import types
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import UInt8

from retinanet_jax.inference.video import import_av

# The encoders that are tried in turn. H.264 is what every player and browser shows; libx264 is in
# PyAV's wheels, but not in every build of FFmpeg. The losses of both are hardly visible.
ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "mpeg4": {"qmin": "3", "qmax": "3"},
}
BT709, LIMITED_RANGE = 1, 1  # FFmpeg's numbers of the colors of HD video
SHORTEST_TICK = Fraction(1, 60_000)  # seconds; MPEG-4 has no time stamps that are much finer


class VideoWriter:
    """Writes frames to an MP4 file, each with its time, and without sound.

    The size is that of the first frame, to which later frames of other sizes are resized. An odd
    side becomes a pixel longer, because H.264 requires even ones.

    Args:
        path: The file; nothing is written if there is no frame.
        rate: The nominal number of frames per second.
        time_base: The unit of the time stamps in seconds.
    """

    def __init__(self, path: str | os.PathLike[str], rate: Fraction, time_base: Fraction) -> None:
        self._path, self._rate = path, rate
        self._time_base = max(time_base, SHORTEST_TICK)
        self._container: Any = None
        self._stream: Any = None
        self._last_pts = -1
        self._failed = False
        self._lock = threading.Lock()  # a thread that writes may still do so when a run is stopped

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        with self._lock:
            if self._container is None:
                return
            # After a failed write, FFmpeg may crash at the next one.
            with contextlib.suppress(import_av().FFmpegError) if self._failed else _as_os_errors():
                try:
                    if not self._failed:
                        self._container.mux(self._stream.encode(None))
                finally:
                    self._container.close()
            if self._failed and error is None:
                raise OSError("the annotated video could not be written")

    def write(self, image: UInt8[np.ndarray, "H W 3"], seconds: float) -> None:
        """Write a frame.

        Args:
            image: RGB pixels.
            seconds: Its time; if it is not after that of the frame before, the next time stamp.

        Raises:
            OSError: If the file cannot be written.
        """
        av = import_av()
        height, width = image.shape[:2]
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with self._lock, _as_os_errors():
            if self._container is None:
                self._container, self._stream = self._open(*image.shape[:2])
            size = self._stream.width, self._stream.height
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(*size, self._stream.pix_fmt, dst_colorspace="ITU709")
            self._last_pts = max(round(seconds / self._time_base), self._last_pts + 1)
            frame.pts, frame.time_base = self._last_pts, self._time_base
            self._failed = True
            self._container.mux(self._stream.encode(frame))
            self._failed = False

    def _open(self, height: int, width: int) -> tuple[Any, Any]:
        """Create the file, for frames of a size; return PyAV's container and video stream."""
        av = import_av()
        container = av.open(os.fspath(self._path), "w", format="mp4")
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        stream = container.add_stream(encoder, self._rate, options=ENCODERS[encoder])
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.time_base = self._time_base
        # With B-frames, which are stored in another order, the file's duration would not include
        # the pauses at the end of a stream with dropped frames.
        context.max_b_frames = 0
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        return container, stream


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise FFmpeg's errors of writing as OSError, without the name of a temporary file."""
    try:
        yield
    except import_av().FFmpegError as error:
        raise OSError(error.errno, error.strerror) from None
