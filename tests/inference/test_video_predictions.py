"""Detection in videos: each frame as its image, complete files, whatever ends the video."""

import csv
import json
import os
import pathlib
import signal
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from retinanet_jax import checkpoint, core
from retinanet_jax import detector as detector_module
from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference import latency, video_predictions
from retinanet_jax.inference.video import Video, find_videos, read_frames, video_facts
from retinanet_jax.inference.video_predictions import VideoOptions, predict_videos
from retinanet_jax.inference.video_results import COLUMNS
from retinanet_jax.stopping import Interrupted

pytest.importorskip("av", reason="the extra video is not installed")
from video_clips import make_images, write_clip

CATEGORIES = (Category(3, "dog"), Category(7, "cat"))
# FFmpeg's test pattern, which never ends, stands for a camera.
CAMERA = Video("testsrc=size=64x48:rate=30", "camera 0", pathlib.Path("camera-0"), True, "lavfi")


class CatDetector:
    """A detector of a cat at .9 and a dog at .2, of which the boxes depend on the pixels."""

    def batch_with_errors(self, images, batch_size):
        for image in images:
            top, left = image[0, 0, :2] / 20
            yield Detections(
                image,
                np.float32([[left, top, 30, 20], [0, 0, 5, 9]]),
                np.float32([0.9, 0.2]),
                np.array([1, 0]),
                CATEGORIES,
            )


def predict(detector, videos, output, **options):
    """Return the errors and the content of detections.json."""
    facts = {video: video_facts(video) for video in videos}
    errors = predict_videos(detector, facts, output, VideoOptions(**options))
    return errors, json.loads((output / "detections.json").read_text())


