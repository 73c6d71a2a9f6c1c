"""The weights that torchvision and detectron2 publish, and their download.

A downloaded file appears when it is complete and its checksum is right. torchvision has the first
digits of a file's SHA-256 in its name, detectron2 those of its MD5 (see its MODEL_ZOO.md); for the
ImageNet weights that detectron2 starts from no checksum is published.
"""

import hashlib
import http.client
import os
import pathlib
import re
import ssl
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

from retinanet_jax.utils.progress import make_progress

SCHEMES = ("http://", "https://")
WEIGHTS_FOLDER = pathlib.Path("weights")  # where the configs expect files
CHUNK = 1 << 20  # bytes per read
TIMEOUT = 60.0  # seconds without a byte
# The errors of a connection; those of the disk are OSErrors too.
NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


class Published(NamedTuple):
    """A file that can be downloaded."""

    url: str
    algorithm: str = ""  # of hashlib; "" if no checksum is published
    prefix: str = ""  # first hexadecimal digits of the checksum


TORCHVISION = "https://download.pytorch.org/models"
TORCHVISION_FILES = (
    # detectors (COCO)
    "retinanet_resnet50_fpn_coco-eeacb38b.pth",
    "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
    # classifiers (ImageNet); the first of two is IMAGENET1K_V1, the second V2
    "resnet18-f37072fd.pth",
    "resnet34-b627a593.pth",
    "resnet50-0676ba61.pth",
    "resnet50-11ad3fa6.pth",
    "resnet101-63fe2227.pth",
    "resnet101-cd907fc2.pth",
    "resnet152-394f9c45.pth",
    "resnet152-f82ba261.pth",
    "resnext50_32x4d-7cdf4587.pth",
    "resnext50_32x4d-1a0047aa.pth",
    "resnext101_32x8d-8ba56ff5.pth",
    "resnext101_32x8d-110c445d.pth",
    "resnext101_64x4d-173b62eb.pth",
)
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2"
DETECTRON2_FILES = (
    # detectors (COCO): R50 1x, R50 3x, R101 3x
    "COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl",
    "COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl",
    "COCO-Detection/retinanet_R_101_FPN_3x/190397697/model_final_971ab9.pkl",
    # classifiers (ImageNet)
    "ImageNetPretrained/MSRA/R-50.pkl",
    "ImageNetPretrained/MSRA/R-101.pkl",
    "ImageNetPretrained/FAIR/X-101-32x8d.pkl",
)


def _published(url: str, algorithm: str) -> Published:
    """Return the file at a URL of which the name may contain a checksum."""
    prefix = re.search(r"[-_]([0-9a-f]{6,8})\.\w+$", url)
    return Published(url, algorithm, prefix[1]) if prefix else Published(url)


# File name -> file.
KNOWN = {
    pathlib.PurePosixPath(path).name: _published(f"{host}/{path}", algorithm)
    for host, paths, algorithm in (
        (TORCHVISION, TORCHVISION_FILES, "sha256"),
        (DETECTRON2, DETECTRON2_FILES, "md5"),
    )
    for path in paths
}


def locate(file: str | os.PathLike) -> pathlib.Path:
    """Return the path of a file of weights, which is downloaded if necessary.

    Args:
        file: A path, a URL, or the name of a published file. A path that does not exist but ends in
            a published file's name, as in the configs, stands for that file in the folder weights/
            or else in the user's cache.

    Raises:
        FileNotFoundError: If there is no such file, and no published file of this name.
        OSError: If the file cannot be downloaded.
        ValueError: If its checksum is wrong.
    """
    path = pathlib.Path(file).expanduser()
    if str(file).startswith(SCHEMES):
        return fetch(str(file), cache_folder())
    if path.exists():
        return path
    if path.name not in KNOWN:
        raise FileNotFoundError(
            f"{file} does not exist, and is neither a URL nor a published file's name; the known "
            f"names are {', '.join(KNOWN)}."
        )
    local = WEIGHTS_FOLDER / path.name
    return local if local.exists() else fetch(path.name, cache_folder())


def cache_folder() -> pathlib.Path:
    """Return the user's folder of downloaded files."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "retinanet_jax"


def fetch(name_or_url: str, folder: pathlib.Path) -> pathlib.Path:
    """Return the path of a published file in `folder`, where it is downloaded unless it is there.

    Args:
        name_or_url: The name of a published file (KNOWN), or the URL of any file.
        folder: The folder of downloaded files; it is created if necessary.

    Raises:
        OSError: If the file cannot be downloaded; the message has the URL, and the path at which to
            put the file by hand.
        ValueError: If the name is unknown, or the file's checksum is wrong.
    """
    if not name_or_url.startswith(SCHEMES) and name_or_url not in KNOWN:
        raise ValueError(
            f"{name_or_url!r} is neither a URL nor a published file's name; the known names are "
            f"{', '.join(KNOWN)}."
        )
    published, path = _place(name_or_url, folder)
    if path.exists():
        _check(path, published, fix=f"remove {path} and run this again")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Each process downloads into a folder of its own, since several may fetch the same file.
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as partial:
        draft = pathlib.Path(partial) / path.name
        _download(published.url, draft, path)
        _check(draft, published, fix="the file was removed, run this again")
        path.parent.mkdir(exist_ok=True)
        draft.replace(path)
    unchecked = "" if published.algorithm else "; not checked, since no checksum is published"
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB{unchecked}", flush=True)
    return path


def _place(name_or_url: str, folder: pathlib.Path) -> tuple[Published, pathlib.Path]:
    """Return the file to download, and its path in `folder`."""
    if name_or_url in KNOWN:
        return KNOWN[name_or_url], folder / name_or_url
    name = pathlib.PurePosixPath(urllib.parse.urlparse(name_or_url).path).name
    if not name:
        raise ValueError(f"{name_or_url} names no file; give the URL of a file.")
    if name in KNOWN:  # a mirror: the same file from another host
        return KNOWN[name]._replace(url=name_or_url), folder / name
    # Many different files are called model_final.pth.
    digest = hashlib.sha256(name_or_url.encode()).hexdigest()[:8]
    return Published(name_or_url), folder / digest / name


def _download(url: str, draft: pathlib.Path, path: pathlib.Path) -> None:
    """Write the content of `url` to `draft` and print progress; `path` is its final place."""
    by_hand = f"download it where there is a network and put it at {path}."
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as response,
            draft.open("wb") as opened,
        ):
            total, done = int(response.headers.get("Content-Length") or 0), 0
            print(f"downloading {url}", flush=True)
            progress = make_progress(path.name, total / 1e6 or None, "MB")
            while chunk := response.read(CHUNK):
                opened.write(chunk)
                done += len(chunk)
                progress(done / 1e6)
    except urllib.error.HTTPError as error:
        error.close()  # it is also the response
        raise OSError(f"{url} answers {error.code} {error.reason}; {by_hand}") from None
    except NETWORK_ERRORS as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(f"{url} cannot be reached ({reason}); {by_hand}") from None
    if total and done != total:
        raise OSError(f"{url} sent {done} of {total} bytes; run this again, or {by_hand}")


def _check(file: pathlib.Path, published: Published, fix: str) -> None:
    """Raise ValueError, with the `fix`, if a file has another checksum than the published one."""
    if not published.algorithm:
        return
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, published.algorithm).hexdigest()
    if not digest.startswith(published.prefix):
        raise ValueError(
            f"{file.name} from {published.url} has the {published.algorithm} {digest}, but that of "
            f"the published file begins with {published.prefix}; {fix}."
        )
