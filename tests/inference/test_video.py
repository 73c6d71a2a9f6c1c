"""Frames of videos: read as their images with their times, and written as annotated videos."""

import contextlib
import itertools
import pathlib
import re
import types
from fractions import Fraction

import numpy as np
import pytest

from retinanet_jax.inference import video
from retinanet_jax.inference.video import camera, find_videos, is_video, read_frames, video_facts
from retinanet_jax.inference.video_writing import VideoWriter

av = pytest.importorskip("av", reason="the extra video is not installed")
from video_clips import make_images, write_clip  # noqa: E402, requires av

SIZE = (48, 64)


def collect(collected: list, items) -> None:
    """Append the items one by one, so that those before an error are collected."""
    for item in items:
        collected.append(item)


def test_the_frames_of_a_lossless_clip_are_its_images(tmp_path):
    images = make_images(5)
    clip = write_clip(tmp_path / "clip.mov", images)
    frames = list(read_frames(clip))
    np.testing.assert_array_equal([frame.image for frame in frames], images)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    facts = video_facts(find_videos([str(clip)])[0])
    assert (facts.rate, facts.num_frames, facts.has_audio) == (10, 5, False)


def test_only_every_third_frame_is_read(tmp_path):
    images = make_images(8)
    frames = list(read_frames(write_clip(tmp_path / "clip.mov", images), every=3))
    assert [frame.index for frame in frames] == [0, 3, 6]
    np.testing.assert_array_equal([frame.image for frame in frames], images[::3])


def test_times_of_a_variable_frame_rate_count_from_the_first_frame(tmp_path):
    seconds = [0.5, 0.54, 0.9, 2.5]
    clip = write_clip(tmp_path / "clip.mkv", make_images(4), seconds, codec="ffv1", pix_fmt="bgr0")
    read = [frame.seconds for frame in read_frames(clip)]
    assert read == pytest.approx([0, 0.04, 0.4, 2.0])


@pytest.mark.parametrize("seconds", [[0, 2, 4, 6], [0, 0.1, 0.2, 0.3, 2, 8, 10]])
def test_the_duration_of_a_slow_video_includes_all_its_frames(tmp_path, seconds):
    path = tmp_path / "slow.mp4"
    with VideoWriter(path, Fraction(25), Fraction(1, 1000)) as writer:
        for image, time in zip(make_images(len(seconds)), seconds, strict=True):
            writer.write(image, time)
    with av.open(path) as container:
        duration = container.duration / 1_000_000
    assert seconds[-1] < duration < seconds[-1] + 3
    assert [frame.seconds for frame in read_frames(path)] == pytest.approx(seconds)


def test_the_last_frame_of_a_slow_video_lasts_until_the_end():
    """Its end may be seconds after the time of its last frame; nothing is missing."""
    ending = video._Ending("clip.mp4")
    for seconds in (0, 2, 4):
        ending.add(seconds, duration=0)
    stream = types.SimpleNamespace(duration=6, time_base=Fraction(1))
    ending.check(None, stream)
    stream.duration = 9
    with pytest.raises(ValueError, match=r"clip\.mp4: ends after 6\.0 of 9\.0 seconds"):
        ending.check(None, stream)


# The display matrix of ISO/IEC 14496-12, 6.2.2: x' = a x + c y and y' = b x + d y, here with
# (a, b, u, c, d, v, x, y, w) as integers, which maps the right edge of the stored frame to...
ONE, ONE_W = 1 << 16, 1 << 30
MATRICES = {
    "the bottom": ((0, ONE, 0, -ONE, 0, 0, 0, 0, ONE_W), -1),  # rotated clockwise
    "the left": ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, ONE_W), 2),
    "the top": ((0, -ONE, 0, ONE, 0, 0, 0, 0, ONE_W), 1),
}


@pytest.mark.parametrize("edge", MATRICES)
def test_a_frame_is_rotated_by_the_metadata(tmp_path, edge):
    matrix, quarters = MATRICES[edge]
    images = make_images(2)
    clip = write_clip(tmp_path / "clip.mov", images, matrix=matrix)
    frames = [frame.image for frame in read_frames(clip)]
    # np.rot90 rotates counterclockwise.
    np.testing.assert_array_equal(frames, [np.rot90(image, quarters) for image in images])


