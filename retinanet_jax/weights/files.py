"""Files of weights: arrays by name, read and written by the file's suffix.

PyTorch and safetensors are imported only where a file needs them.
"""

import importlib
import pathlib
import tempfile
import types
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retinanet_jax.weights import unpickle

# A checkpoint with more than the weights has them under one of these keys: PyTorch's training
# scripts and detectron2 write the first two, Detectron the last.
WEIGHTS_KEYS = ("model", "state_dict", "blobs")


def load_arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by name, without running code that the file contains.

    Args:
        path: An .npz, .pth, .pt, .safetensors or .pkl file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is unknown, the library that reads it is not installed, or the
            file is truncated, corrupt, or contains anything but arrays by name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        # Only .npz files are written by this project itself.
        is_own = path.suffix in ("", ".npz")
        fix = (
            "scripts/get_resnet50.py writes one." if is_own else "give the path of an existing one."
        )
        raise FileNotFoundError(f"weights file {path} does not exist; {fix}")
    if path.suffix not in READERS:
        raise ValueError(f"weights file {path} must end in one of {', '.join(READERS)}.")
    return READERS[path.suffix](path)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read numpy's archive; arrays of objects are refused."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # TypeError: a plain .npy is an array, which is no context manager. The cause is not quoted: for
    # any unknown content numpy recommends unpickling.
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        raise _unreadable(path) from None


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read PyTorch's file; floating-point tensors become float32."""
    torch = _import_library("torch", path)

    def to_array(value: Any) -> np.ndarray | None:
        if not isinstance(value, torch.Tensor):
            return None
        # numpy has no bfloat16.
        return (value.detach().float() if value.is_floating_point() else value).numpy()

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # parsers raise anything on unknown bytes
        raise _unreadable(path) from None
    return _arrays_by_name(path, content, to_array)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a safetensors file."""
    safetensors = _import_library("safetensors.numpy", path)
    try:
        return safetensors.load_file(path)
    except Exception:  # parsers raise anything on unknown bytes
        raise _unreadable(path) from None


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a pickle of arrays, as detectron2 and Detectron publish them."""

    def to_array(value: Any) -> np.ndarray | None:
        return value.array if isinstance(value, unpickle.Array) else None

    try:
        with path.open("rb") as file:
            content = unpickle.load(file)
    except unpickle.RefusedError as error:
        raise ValueError(
            f"weights file {path} uses {error}, and loading that could run any code; only plain "
            "arrays and containers are read."
        ) from None
    except Exception:  # parsers raise anything on unknown bytes
        raise _unreadable(path) from None
    return _arrays_by_name(path, content, to_array)


READERS: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": _read_safetensors,
    ".pkl": _read_pickle,
}


def save_arrays(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to a file, completely or not at all.

    Args:
        path: An .npz, .pth, .pt or .safetensors file; missing parent folders are created.
        arrays: The arrays by name.

    Raises:
        ValueError: If the suffix is unknown, or the library that writes it is not installed.
    """
    path = pathlib.Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(f"weights file {path} must end in one of {', '.join(WRITERS)}.")
    write = WRITERS[path.suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own the draft has the suffix that numpy requires, and replaces no file.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
        draft = pathlib.Path(folder) / path.name
        write(draft, dict(arrays))
        draft.replace(path)


def _write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write numpy's archive."""
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


def _write_torch(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write PyTorch's file of tensors."""
    torch = _import_library("torch", path)
    torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, path)


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a safetensors file."""
    _import_library("safetensors.numpy", path).save_file(arrays, path)


WRITERS: dict[str, Callable[[pathlib.Path, dict[str, np.ndarray]], None]] = {
    ".npz": _write_npz,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".safetensors": _write_safetensors,
}


def _arrays_by_name(
    path: pathlib.Path, content: Any, to_array: Callable[[Any], np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Return the arrays of a file's content; ValueError if it contains anything else."""
    if isinstance(content, dict):
        for key in WEIGHTS_KEYS:
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict):
        raise ValueError(
            f"weights file {path} contains a {type(content).__name__} and not arrays by name; give "
            "a file with a dict of arrays."
        )
    arrays = {}
    for name, value in content.items():
        array = to_array(value)
        if array is None or not isinstance(name, str):
            raise ValueError(
                f"weights file {path} contains a {type(value).__name__} under {name!r}; only "
                f"arrays by name are read, at the top or under one of {', '.join(WEIGHTS_KEYS)}."
            )
        arrays[name] = array
    return arrays


def _import_library(name: str, path: pathlib.Path) -> types.ModuleType:
    """Import a module that the file needs; ValueError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(
            f"weights file {path} needs {package}, which is not installed; pip install {package}, "
            "or where it is installed write the arrays to an .npz with numpy.savez."
        ) from None


def _unreadable(path: pathlib.Path) -> ValueError:
    """Return the error for a file that is truncated, corrupt or of another format."""
    return ValueError(
        f"weights file {path} is not a readable {path.suffix} file of plain arrays; "
        "write or download it again."
    )
