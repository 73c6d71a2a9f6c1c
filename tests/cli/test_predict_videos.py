"""The flags of `predict` about videos, and mistakes with them in one line."""

import json

import numpy as np
import pytest

from retinanet_jax.cli import predict
from retinanet_jax.cli.common import run_command
from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections

av = pytest.importorskip("av", reason="the extra video is not installed")


class DogDetector:
    """A detector of a dog at .9 in every frame."""

    def batch_with_errors(self, images, batch_size):
        boxes, scores = np.float32([[3, 2, 30, 20]]), np.float32([0.9])
        for image in images:
            yield Detections(image, boxes, scores, np.array([0]), (Category(3, "dog"),))


@pytest.fixture(autouse=True)
def _detector(monkeypatch):
    """The detector is fake, and the user's cache is not touched."""
    monkeypatch.setattr(predict, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(predict.Detector, "load", lambda path, **limits: DogDetector())


@pytest.fixture
def clip(tmp_path):
    """A clip of 5 frames with sound."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        video, audio = (
            container.add_stream("mpeg4", rate=10),
            container.add_stream("aac", rate=8000),
        )
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for _ in range(5):
            image = np.zeros((48, 64, 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(audio.encode(sound))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


def run(tmp_path, *arguments) -> int:
    argv = ["predict", "--weights=run", f"--output={tmp_path}/out", *map(str, arguments)]
    return run_command(predict.COMMAND, argv)


def test_every_second_frame_of_a_clip(clip, tmp_path, capsys):
    assert run(tmp_path, "--every=2", "--csv", clip) == 0
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [(entry["frame"], entry["bbox"]) for entry in results] == [
        (frame, [3, 2, 27, 18]) for frame in (0, 2, 4)
    ]
    written = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert written == ["clip.mp4", "detections.csv", "detections.json"]
    printed = capsys.readouterr().out
    assert f"{clip}: the annotated video has no sound\n" in printed
    assert "3 detections in 3 frames" in printed
    assert run(tmp_path, "--nodraw", clip) == 0  # of the files, only those of a run are replaced


def test_a_video_that_cannot_be_read_to_its_end_is_status_1(clip, tmp_path, capsys):
    clip = clip.rename(tmp_path / "clip.avi.mp4")
    content = clip.read_bytes()
    start = content.index(b"mdat") + 4
    clip.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
    assert run(tmp_path, clip) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{clip}: ")
    assert "could not be decoded" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tmp}/none.mp4",), "none.mp4: no such video."),
        (("{clip}", "{tmp}/a.jpg"), "clip.mp4 is a video and "),
        (("{clip}", "{tmp}/a.jpg"), "a.jpg is not; give videos and images in two commands."),
        (("{clip}", "--camera=0"), "--camera=0 and "),
        (("--data={tmp}", "--camera=0"), " are two inputs; give one."),
        (("{tmp}/a.jpg", "--every=2"), "--every=2 has no effect without a video."),
        (("{clip}", "--every=0"), "--every=0 must be at least 1; try 1."),
        (("{clip}", "--batch_size=0"), "batch_size=0 must be at least 1"),
        (("{clip}", "--format=yolo"), "--format is for images only; detections.json"),
        (("{clip}", "--save_crops"), "--save_crops is for images only"),
        (("{clip}", "rtsp://host/live"), "rtsp://host/live has no end; give it in a command of"),
        (("{tmp}/text.mp4",), "text.mp4: cannot be read as a video (Invalid data"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(
    error_line, clip, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(predict.Detector, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "text.mp4").write_text("no video")
    arguments = [argument.format(tmp=tmp_path, clip=clip) for argument in arguments]
    flags = ("--weights=run", f"--output={tmp_path}/out")
    assert message in error_line("predict", *flags, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_file_of_the_user_is_not_replaced(error_line, clip, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "detections.json").write_text("mine")
    line = error_line("predict", "--weights=run", f"--output={tmp_path}/out", clip)
    assert "detections.json is not replaced" in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json"]
