"""The program of docs/predict.md that tracks objects, where the package trackers is installed."""

import collections
import pathlib
import re

import numpy as np
import pytest

from retinanet_jax.data.sources.base import Category
from retinanet_jax.detector import Detector
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.video import read_frames

pytest.importorskip("av", reason="the extra video is not installed")
pytest.importorskip("supervision", reason="supervision is not installed")
pytest.importorskip("trackers", reason="trackers is not installed")
from video_clips import write_clip

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "predict.md"
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


class ColorDetector:
    """A detector of a red and a blue rectangle in each image."""

    def batch_with_errors(self, images, batch_size):
        for image in images:
            where = [np.argwhere((image == color).all(-1)) for color in COLORS.values()]
            boxes = [[*pixels.min(0)[::-1], *(pixels.max(0)[::-1] + 1)] for pixels in where]
            scores, categories = np.float32([0.9, 0.9]), map(Category, (1, 2), COLORS)
            yield Detections(image, np.float32(boxes), scores, np.array([0, 1]), tuple(categories))


def test_each_object_keeps_its_identity(tmp_path, monkeypatch, capsys):
    """Two rectangles cross the image in opposite directions, one above the other."""
    images = np.zeros((30, 96, 200, 3), np.uint8)
    for index, image in enumerate(images):
        image[10:40, 10 + 5 * index : 40 + 5 * index] = COLORS["red"]
        image[50:80, 160 - 5 * index : 190 - 5 * index] = COLORS["blue"]
    write_clip(tmp_path / "clip.mov", list(images)).rename(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Detector, "load", lambda path, **limits: ColorDetector())
    programs = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (program,) = (program for program in programs if "ByteTrackTracker" in program)
    exec(program, {})
    names = re.findall(r"(red|blue) (\d+)", capsys.readouterr().out)
    counts = collections.Counter(names)
    assert sorted(name for name, _ in counts) == ["blue", "red"]  # each has one identity
    assert all(count >= 27 for count in counts.values())
    assert len({identity for _, identity in counts}) == 2
    assert len(list(read_frames("tracked.mp4"))) == 30
