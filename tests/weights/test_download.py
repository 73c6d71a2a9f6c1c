"""Fetching published weights: whole and checked, or not there; every failure says what to do."""

import hashlib
import http.server
import os
import re
import threading

import pytest

from retinanet_jax.training import initialization
from retinanet_jax.weights import download
from retinanet_jax.weights.download import KNOWN, Published

CONTENT = bytes(range(256)) * 5_000  # more than one piece
NAME = "resnet50-0676ba61.pth"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Gives CONTENT under /good/..., and what else its paths say."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "absent":
            self.send_error(404)
            return
        self.send_response(200)
        if kind != "nolength":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if kind == "short" else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def published(monkeypatch, server):
    """`published(kind, ...)`: the file NAME is known, and the server gives it as `kind` says."""

    def published(kind, algorithm="sha256", prefix=SHA256[:8]):
        known = Published(server.url(f"{kind}/{NAME}"), algorithm, prefix)
        monkeypatch.setitem(KNOWN, NAME, known)

    return published


def everything(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- what is known


def test_checksums_are_those_in_the_names():
    for name, known in KNOWN.items():
        assert known.url.startswith("https://")
        assert known.url.endswith(f"/{name}")
        if known.algorithm == "sha256":
            assert name.endswith(f"-{known.prefix}.pth")
            assert len(known.prefix) == 8
        elif known.algorithm == "md5":
            assert name == f"model_final_{known.prefix}.pkl"
            assert len(known.prefix) == 6
    unchecked = {name for name, known in KNOWN.items() if not known.algorithm}
    assert unchecked == {"R-50.pkl", "R-101.pkl", "X-101-32x8d.pkl"}
    assert KNOWN["retinanet_resnet50_fpn_coco-eeacb38b.pth"] == Published(
        "https://download.pytorch.org/models/retinanet_resnet50_fpn_coco-eeacb38b.pth",
        "sha256",
        "eeacb38b",
    )
    assert KNOWN["model_final_5bd44e.pkl"].prefix == "5bd44e"


# ---- fetching


@pytest.mark.parametrize(
    ("algorithm", "prefix"),
    [("sha256", SHA256[:8]), ("md5", hashlib.md5(CONTENT).hexdigest()[:6]), ("", "")],
)
@pytest.mark.parametrize("kind", ["good", "nolength"])
def test_a_published_file_is_fetched_once(
    server, published, tmp_path, capsys, kind, algorithm, prefix
):
    published(kind, algorithm, prefix)
    path = download.fetch(NAME, tmp_path / "cache")
    assert path == tmp_path / "cache" / NAME
    assert path.read_bytes() == CONTENT
    told = capsys.readouterr().out
    assert told.startswith(f"fetching {KNOWN[NAME].url}\n")
    assert ("not checked" in told) == (not algorithm)
    assert everything(tmp_path) == ["cache", f"cache/{NAME}"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # others may read what is shared

    assert download.fetch(NAME, tmp_path / "cache") == path
    assert len(server.asked) == 1
    assert capsys.readouterr().out == ""


def test_progress_and_the_time_left_are_told(monkeypatch, published, tmp_path, capsys):
    published("good")
    monkeypatch.setattr(download, "PROGRESS_INTERVAL", -1.0)
    download.fetch(NAME, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{NAME}: 1/1 MB  \d+ min \d\d s left", lines[1])
    assert lines[-1] == f"{tmp_path / NAME}: 1 MB"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("short", r"gave 640000 of 1280000 bytes; run this again, or fetch it"),
        ("absent", r"answers 404 Not Found; fetch it where there is a network and put it at"),
    ],
)
def test_a_failure_names_the_url_and_the_place_and_leaves_nothing(published, tmp_path, kind, told):
    published(kind)
    folder = tmp_path / "cache"
    with pytest.raises(OSError, match=told) as error:
        download.fetch(NAME, folder)
    assert str(error.value).startswith(KNOWN[NAME].url)
    assert str(error.value).endswith(f"put it at {folder / NAME}.")
    assert "\n" not in str(error.value)
    assert everything(folder) == []
    published("good")  # and then it works
    assert download.fetch(NAME, folder).read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a/w.pth", "http://nowhere.invalid/a/w.pth"])
def test_without_a_network_the_line_says_what_to_fetch_and_where_to_put_it(
    monkeypatch, tmp_path, url
):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match=rf"^{url} can't be reached \(.*\); fetch it where") as error:
        download.fetch(url, tmp_path)
    place = str(error.value).split("put it at ")[1].rstrip(".")
    assert everything(tmp_path) == []
    # What is put there is taken.
    os.makedirs(os.path.dirname(place))
    with open(place, "wb") as file:
        file.write(CONTENT)
    assert download.fetch(url, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused(published, tmp_path):
    published("good", prefix="00000000")
    told = rf"{NAME} from http.* has the sha256 {SHA256}, .* begins with 00000000; nothing was kept"
    with pytest.raises(ValueError, match=told):
        download.fetch(NAME, tmp_path)
    assert everything(tmp_path) == []


def test_a_file_put_there_by_hand_is_checked_too(server, published, tmp_path):
    published("good")
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=f"begins with {SHA256[:8]}; remove {tmp_path / NAME} and"):
        download.fetch(NAME, tmp_path)
    assert (tmp_path / NAME).exists()
    assert server.asked == []


