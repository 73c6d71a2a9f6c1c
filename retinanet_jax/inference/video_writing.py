"""Annotated videos, which PyAV (https://pyav.basswood.io) encodes as MP4 files."""

import pathlib
import types
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import UInt8

from retinanet_jax.inference.video import import_av
from retinanet_jax.utils.files import errors_name

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

    def __init__(self, path: pathlib.Path, rate: Fraction, time_base: Fraction) -> None:
        self._path, self._rate = path, rate
        self._time_base = max(time_base, SHORTEST_TICK)
        self._container: Any = None
        self._stream: Any = None
        self._last_pts = -1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if self._container is not None:
            with errors_name(self._path), self._container:
                self._container.mux(self._stream.encode(None))

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
        if self._container is None:
            self._open(*image.shape[:2])
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
            self._stream.width, self._stream.height, self._stream.pix_fmt, dst_colorspace="ITU709"
        )
        self._last_pts = max(round(seconds / self._time_base), self._last_pts + 1)
        frame.pts, frame.time_base = self._last_pts, self._time_base
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        """Create the file, for frames of a size."""
        av = import_av()
        self._container = av.open(str(self._path), "w", format="mp4")
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        stream = self._container.add_stream(encoder, self._rate, options=ENCODERS[encoder])
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.time_base = self._time_base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        self._stream = stream