def test_a_file_that_ends_early_is_an_error_after_its_last_frame(tmp_path):
    images, frames = make_images(40), []
    clip = write_clip(tmp_path / "clip.mkv", images, codec="ffv1", pix_fmt="bgr0")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 3 // 5])
    message = r"clip.mkv: ends after 2\.\d of 4\.0 seconds; what could be read is used\.$"
    with pytest.raises(ValueError, match=message):
        collect(frames, read_frames(clip))
    assert len(frames) > 20
    read = [frame.image for frame in frames]
    np.testing.assert_array_equal(read, images[: len(read)])


def test_damaged_frames_are_left_out_and_counted(tmp_path):
    images, frames = make_images(40), []
    clip = write_clip(tmp_path / "clip.avi", images)  # each frame is a PNG file
    content = clip.read_bytes()
    middle = len(content) // 2
    clip.write_bytes(content[:middle] + bytes(20_000) + content[middle + 20_000 :])
    with pytest.raises(ValueError, match=r"clip.avi: \d packets? could not be decoded; what"):
        collect(frames, read_frames(clip))
    assert 30 < len(frames) < 40
    np.testing.assert_array_equal(frames[-1].image, images[-1])


def test_frames_that_are_damaged_but_decoded_are_read_and_counted(tmp_path):
    """Matroska continues after a damage, and MPEG-4 conceals what is missing in a frame."""
    path = write_clip(tmp_path / "a.mkv", make_images(20), codec="mpeg4", pix_fmt="yuv420p")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(500)
    path.write_bytes(content)
    frames = []
    with pytest.raises(ValueError, match=r"a\.mkv: .*damaged in \d+ place"):
        collect(frames, read_frames(path))
    assert len(frames) > 10


def test_a_lost_connection_is_an_error_after_the_frames_that_came(tmp_path, monkeypatch):
    """Also those that the decoder holds back, because the encoder stored them in another order."""
    path, frames = tmp_path / "clip.mp4", []
    with VideoWriter(path, Fraction(10), Fraction(1, 10)) as writer:
        for index, image in enumerate(make_images(10)):
            writer.write(image, index / 10)
    opened = video._opened

    class Breaking:
        def __init__(self, container):
            self.duration, self.streams = container.duration, container.streams
            self._container = container

        def demux(self, stream):
            yield from itertools.islice(self._container.demux(stream), 6)
            raise av.ConnectionResetError(104, "Connection reset", "http://me:secret@host")

    @contextlib.contextmanager
    def open_breaking(source):
        with opened(source) as (container, stream):
            yield Breaking(container), stream

    monkeypatch.setattr(video, "_opened", open_breaking)
    with pytest.raises(ValueError, match=r"clip.mp4: Connection reset; what could"):
        collect(frames, read_frames(path))
    assert len(frames) == 6
    assert all(0 <= frame.seconds < 1 for frame in frames)


def test_what_cannot_be_read_is_an_error_of_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text.mp4: cannot be read as .*; replace or rem"):
        video_facts(find_videos([str(tmp_path / "text.mp4")])[0])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"sound.mp4: contains no video\.$"):
        video_facts(find_videos([str(tmp_path / "sound.mp4")])[0])
    with pytest.raises(FileNotFoundError, match=r"none.mp4: no such video\.$"):
        find_videos([str(tmp_path / "none.mp4")])


def test_an_error_of_a_stream_contains_no_password():
    (stream,) = find_videos(["rtsp://me:secret@127.0.0.1:1/entrance?token=secret"])
    assert (stream.name, stream.path.stem) == ("rtsp://127.0.0.1:1/entrance", "entrance")
    assert stream.is_live
    with pytest.raises(ValueError, match=r"^rtsp://127.0.0.1:1/entrance: .*; check") as error:
        video_facts(stream)
    assert "secret" not in str(error.value)


def test_a_camera_that_is_not_there_is_an_error_of_one_line():
    with pytest.raises(ValueError, match=r"^camera 77: cannot be read .*; attach the camera, "):
        video_facts(camera("77"))


