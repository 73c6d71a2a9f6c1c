"""The weights that torchvision, detectron2, Keras and timm publish, and their download.

A downloaded file appears when it is complete and its checksum is right. torchvision has the first
digits of a file's SHA-256 in its name, detectron2 those of its MD5 (see its MODEL_ZOO.md), Keras an
MD5 in its code, and the host of timm's files their SHA-256; for the ImageNet weights that
detectron2 starts from no checksum is published.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from retinanet_jax.utils.download import (
    CHUNK,
    DownloadError,
    is_url,
    num_bytes_of,
    opened_url,
    public_url,
    split_url,
)
from retinanet_jax.utils.files import make_writable
from retinanet_jax.utils.paths import cache_folder
from retinanet_jax.utils.progress import make_progress

WEIGHTS_FOLDER = pathlib.Path("weights")  # where the configs expect files


class Published(NamedTuple):
    """A file that can be downloaded."""

    url: str
    algorithm: str = ""  # of hashlib; "" if no checksum is published
    prefix: str = ""  # first hexadecimal digits of the checksum
    license: str = ""  # as its publisher states


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
    # classifier (ImageNet) of FAIR
    "ImageNetPretrained/FAIR/X-101-32x8d.pkl",
)
# The classifiers (ImageNet) of the paper's authors, which are of He et al.
MSRA_FILES = ("ImageNetPretrained/MSRA/R-50.pkl", "ImageNetPretrained/MSRA/R-101.pkl")
KERAS = "https://github.com/fchollet/deep-learning-models/releases/download/v0.2"
KERAS_RESNET50 = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
KERAS_MD5 = "a268eb855778b3df3c7506639542a6af"
# The ResNet-50 of https://arxiv.org/abs/2110.00476 (procedure A1). Its host calls each model's file
# model.safetensors.
TIMM = "https://huggingface.co/timm"
TIMM_RESNET50 = "resnet50.a1_in1k.safetensors"
TIMM_SHA256 = "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb"
# A file that the configs name -> the published one with the same arrays.
SAME_ARRAYS = {"resnet50.npz": KERAS_RESNET50}


def _published(url: str, algorithm: str, terms: str) -> Published:
    """Return the file at a URL of which the name may contain a checksum."""
    prefix = re.search(r"[-_]([0-9a-f]{6,8})\.\w+$", url)
    checksum = (algorithm, prefix[1]) if prefix else ("", "")
    return Published(url, *checksum, terms)


# File name -> file.
KNOWN = {
    pathlib.PurePosixPath(path).name: _published(f"{host}/{path}", algorithm, terms)
    for host, paths, algorithm, terms in (
        (TORCHVISION, TORCHVISION_FILES, "sha256", "BSD-3-Clause"),
        (DETECTRON2, DETECTRON2_FILES, "md5", "CC BY-SA 3.0"),
        (DETECTRON2, MSRA_FILES, "md5", "MIT"),
    )
    for path in paths
}
KNOWN[KERAS_RESNET50] = Published(f"{KERAS}/{KERAS_RESNET50}", "md5", KERAS_MD5, "MIT")
KNOWN[TIMM_RESNET50] = Published(
    f"{TIMM}/resnet50.a1_in1k/resolve/main/model.safetensors", "sha256", TIMM_SHA256, "Apache-2.0"
)


def locate(file: str | os.PathLike) -> pathlib.Path:
    """Return the path of a file of weights, which is downloaded if necessary.

    Args:
        file: A path, a URL, or the name of a published file. A path that does not exist but ends in
            a published file's name, or in one of SAME_ARRAYS, stands for that file in the folder
            weights/ or else in the user's cache.

    Raises:
        FileNotFoundError: If there is no such file, and no published file of this name.
        DownloadError: If the file cannot be downloaded.
        ValueError: If its checksum is wrong.
    """
    path = pathlib.Path(file).expanduser()
    if is_url(str(file)):
        return fetch(str(file), cache_folder())
    if path.exists():
        return path
    name = SAME_ARRAYS.get(path.name, path.name)
    if name not in KNOWN:
        raise FileNotFoundError(
            f"{file} does not exist, and is neither a URL nor a published file's name; the known "
            f"names are {', '.join(KNOWN)}."
        )
    for local in (name, *(other for other, same in SAME_ARRAYS.items() if same == name)):
        if (WEIGHTS_FOLDER / local).exists():
            return WEIGHTS_FOLDER / local
    return fetch(name, cache_folder())


def locate_checked(name: str) -> pathlib.Path:
    """Return the path of a published file, as `locate` does, after a check of its content.

    Args:
        name: One of KNOWN.

    Raises:
        DownloadError: If the file cannot be downloaded.
        ValueError: If its checksum is wrong.
    """
    path = locate(name)
    _check(path, KNOWN[name], fix=f"remove {path} and run this again")
    return path


def fetch(name_or_url: str, folder: pathlib.Path) -> pathlib.Path:
    """Return the path of a published file in `folder`, where it is downloaded unless it is there.

    Args:
        name_or_url: The name of a published file (KNOWN), or the URL of any file.
        folder: The folder of downloaded files; it is created if necessary.

    Raises:
        DownloadError: If the file cannot be downloaded; the message has the URL, and the path at
            which to put the file by hand.
        OSError: If the folder cannot be written.
        ValueError: If the name is unknown, or the file's checksum is wrong.
    """
    if not is_url(name_or_url) and name_or_url not in KNOWN:
        raise ValueError(
            f"{name_or_url!r} is neither a URL nor a published file's name; the known names are "
            f"{', '.join(KNOWN)}."
        )
    published, path = _place(name_or_url, folder)
    if path.exists():
        _check(path, published, fix=f"remove {path} and run this again")
        return path
    with errors_of_the_disk(path):
        make_writable(folder)
        # Each process downloads into a folder of its own, since several may fetch the same file.
        with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as partial:
            draft = pathlib.Path(partial) / path.name
            _download(published, draft, path)
            _check(draft, published, fix="the file was removed, run this again")
            path.parent.mkdir(exist_ok=True)
            draft.replace(path)
    return path


@contextlib.contextmanager
def errors_of_the_disk(path: pathlib.Path) -> Iterator[None]:
    """Name a path in the cache, and how to choose another cache, in an error of writing it."""
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise OSError(
            f"{path}: this folder of downloaded files cannot be written "
            f"({error.strerror or error}); set the environment variable XDG_CACHE_HOME to another "
            "folder, on a disk with free space."
        ) from None


def _place(name_or_url: str, folder: pathlib.Path) -> tuple[Published, pathlib.Path]:
    """Return the file to download, and its path in `folder`."""
    if name_or_url in KNOWN:
        return KNOWN[name_or_url], folder / name_or_url
    name = pathlib.PurePosixPath(split_url(name_or_url).path).name
    if not name:
        raise ValueError(f"{public_url(name_or_url)} names no file; give the URL of a file.")
    if name in KNOWN:  # a mirror: the same file from another host
        return KNOWN[name]._replace(url=name_or_url), folder / name
    # Many different files are called model_final.pth.
    digest = hashlib.sha256(name_or_url.encode()).hexdigest()[:8]
    return Published(name_or_url), folder / digest / name


def _download(published: Published, draft: pathlib.Path, path: pathlib.Path) -> None:
    """Write the content of a file to `draft` and print progress; `path` is its final place."""
    url = published.url
    by_hand = f"download it where there is a network, put it at {path} and run this again."
    with opened_url(url, by_hand) as response, draft.open("wb") as opened:
        total, done = num_bytes_of(response), 0
        print(f"downloading {url} to {path}{_details(published, total)}", flush=True)
        progress = make_progress(path.name, total / 1e6 or None, "MB")
        while chunk := response.read(CHUNK):
            opened.write(chunk)
            done += len(chunk)
            if done != total:  # a fast download has no line but the first
                progress(done / 1e6)
    if total and done != total:
        raise DownloadError(f"{url} sent {done} of {total} bytes; run this again, or {by_hand}")


def _details(published: Published, num_bytes: int) -> str:
    """Return in parentheses what is known of a file; "" if nothing is."""
    details = [f"{num_bytes / 1e6:.0f} MB"] if num_bytes else []
    details += [published.license] if published.license else []
    details += [] if published.algorithm else ["not checked, since no checksum is published"]
    return f" ({'; '.join(details)})" if details else ""


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
