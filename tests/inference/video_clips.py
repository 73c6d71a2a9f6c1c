"""Clips for the tests of videos."""

import pathlib
from fractions import Fraction

import av
import numpy as np


def make_images(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Return random images, so that no two frames are equal."""
    rng = np.random.default_rng(7)
    return list(rng.integers(0, 256, (count, *size, 3), dtype=np.uint8))


def write_clip(
    path: pathlib.Path,
    images: list[np.ndarray],
    seconds: list[float] | None = None,
    codec: str = "png",
    pix_fmt: str = "rgb24",
    matrix: tuple[int, ...] | None = None,
) -> pathlib.Path:
    """Write a clip without losses, by default of 10 frames per second."""
    time_base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, time_base
        if matrix:
            stream.set_display_matrix(matrix)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = round(1000 * (seconds[index] if seconds else index / 10))
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
