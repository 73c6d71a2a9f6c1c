"""Weights that others publish: which they are, and fetching them, checked before they appear.

torchvision writes the beginning of a file's SHA-256 into its name; detectron2 that of the MD5 (its
MODEL_ZOO.md says so). For the ImageNet weights that detectron2 starts from none is published.
"""

import hashlib
import http.client
import os
import pathlib
import re
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

from retinanet_jax.utils.progress import PROGRESS_INTERVAL, format_duration

SCHEMES = ("http://", "https://")
BESIDE = pathlib.Path("weights")  # where the recipes look for files
PIECE = 1 << 20  # bytes read at once
PATIENCE = 60.0  # seconds without a byte
# And not those of the disk, which are OSErrors too.
NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


class Published(NamedTuple):
    """A file that is known by name."""

    url: str
    algorithm: str = ""  # of hashlib; "": its authors publish no checksum
    prefix: str = ""  # what its hash begins with, in hexadecimal


TORCHVISION = "https://download.pytorch.org/models"
TORCHVISION_FILES = (
    # detectors (COCO)
    "retinanet_resnet50_fpn_coco-eeacb38b.pth",
    "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
    # classifiers (ImageNet): where there are two, IMAGENET1K_V1 and V2
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
    prefix = re.search(r"[-_]([0-9a-f]{6,8})\.\w+$", url)
    return Published(url, algorithm, prefix[1]) if prefix else Published(url)


# By file name.
KNOWN = {
    pathlib.PurePosixPath(path).name: _published(f"{host}/{path}", algorithm)
    for host, paths, algorithm in (
        (TORCHVISION, TORCHVISION_FILES, "sha256"),
        (DETECTRON2, DETECTRON2_FILES, "md5"),
    )
    for path in paths
}


def locate(wanted: str | os.PathLike) -> pathlib.Path:
    """The file that a path, a URL or the name of a published file stands for, fetched if need be.

    A path that exists is taken as it is. One that does not but ends in a published file's name
    (as the recipes' do) stands for that file: in the folder weights/, else in the user's cache.
    Raises FileNotFoundError for anything else, and as `fetch` does.
    """
    path = pathlib.Path(wanted).expanduser()
    if str(wanted).startswith(SCHEMES):
        return fetch(str(wanted), cache_folder())
    if path.exists():
        return path
    if path.name not in KNOWN:
        raise FileNotFoundError(
            f"{wanted} is no file, no URL and no published file's name; those that are known: "
            f"{', '.join(KNOWN)}."
        )
    beside = BESIDE / path.name
    return beside if beside.exists() else fetch(path.name, cache_folder())


def cache_folder() -> pathlib.Path:
    """Where fetched files stay."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "retinanet_jax"


def fetch(name_or_url: str, folder: pathlib.Path) -> pathlib.Path:
    """The path of a published file (KNOWN), or of what a URL gives, fetched into `folder`.

    What is there already is not fetched again. The file appears when it is complete and its
    checksum, where one is published, is right. Raises ValueError for an unknown name and for
    another checksum, OSError naming the URL, and where to put the file by hand, where the network
    does not give it.
    """
    if not name_or_url.startswith(SCHEMES) and name_or_url not in KNOWN:
        raise ValueError(f"{name_or_url!r} is no URL, and none of {', '.join(KNOWN)}.")
    published, path = _place(name_or_url, folder)
    if path.exists():
        _check(path, path, published)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # A folder of its own: several processes may fetch the same file.
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as partial:
        fetched = pathlib.Path(partial) / path.name
        _download(published.url, fetched, path)
        _check(fetched, path, published)
        path.parent.mkdir(exist_ok=True)
        fetched.replace(path)
    unchecked = "" if published.algorithm else "; not checked, for no checksum is published"
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB{unchecked}", flush=True)
    return path


def _place(name_or_url: str, folder: pathlib.Path) -> tuple[Published, pathlib.Path]:
    """What is to be fetched, and where it goes."""
    if name_or_url in KNOWN:
        return KNOWN[name_or_url], folder / name_or_url
    name = pathlib.PurePosixPath(urllib.parse.urlparse(name_or_url).path).name
    if not name:
        raise ValueError(f"{name_or_url} names no file; give the URL of one.")
    if name in KNOWN:  # a mirror: the same file from elsewhere
        return KNOWN[name]._replace(url=name_or_url), folder / name
    # Many a file is called model_final.pth.
    digest = hashlib.sha256(name_or_url.encode()).hexdigest()[:8]
    return Published(name_or_url), folder / digest / name


def _download(url: str, file: pathlib.Path, path: pathlib.Path) -> None:
    """Writes what `url` gives to `file`, telling how far it is; `path` is where it will be."""
    by_hand = f"fetch it where there is a network and put it at {path}."
    try:
        with (
            urllib.request.urlopen(url, timeout=PATIENCE) as response,
            file.open("wb") as opened,
        ):
            total = int(response.headers.get("Content-Length") or 0)
            print(f"fetching {url}", flush=True)
            done, began = 0, time.monotonic()
            told = began
            while piece := response.read(PIECE):
                opened.write(piece)
                done += len(piece)
                if time.monotonic() - told > PROGRESS_INTERVAL:
                    told = time.monotonic()
                    print(_progress(path.name, done, total, told - began), flush=True)
    except urllib.error.HTTPError as error:
        error.close()  # it is the response, too
        raise OSError(f"{url} answers {error.code} {error.reason}; {by_hand}") from None
    except NETWORK_ERRORS as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(f"{url} can't be reached ({reason}); {by_hand}") from None
    if total and done != total:
        raise OSError(f"{url} gave {done} of {total} bytes; run this again, or {by_hand}")


def _progress(name: str, done: int, total: int, seconds: float) -> str:
    if not total:
        return f"{name}: {done / 1e6:.0f} MB"
    left = format_duration(seconds * (total - done) / done)
    return f"{name}: {done / 1e6:.0f}/{total / 1e6:.0f} MB  {left} left"


def _check(file: pathlib.Path, path: pathlib.Path, published: Published) -> None:
    """Raises ValueError where `file`, which is or is to be `path`, is not what was published."""
    if not published.algorithm:
        return
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, published.algorithm).hexdigest()
    if not found.startswith(published.prefix):
        fix = f"remove {path} and run" if file == path else "nothing was kept; run"
        raise ValueError(
            f"{path.name} from {published.url} has the {published.algorithm} {found}, and the "
            f"published one begins with {published.prefix}; {fix} this again."
        )