@pytest.mark.parametrize("url", ["http://me:secret@[::1/a.mp4", "rtsp://me:secret@[::1/a"])
def test_an_invalid_url_is_an_error_without_its_password(url):
    with pytest.raises(ValueError, match=r"^\w+://\[::1/a.*: is no valid URL \(.*\); check it\.$"):
        find_videos(list(filter(is_video, [url])))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("a.mp4", True),
        ("clips/*.MOV", True),
        ("/dev/video0", True),
        ("rtsp://host/entrance", True),
        ("https://host/a.webm?size=3", True),
        ("gs://bucket/a.mkv", True),
        ("https://host/a.jpg", False),
        ("a.gif", False),
        ("mp4", False),
        ("-", False),
        ("images", False),
    ],
)
def test_videos_are_known_by_their_names(argument, expected):
    assert is_video(argument) == expected


def test_patterns_name_videos_once(tmp_path):
    for name in ("b.mp4", "a.mp4"):
        (tmp_path / name).touch()
    videos = find_videos([str(tmp_path / "b.mp4"), str(tmp_path / "*.mp4")])
    assert [item.path.name for item in videos] == ["b.mp4", "a.mp4"]


def test_a_camera_has_a_number_a_device_or_a_url(monkeypatch):
    monkeypatch.setattr(video.sys, "platform", "linux")
    for name in ("0", "/dev/video0"):
        assert camera(name)[:1] == ("/dev/video0",)
        assert (camera(name).format, camera(name).is_live) == ("v4l2", True)
    stream = camera("http://host/mjpg")
    assert (stream.url, stream.format, stream.is_live) == ("http://host/mjpg", None, True)


# ---- annotated videos


def flat(color, size=SIZE) -> np.ndarray:
    return np.full((*size, 3), color, np.uint8)


def read_back(path: pathlib.Path) -> list[video.Frame]:
    return list(read_frames(path))


def test_a_written_video_has_the_times_and_the_colors(tmp_path):
    colors = [(200, 60, 30), (20, 180, 220), (0, 0, 0), (255, 255, 255), (128, 128, 128)]
    seconds = [0, 0.04, 0.3, 0.305, 5]
    path = tmp_path / "out.mp4"
    with VideoWriter(path, Fraction(25), Fraction(1, 1000)) as writer:
        for color, time in zip(colors, seconds, strict=True):
            writer.write(flat(color), time)
    frames = read_back(path)
    assert [frame.seconds for frame in frames] == pytest.approx(seconds)
    for color, frame in zip(colors, frames, strict=True):
        assert np.abs(frame.image.astype(int) - color).max() <= 3  # of 255; BT.601 would be off 10


def test_odd_sizes_become_even_and_other_sizes_are_resized(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, Fraction(25), Fraction(1, 25)) as writer:
        for index, size in enumerate([(47, 63), (48, 64), (20, 30)]):
            writer.write(flat((90, 90, 90), size), index / 25)
    assert [frame.image.shape for frame in read_back(path)] == [(48, 64, 3)] * 3


def test_times_that_do_not_increase_become_the_next_ones(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, Fraction(10), Fraction(1, 10)) as writer:
        for time in (0, 0, -3, 0.5):
            writer.write(flat((9, 9, 9)), time)
    assert [frame.seconds for frame in read_back(path)] == pytest.approx([0, 0.1, 0.2, 0.5])


def test_without_an_encoder_of_h264_the_video_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4", "png"})
    path = tmp_path / "out.mp4"
    with VideoWriter(path, Fraction(25), Fraction(1, 1_000_000)) as writer:
        for index in range(3):
            writer.write(flat((200, 60, 30)), index / 25)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert [frame.seconds for frame in read_back(path)] == pytest.approx([0, 0.04, 0.08])


def test_no_frame_means_no_file(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), Fraction(1, 25)):
        pass
    assert not list(tmp_path.iterdir())


def write_until_full() -> None:
    writer = VideoWriter(pathlib.Path("/dev/full"), Fraction(25), Fraction(1, 25))
    with writer:
        for index, image in enumerate(make_images(50, (200, 200))):
            writer.write(image, index / 25)


def test_a_full_disk_is_an_error_of_one_line():
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        write_until_full()


def test_without_pyav_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(video.sys.modules, "av", None)
    message = re.escape('run `pip install "retinanet-jax[video]"`')
    with pytest.raises(ValueError, match=message):
        list(read_frames("/dev/video0"))
