"""A downloaded file is complete and checked or absent, and every error states what to do."""

import errno
import hashlib
import os
import re
import threading

import pytest
from download_host import CONTENT

from retinanet_jax.training import initialization
from retinanet_jax.utils import progress
from retinanet_jax.weights import download, named
from retinanet_jax.weights.download import KERAS_RESNET50, KNOWN, TIMM_RESNET50, Published

NAME = "resnet50-0676ba61.pth"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(monkeypatch, server):
    """`published(answer, ...)`: NAME is published at the path /answer/... of the server."""

    def published(answer, algorithm="sha256", prefix=SHA256[:8]):
        known = Published(server.url(f"{answer}/{NAME}"), algorithm, prefix)
        monkeypatch.setitem(KNOWN, NAME, known)

    return published


def everything(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- the published files


def test_the_checksums_are_those_in_the_names():
    for name, known in KNOWN.items():
        if name == TIMM_RESNET50:  # its host has the checksum
            continue
        assert known.url.startswith("https://")
        assert known.url.endswith(f"/{name}")
        assert known.license
        if known.algorithm == "sha256":
            assert name.endswith(f"-{known.prefix}.pth")
            assert len(known.prefix) == 8
        elif known.algorithm == "md5" and name != KERAS_RESNET50:
            assert name == f"model_final_{known.prefix}.pkl"
            assert len(known.prefix) == 6
    unchecked = {name for name, known in KNOWN.items() if not known.algorithm}
    assert unchecked == {"R-50.pkl", "R-101.pkl", "X-101-32x8d.pkl"}
    assert KNOWN["retinanet_resnet50_fpn_coco-eeacb38b.pth"] == Published(
        "https://download.pytorch.org/models/retinanet_resnet50_fpn_coco-eeacb38b.pth",
        "sha256",
        "eeacb38b",
        "BSD-3-Clause",
    )
    assert KNOWN["model_final_5bd44e.pkl"].prefix == "5bd44e"
    # Keras has the checksum in its code and not in the name.
    assert KNOWN[KERAS_RESNET50] == Published(
        "https://github.com/fchollet/deep-learning-models/releases/download/v0.2/"
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5",
        "a268eb855778b3df3c7506639542a6af",
        "MIT",
    )
    assert KNOWN[TIMM_RESNET50] == Published(
        "https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors",
        "sha256",
        "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
        "Apache-2.0",
    )


# ---- downloading


@pytest.mark.parametrize(
    ("algorithm", "prefix"),
    [("sha256", SHA256[:8]), ("md5", hashlib.md5(CONTENT).hexdigest()[:6]), ("", "")],
)
@pytest.mark.parametrize("answer", ["good", "nolength"])
def test_a_published_file_is_downloaded_once(
    server, published, tmp_path, capsys, answer, algorithm, prefix
):
    published(answer, algorithm, prefix)
    path = download.fetch(NAME, tmp_path / "cache")
    assert path == tmp_path / "cache" / NAME
    assert path.read_bytes() == CONTENT
    size = "" if answer == "nolength" else "1 MB"
    unchecked = "" if algorithm else "not checked, since no checksum is published"
    details = "; ".join(filter(None, [size, unchecked]))
    assert capsys.readouterr().out == (
        f"downloading {KNOWN[NAME].url} to {path}{f' ({details})' if details else ''}\n"
    )
    assert everything(tmp_path) == ["cache", f"cache/{NAME}"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # other users may read it

    assert download.fetch(NAME, tmp_path / "cache") == path
    assert len(server.requests) == 1
    assert capsys.readouterr().out == ""


def test_progress_and_the_remaining_time_are_printed(monkeypatch, published, tmp_path, capsys):
    published("good")
    monkeypatch.setattr(progress, "PROGRESS_INTERVAL", 0.0)
    monkeypatch.setattr(progress, "MIN_MEASURED", 0.0)
    monkeypatch.setattr(download, "CHUNK", len(CONTENT) // 3)
    download.fetch(NAME, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{NAME}: \d/1 MB  \d+\.\d MB/s  \d+ min \d\d s left", lines[2])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("short", r"sent 640000 of 1280000 bytes; run this again, or download it"),
        ("absent", r"answers 404 Not Found; download it where there is a network, put it at"),
    ],
)
def test_the_error_names_the_url_and_the_path_and_nothing_is_left(
    published, tmp_path, answer, message
):
    published(answer)
    folder = tmp_path / "cache"
    with pytest.raises(OSError, match=message) as error:
        download.fetch(NAME, folder)
    assert str(error.value).startswith(KNOWN[NAME].url)
    assert str(error.value).endswith(f"put it at {folder / NAME} and run this again.")
    assert "\n" not in str(error.value)
    assert everything(folder) == []
    published("good")  # and the next attempt works
    assert download.fetch(NAME, folder).read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a/w.pth", "http://nowhere.invalid/a/w.pth"])
def test_without_a_network_the_error_names_the_url_and_where_to_put_the_file(
    monkeypatch, tmp_path, url
):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    message = rf"^{url} cannot be reached \(.*\); download it where"
    with pytest.raises(OSError, match=message) as error:
        download.fetch(url, tmp_path)
    place = str(error.value).split("put it at ")[1].removesuffix(" and run this again.")
    assert everything(tmp_path) == []
    # A file that is put there is used.
    os.makedirs(os.path.dirname(place))
    with open(place, "wb") as file:
        file.write(CONTENT)
    assert download.fetch(url, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_an_error(published, tmp_path):
    published("good", prefix="00000000")
    message = (
        rf"{NAME} from http.* has the sha256 {SHA256}, .* begins with 00000000; the file was rem"
    )
    with pytest.raises(ValueError, match=message):
        download.fetch(NAME, tmp_path)
    assert everything(tmp_path) == []


def test_a_file_put_there_by_hand_is_checked_too(server, published, tmp_path):
    published("good")
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=f"begins with {SHA256[:8]}; remove {tmp_path / NAME} and"):
        download.fetch(NAME, tmp_path)
    assert (tmp_path / NAME).exists()
    assert server.requests == []


def test_a_mirror_s_file_must_have_the_published_checksum(server, published, tmp_path):
    published("good", prefix="00000000")
    with pytest.raises(ValueError, match="begins with 00000000"):
        download.fetch(server.url(f"mirror/{NAME}"), tmp_path)
    published("good")
    assert download.fetch(server.url(f"mirror/{NAME}"), tmp_path) == tmp_path / NAME


def test_two_files_of_the_same_name_stay_separate(server, tmp_path, capsys):
    urls = [server.url(f"good/{folder}/model_final.pth") for folder in "ab"]
    first, second = (download.fetch(url, tmp_path) for url in urls)
    assert first != second
    assert first.name == second.name == "model_final.pth"
    assert "not checked" in capsys.readouterr().out
    assert download.fetch(urls[0], tmp_path) == first
    assert len(server.requests) == 2


def test_an_interrupted_download_leaves_nothing(monkeypatch, published, tmp_path):
    published("good")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "make_progress", lambda *_: interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(NAME, tmp_path)
    assert everything(tmp_path) == []


def test_a_full_disk_is_named_with_another_folder(monkeypatch, published, tmp_path):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    published("good")
    monkeypatch.setattr(download, "make_progress", lambda *_: no_space)
    monkeypatch.setattr(download, "CHUNK", 1000)
    message = r"cannot be written \(No space left on device\); set .* with free space"
    with pytest.raises(OSError, match=message) as caught:
        download.fetch(NAME, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_same_file_can_be_downloaded_several_times_at_once(published, tmp_path):
    published("good")
    failed = []

    def fetch():
        try:
            assert download.fetch(NAME, tmp_path).read_bytes() == CONTENT
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert everything(tmp_path) == [NAME]


@pytest.mark.parametrize("name", ["resnet50.pth", "ftp://somewhere/w.pth"])
def test_a_name_that_is_neither_known_nor_a_url_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name!r} is neither a URL nor .*eeacb38b"):
        download.fetch(name, tmp_path)
    with pytest.raises(ValueError, match="names no file"):
        download.fetch("http://somewhere/", tmp_path)


# ---- finding files


def test_the_cache_is_in_the_user_s_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "retinanet_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(download.cache_folder()) == "/home/someone/.cache/retinanet_jax"


def test_an_existing_file_is_used_without_a_check(places, server, published):
    published("absent")
    (places / NAME).write_bytes(b"mine")
    assert download.locate(NAME).read_bytes() == b"mine"
    (places / NAME).rename(places / "mine.npz")
    assert download.locate(places / "mine.npz") == places / "mine.npz"
    (places / "weights").mkdir()
    (places / "weights" / NAME).write_bytes(b"in weights")
    assert download.locate(NAME).read_bytes() == b"in weights"
    assert server.requests == []


@pytest.mark.parametrize("file", [NAME, f"weights/{NAME}", f"elsewhere/{NAME}"])
def test_a_published_name_is_downloaded_into_the_cache(places, published, file):
    published("good")
    assert download.locate(file) == places / "cache/retinanet_jax" / NAME


def test_a_url_is_downloaded_into_the_cache(places, server):
    path = download.locate(server.url("good/w.npz"))
    assert path.read_bytes() == CONTENT
    assert path.parent.parent == places / "cache/retinanet_jax"


def test_the_error_for_an_unknown_name_lists_the_known_ones(places):
    with pytest.raises(
        FileNotFoundError, match=r"resnet51\.pth does not exist, .*model_final_971ab9"
    ):
        download.locate("weights/resnet51.pth")
    assert everything(places) == []


def test_a_cache_that_cannot_be_written_is_named(places, published):
    published("good")
    (places / "cache").write_text("a file")
    with pytest.raises(OSError, match=rf"{NAME}: this folder .* set the .* XDG_CACHE_HOME to ano"):
        download.locate(NAME)


@pytest.mark.parametrize("weights", ["weights/resnet50.npz", "resnet50.npz", "resnet50"])
def test_resnet50_is_the_file_in_weights_or_else_that_of_keras(
    monkeypatch, places, server, weights
):
    """Its arrays are those of weights/resnet50.npz, which the default config names."""
    monkeypatch.setitem(KNOWN, KERAS_RESNET50, Published(server.url(f"good/{KERAS_RESNET50}")))
    assert named.locate(weights) == places / "cache/retinanet_jax" / KERAS_RESNET50
    (places / "weights").mkdir()
    (places / "weights/resnet50.npz").write_bytes(b"mine")
    assert named.locate(weights).read_bytes() == b"mine"
    assert len(server.requests) == 1


def test_the_weights_that_a_config_names_are_downloaded(config, places, published):
    """The error shows it: what the server sends is not a PyTorch file."""
    published("good")
    config.init.update(source="torchvision", path=f"weights/{NAME}")
    with pytest.raises(ValueError, match=f"weights file {places}/cache/retinanet_jax/{NAME} "):
        initialization.load_init_backbone(config)
