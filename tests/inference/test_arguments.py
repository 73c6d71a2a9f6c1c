"""Images of URLs and of standard input are images like those in files, and so are their errors."""

import base64
import io
import json
import sys
import threading
import time
import types

import numpy as np
import pytest
from image_host import ImageHost
from PIL import Image

from retinanet_jax.cli import predict
from retinanet_jax.cli.common import run_command
from retinanet_jax.config import default_config
from retinanet_jax.data.image_files import read_image
from retinanet_jax.data.sources.base import Category
from retinanet_jax.evaluation.detections import Detections
from retinanet_jax.inference.arguments import input_arguments, url_path
from retinanet_jax.utils import download

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)


def to_png(pixels=PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def host(monkeypatch):
    """A server that has PIXELS at a.png."""
    monkeypatch.setenv("no_proxy", "*")
    with ImageHost() as running:
        running.files["a.png"] = to_png()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def stdin(monkeypatch):
    """`stdin(content)`: standard input contains this; None for a terminal."""

    def stdin(content):
        file = types.SimpleNamespace(
            buffer=io.BytesIO(content or b""), isatty=lambda: content is None
        )
        monkeypatch.setattr(sys, "stdin", file)

    return stdin


# ---- URLs


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("a.png", "a.png"),
        ("moved.png", "a.png"),  # to which the server redirects
        ("photos?id=3&size=[20]", "photos?id=3&size=[20]"),
        ("two words.png", "two%20words.png"),
        ("two%20words.png", "two%20words.png"),
        ("käfer.png", "k%C3%A4fer.png"),
    ],
)
def test_an_image_is_read_from_its_url(host, url, path):
    host.files[path] = to_png()
    np.testing.assert_array_equal(read_image(host.url(url)), PIXELS)
    assert all(agent.startswith("retinanet_jax/") for agent in host.agents)


def test_a_password_in_a_url_is_only_sent_to_its_host(host):
    url = host.url("moved.png").replace("://", "://ann:p%40ss@")
    read_image(url)
    sent = base64.b64encode(b"ann:p@ss").decode()
    assert host.authorizations == [f"Basic {sent}", None]  # not to where it has moved
    with pytest.raises(ValueError, match="404") as error:
        read_image(url.replace("moved", "missing"))
    assert str(error.value).startswith(host.url("missing.png"))
    assert "ss@" not in str(error.value)
    [item] = input_arguments([url])
    assert (item.image, item.name) == (url, host.url("moved.png"))


def test_the_scheme_of_a_url_may_be_in_capitals(host):
    np.testing.assert_array_equal(read_image(host.url("a.png").replace("http", "HTTP")), PIXELS)


def error_of(url) -> str:
    with pytest.raises(ValueError, match=r"^(?!.*\n)") as caught:  # one line
        read_image(url)
    assert str(caught.value).startswith(url)
    return str(caught.value).removeprefix(url)


def test_each_error_of_a_download_names_the_url_and_what_to_do(host, monkeypatch):
    fix = "check the URL, or download the file and give its path."
    assert error_of(host.url("none.png")) == f" answers 404 Not Found; {fix}"

    host.files["page"] = b"<html>"
    host.content_types["page"] = "text/html; charset=utf-8"
    assert error_of(host.url("page")) == " is text/html and no image; give an image's own URL."
    host.content_types["page"] = "multipart/x-mixed-replace; boundary=frame"  # a camera's stream
    assert error_of(host.url("page")) == (
        " is multipart/x-mixed-replace and no image; the URL of a video, or of a camera's stream, "
        "is given to predict as --camera=URL."
    )
    host.content_types["page"] = "image/png"  # the content shows it
    assert error_of(host.url("page")).startswith(": is no image but a web page;")

    host.announced["a.png"] = "unknown"
    np.testing.assert_array_equal(read_image(host.url("a.png")), PIXELS)
    del host.announced["a.png"]
    host.withheld["a.png"] = 9
    size = len(to_png())
    expected = f" sent {size - 9} of {size} bytes; run this again."
    assert error_of(host.url("a.png")) == expected
    monkeypatch.setattr(download, "MAX_BYTES", size - 1)
    host.withheld["a.png"] = 0
    assert error_of(host.url("a.png")).startswith(" has more than 0 MB; ")


@pytest.mark.parametrize("name", ["[bad", "a..b", "nowhere.invalid", "127.0.0.1:9", "h:port", ""])
def test_a_host_that_cannot_be_reached_is_an_error(monkeypatch, name):
    monkeypatch.setenv("no_proxy", "*")
    assert error_of(f"http://{name}/a.png").startswith(" cannot be reached (")