def test_a_mirror_of_a_known_file_is_held_to_its_checksum(server, published, tmp_path):
    published("good", prefix="00000000")
    with pytest.raises(ValueError, match="begins with 00000000"):
        download.fetch(server.url(f"mirror/{NAME}"), tmp_path)
    published("good")
    assert download.fetch(server.url(f"mirror/{NAME}"), tmp_path) == tmp_path / NAME


def test_two_files_of_one_name_do_not_meet(server, tmp_path, capsys):
    urls = [server.url(f"good/{folder}/model_final.pth") for folder in "ab"]
    one, other = (download.fetch(url, tmp_path) for url in urls)
    assert one != other
    assert one.name == other.name == "model_final.pth"
    assert "not checked" in capsys.readouterr().out
    assert download.fetch(urls[0], tmp_path) == one
    assert len(server.asked) == 2


def test_an_interrupted_fetch_leaves_nothing(monkeypatch, published, tmp_path):
    published("good")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_progress", interrupted)
    monkeypatch.setattr(download, "PROGRESS_INTERVAL", -1.0)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(NAME, tmp_path)
    assert everything(tmp_path) == []


def test_processes_that_fetch_the_same_file_do_not_disturb_each_other(published, tmp_path):
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


@pytest.mark.parametrize("wanted", ["resnet50.pth", "ftp://somewhere/w.pth"])
def test_what_is_neither_known_nor_a_url_is_refused(tmp_path, wanted):
    with pytest.raises(ValueError, match=f"{wanted!r} is no URL, and none of .*eeacb38b"):
        download.fetch(wanted, tmp_path)
    with pytest.raises(ValueError, match="names no file"):
        download.fetch("http://somewhere/", tmp_path)


# ---- where files are looked for


@pytest.fixture
def places(monkeypatch, tmp_path):
    """An empty current folder, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "retinanet_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(download.cache_folder()) == "/home/someone/.cache/retinanet_jax"


def test_a_file_that_is_there_is_taken_as_it_is(places, server, published):
    published("absent")
    (places / NAME).write_bytes(b"mine")
    assert download.locate(NAME).read_bytes() == b"mine"
    (places / NAME).rename(places / "mine.npz")
    assert download.locate(places / "mine.npz") == places / "mine.npz"
    (places / "weights").mkdir()
    (places / "weights" / NAME).write_bytes(b"beside")
    assert download.locate(NAME).read_bytes() == b"beside"
    assert server.asked == []


@pytest.mark.parametrize("wanted", [NAME, f"weights/{NAME}", f"elsewhere/{NAME}"])
def test_a_published_name_is_fetched_into_the_cache(places, published, wanted):
    published("good")
    assert download.locate(wanted) == places / "cache/retinanet_jax" / NAME


def test_a_url_is_fetched_into_the_cache(places, server):
    path = download.locate(server.url("good/w.npz"))
    assert path.read_bytes() == CONTENT
    assert path.parent.parent == places / "cache/retinanet_jax"


def test_an_unknown_name_lists_the_known_ones(places):
    with pytest.raises(FileNotFoundError, match=r"resnet51\.pth is no file, .*model_final_971ab9"):
        download.locate("weights/resnet51.pth")
    assert everything(places) == []


def test_the_weights_that_a_recipe_names_are_fetched(config, places, published):
    """Told from the error: what the server gives is no PyTorch file."""
    published("good")
    config.init.update(source="torchvision", path=f"weights/{NAME}")
    with pytest.raises(ValueError, match=f"weights file {places}/cache/retinanet_jax/{NAME} "):
        initialization.load_init_backbone(config)
