"""The format of a file of weights by its first bytes, and what a file without weights is instead.

The suffix only changes the text of errors: a `.pth` should be a file of PyTorch, but may be a
pickle, or the web page that a server sent in its place.
"""

import enum
import pathlib
import struct
import zipfile
from typing import BinaryIO

from retinanet_jax.weights import torch_file

ZIP = b"PK\x03\x04"
MAX_START = 1024  # bytes by which a file is recognized
ARCHIVES = {  # first bytes -> suffix
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ": ".xz",
    b"7z\xbc\xaf": ".7z",
    b"Rar!": ".rar",
}
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")
FOREIGN = {  # suffix -> format
    ".onnx": "an ONNX model",
    ".tflite": "a TensorFlow Lite model",
    ".pb": "a TensorFlow graph",
    ".engine": "a TensorRT engine",
    ".mlmodel": "a Core ML model",
}


class Format(enum.Enum):
    """A format of files of weights."""

    TORCH = enum.auto()
    SAFETENSORS = enum.auto()
    NPZ = enum.auto()
    HDF5 = enum.auto()
    PICKLE = enum.auto()


def recognize(file: BinaryIO, path: pathlib.Path) -> Format:
    """Return the format of an open file.

    Args:
        file: The file, at its start.
        path: Its path, for messages.

    Raises:
        ValueError: If it is certainly no file of weights; the message names what it is. Any other
            content is taken for a pickle.
    """
    start = file.read(MAX_START)
    what = _other_content(start, path)
    if what:
        raise ValueError(f"weights file {path} is {what}.")
    if start.startswith(ZIP):
        return _format_of_archive(file, path)
    if start.startswith(b"\x89HDF"):
        return Format.HDF5
    if _is_safetensors(start):
        return Format.SAFETENSORS
    return Format.TORCH if torch_file.is_sequence(start) else Format.PICKLE


def unreadable(path: pathlib.Path) -> ValueError:
    """Return the error for a file that is truncated, corrupt or of an unknown format."""
    return ValueError(
        f"weights file {path} is not a readable file of plain arrays; write or download it again."
    )


def _other_content(start: bytes, path: pathlib.Path) -> str:
    """Return what the file is and what to do, or "" if it may be a file of weights."""
    text = start.lstrip().lower()
    if not start:
        return "empty; write or download it again"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS and not the file itself, which `git lfs pull` downloads"
    if text.startswith(PAGES):
        return (
            "a web page, as servers send it in place of a file; download it again and look at "
            "what the browser shows"
        )
    if b'"weight_map"' in start:
        return "the index of weights in several files; save the state dict to one file"
    if start.startswith(b"\x93NUMPY"):
        return "one array of NumPy without a name; save the arrays by name with numpy.savez"
    if start[257:262] == b"ustar":
        return "an archive of tar; unpack it, and give the file of weights in it"
    for first, suffix in ARCHIVES.items():
        if start.startswith(first):
            return f"compressed ({suffix}); unpack it, and give the file of weights in it"
    if path.suffix.lower() in FOREIGN:
        return (
            f"{FOREIGN[path.suffix.lower()]}; give the weights from which it was exported, as "
            'torch.save(model.state_dict(), "weights.pth") writes them'
        )
    return ""


def _format_of_archive(file: BinaryIO, path: pathlib.Path) -> Format:
    """Return the format of a zip archive; ValueError if it contains other files."""
    try:
        names = zipfile.ZipFile(file).namelist()
    except Exception:  # parsers raise anything on unknown bytes
        raise unreadable(path) from None
    if names and all(name.endswith(".npy") for name in names):
        return Format.NPZ
    if any(f"/{name}".endswith("/data.pkl") for name in names):
        return Format.TORCH
    if any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in names):
        what = "a program of torch.export; save the state dict of the model that was exported"
    else:
        what = "an archive of zip; unpack it, and give the file of weights in it"
    raise ValueError(f"weights file {path} is {what}.")


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a JSON object, and the object."""
    if len(start) < 9 or start[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", start[:8])
    return length < 1 << 32