def test_a_server_that_sends_nothing_or_single_bytes_is_not_waited_for(host, monkeypatch):
    host.withheld["a.png"] = 1
    host.pause = 0.02
    monkeypatch.setattr(download, "MAX_SECONDS", 0.1)
    start = time.monotonic()
    assert error_of(host.url("a.png")).startswith(" sends for more than 0 seconds; ")
    assert time.monotonic() - start < 0.5 * len(host.files["a.png"]) * host.pause
    host.pause = 1.0
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    assert error_of(host.url("a.png")).startswith(" cannot be reached (timed out); ")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h.org/cats/a.jpg", "a"),
        ("https://h.org/a%20b.tar.png?w=3#x", "a b.tar"),
        ("https://h.org/photos/3?file=/etc/b.png", "3"),
        ("https://h.org", "h"),
        ("https://h.org/..%2F..%2Fsecret", "secret"),
        ("https://h.org/a%00:b.png", "a__b"),
        ("https://h.org/" + 300 * "ü" + ".jpg", 100 * "ü"),
    ],
)
def test_the_drawing_of_a_url_is_named_after_its_file(url, name):
    path = url_path(url)
    assert path.stem == name
    assert not path.exists()


# ---- open files


def test_an_open_file_is_an_image(tmp_path):
    (tmp_path / "a.png").write_bytes(to_png())
    with (tmp_path / "a.png").open("rb") as file:
        np.testing.assert_array_equal(read_image(file), PIXELS)
    np.testing.assert_array_equal(read_image(io.BytesIO(to_png())), PIXELS)
    (tmp_path / "a.png").write_bytes(b"no image")
    with (
        (tmp_path / "a.png").open("rb") as file,
        pytest.raises(ValueError, match=rf"^{tmp_path}/a.png: the image is corrupt"),
    ):
        read_image(file)
    with (
        (tmp_path / "a.png").open() as file,
        pytest.raises(ValueError, match=rf"^{tmp_path}/a.png: is open as text; open it with"),
    ):
        read_image(file)


# ---- standard input


def test_standard_input_is_an_image(stdin):
    stdin(to_png())
    (image,) = input_arguments(["-"])
    assert (image.image_id, image.name, image.path.name) == (1, "stdin", "stdin.jpg")
    np.testing.assert_array_equal(read_image(image.image), PIXELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a terminal; pipe an image file into this command."),
        (b"", "the file is empty; replace or remove it."),
        (b"a text", "the image is corrupt or truncated (unknown image format)"),
        (
            b"\0\0\0\x20ftypisom\0\0\2\0isomiso2",
            "is no image but a video; give the path of its file",
        ),
    ],
)
def test_standard_input_that_is_no_image_is_an_error_before_the_detector_is_loaded(
    error_line, stdin, tmp_path, content, message
):
    stdin(content)
    line = error_line("predict", "--weights=/absent", f"--output={tmp_path}/out", "-")
    assert line.startswith(f"error: - (standard input): {message}")


def test_a_folder_with_only_videos_is_an_error_with_their_pattern(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no image in .*videos are \".*\*\.mp4\"\.$"):
        input_arguments([str(tmp_path)])


def test_standard_input_without_an_end_is_an_error(stdin, monkeypatch):
    monkeypatch.setattr("retinanet_jax.inference.arguments.MAX_BYTES", 40)
    stdin(to_png())
    with pytest.raises(ValueError, match="has more than 0 MB; save it, and give the file's path"):
        input_arguments(["-"])


# ---- the command


class BrightDetector:
    """A detector of one box, with the mean of an image's pixels as its score."""

    categories = (Category(7, "cat"),)
    checkpoint = types.SimpleNamespace(config=default_config(), categories=categories)

    def batch_with_errors(self, images, batch_size):
        for image in images:
            try:
                pixels = read_image(image)
            except ValueError as error:
                yield error
                continue
            score = np.float32([pixels.mean() / 255])
            boxes = np.float32([[3, 2, 30, 20]])
            yield Detections(pixels, boxes, score, np.array([0]), self.categories)


def test_predict_detects_in_files_urls_and_standard_input(
    host, stdin, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(predict, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(predict.Detector, "load", lambda path, **limits: BrightDetector())
    gray = [np.full((20, 30, 3), value, np.uint8) for value in (51, 102, 153)]
    (tmp_path / "a.png").write_bytes(to_png(gray[0]))
    host.files["a.png"] = to_png(gray[1])
    stdin(to_png(gray[2]))
    urls = [host.url("a.png"), host.url("none.png"), host.url("a.png")]
    argv = ["predict", "--weights=run", f"--output={tmp_path}/out", "-", *urls, tmp_path / "a.png"]
    assert run_command(predict.COMMAND, list(map(str, argv))) == 1
    results = json.loads((tmp_path / "out/detections.json").read_text())
    assert [(entry["image_id"], entry["file_name"]) for entry in results] == [
        (1, str(tmp_path / "a.png")),
        (2, urls[0]),
        (4, "stdin"),
    ]
    np.testing.assert_allclose([entry["score"] for entry in results], [0.2, 0.4, 0.6], rtol=1e-6)
    drawings = {path.name for path in (tmp_path / "out").glob("*.jpg")}
    assert drawings == {"a.jpg", "a-2.jpg", "stdin.jpg"}
    error = capsys.readouterr().err
    assert error.startswith(f"1 of 4 images could not be read:\n  {urls[1]} answers 404 Not Found")