@pytest.fixture
def brightness_detector(monkeypatch, toy_config) -> detector_module.Detector:
    """A detector in jax of one object in each image, at a place that depends on all pixels."""

    def detect(variables, batch, model, config, score_thresholds):
        x = jnp.mean(jnp.abs(batch.images), (1, 2, 3))
        ones = jnp.ones((len(batch.images), 1))
        boxes = jnp.stack([x, x + 1, x + 20, x + 30], -1)[:, None]
        return core.Detections(boxes, 0.5 * ones, jnp.zeros(ones.shape, int), ones > 0)

    monkeypatch.setattr(latency, "detect", detect)
    return detector_module.Detector(
        checkpoint.Checkpoint({}, toy_config, CATEGORIES, 0, pathlib.Path("run"))
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_detections_of_each_frame_are_those_of_its_image(
    brightness_detector, tmp_path, batch_size
):
    images = make_images(7)
    videos = find_videos([str(write_clip(tmp_path / "clip.mov", images))])
    errors, results = predict(
        brightness_detector, videos, tmp_path / "out", batch_size=batch_size, draw_threshold=None
    )
    assert errors == []
    assert [entry["frame"] for entry in results] == list(range(7))
    for entry, detections in zip(results, brightness_detector.batch(images), strict=True):
        (expected,) = detections.to_coco(entry["frame"] + 1)
        assert {name: entry[name] for name in expected} == expected
    assert [path.name for path in (tmp_path / "out").glob("*.mp4")] == []


def test_the_json_the_table_and_the_annotated_video_have_the_same_frames(tmp_path, capsys):
    seconds = [0, 0.1, 0.7, 0.8, 0.9]
    clip = tmp_path / "clip, 1.mkv"
    write_clip(clip, make_images(5), seconds, codec="ffv1", pix_fmt="bgr0")
    output = tmp_path / "out"
    errors, results = predict(CatDetector(), find_videos([str(clip)]), output, table=True)
    assert errors == []
    assert results[2]["file_name"] == str(clip)
    assert [entry["image_id"] for entry in results] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [entry["frame"] for entry in results[::2]] == [0, 1, 2, 3, 4]
    assert [entry["seconds"] for entry in results[::2]] == pytest.approx(seconds)
    with (output / "detections.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    for row, entry in zip(rows, results, strict=True):
        x0, y0, x1, y1 = (float(row[name]) for name in ("x0", "y0", "x1", "y1"))
        assert [x0, y0, x1 - x0, y1 - y0] == pytest.approx(entry["bbox"])
        for name in ("file_name", "frame", "seconds", "score"):
            assert row[name] == str(entry[name])
    annotated = list(read_frames(output / "clip, 1.mp4"))
    assert [frame.seconds for frame in annotated] == pytest.approx(seconds)
    assert annotated[0].image.shape == (48, 64, 3)
    printed = capsys.readouterr().out
    assert "10 detections in 5 frames (5 with a score of 0.5 or more are drawn): " in printed


def test_several_videos_have_their_own_names_and_one_table(tmp_path):
    (tmp_path / "b").mkdir()
    clips = [tmp_path / "a.mov", tmp_path / "b" / "a.mov"]
    for clip in clips:
        write_clip(clip, make_images(4))
    output = tmp_path / "out"
    _, results = predict(CatDetector(), find_videos(map(str, clips)), output, every=3)
    assert [(entry["file_name"], entry["frame"]) for entry in results[::2]] == [
        (str(clip), frame) for clip in clips for frame in (0, 3)
    ]
    assert len({entry["image_id"] for entry in results}) == 4
    assert sorted(path.name for path in output.glob("*.mp4")) == ["a-2.mp4", "a.mp4"]
    assert [frame.seconds for frame in read_frames(output / "a.mp4")] == pytest.approx([0, 0.3])


def test_a_video_in_the_output_folder_is_not_overwritten(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", make_images(3))
    content = clip.read_bytes()
    predict(CatDetector(), find_videos([str(clip)]), tmp_path)
    assert clip.read_bytes() == content
    assert (tmp_path / "clip-2.mp4").exists()


def test_of_a_video_that_ends_early_the_frames_are_used(tmp_path):
    clip = write_clip(tmp_path / "clip.mkv", make_images(40), codec="ffv1", pix_fmt="bgr0")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    whole = write_clip(tmp_path / "whole.mov", make_images(2))
    videos = find_videos([str(clip), str(whole)])
    errors, results = predict(CatDetector(), videos, tmp_path / "out", batch_size=4)
    (line,) = errors
    assert line.startswith(f"{clip}: ends after ")
    frames = [entry["frame"] for entry in results[::2]]
    assert frames == [*range(len(frames) - 2), 0, 1]
    assert len(frames) > 15
    assert len(list(read_frames(tmp_path / "out" / "clip.mp4"))) == len(frames) - 2


def test_a_frame_that_cannot_be_used_ends_its_video(tmp_path):
    class Failing:
        def batch_with_errors(self, images, batch_size):
            yield from (ValueError("too wide") for _ in images)

    clip = write_clip(tmp_path / "clip.mov", make_images(3))
    errors, results = predict(Failing(), find_videos([str(clip)]), tmp_path / "out")
    assert errors == [f"{clip}: frame 0: too wide"]
    assert results == []
    assert not (tmp_path / "out" / "clip.mp4").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_an_endless_video_has_complete_files(tmp_path, capfd, number):
    class Interrupting(CatDetector):
        def batch_with_errors(self, images, batch_size):
            for count, detections in enumerate(super().batch_with_errors(images, batch_size)):
                if count == 20:
                    os.kill(os.getpid(), number)
                yield detections
                time.sleep(0.002)

    with pytest.raises(Interrupted) as error:
        predict(Interrupting(), [CAMERA], tmp_path, table=True)
    assert error.value.signal == number
    results = json.loads((tmp_path / "detections.json").read_text())
    rows = (tmp_path / "detections.csv").read_text().splitlines()
    frames = list(read_frames(tmp_path / "camera-0.mp4"))
    assert len(results) == len(rows) - 1 == 2 * len(frames)
    assert len(frames) >= 15
    seconds = np.array([entry["seconds"] for entry in results[::2]])
    assert [frame.seconds for frame in frames] == pytest.approx(seconds - seconds[0], abs=1e-4)
    printed = capfd.readouterr()
    assert ": stopping after frame " in printed.err
    assert list(tmp_path.glob(".*.partial")) == []


def test_frames_of_a_camera_that_come_too_fast_are_dropped_and_counted(tmp_path, capsys):
    class Slow(CatDetector):
        def batch_with_errors(self, images, batch_size):
            for count, detections in enumerate(super().batch_with_errors(images, batch_size)):
                time.sleep(0.02)
                yield detections
                if count == 10:
                    return

    _, results = predict(Slow(), [CAMERA], tmp_path, draw_threshold=None)
    frames = [entry["frame"] for entry in results[::2]]
    assert frames == sorted(set(frames))
    dropped = frames[-1] + 1 - len(frames)
    assert dropped > 0
    assert f"camera 0: 11 frames, {dropped} frames dropped, " in capsys.readouterr().out


def test_a_stream_without_data_is_stopped_by_a_signal(tmp_path, monkeypatch):
    """The thread that waits for the next frame is left behind."""
    is_reading, released = threading.Event(), threading.Event()

    def read(video, every):
        yield from list(read_frames(write_clip(tmp_path / "clip.mov", make_images(3))))
        is_reading.set()
        released.wait(20)

    def interrupt():
        is_reading.wait(20)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(video_predictions, "read_frames", read)
    monkeypatch.setattr("retinanet_jax.utils.threads.CLOSE_SECONDS", 0.1)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        predict(CatDetector(), [CAMERA], tmp_path)
    released.set()
    assert (tmp_path / "detections.json").read_text().endswith("]")
