"""Files of weights by their suffix -> arrays by name, and back.

PyTorch and safetensors are asked for only where a file needs them.
"""

import importlib
import pathlib
import types
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retinanet_jax.weights import unpickle

# Where a checkpoint holds more than the weights, they are under one of these: PyTorch's training
# scripts and detectron2 write the first two, Detectron the last.
WEIGHTS_KEYS = ("model", "state_dict", "blobs")


def load_arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz, .pth, .pt, .safetensors or .pkl file by name.

    Nothing that the file could ask to run is run. Raises FileNotFoundError where there is no such
    file, and ValueError where its suffix is another, the library that reads it is not installed,
    or it is truncated, corrupt, or holds anything but plain arrays by name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        # The only file that this project makes by itself.
        written = path.suffix in ("", ".npz")
        fix = (
            "scripts/get_resnet50.py writes one." if written else "give the path of one that does."
        )
        raise FileNotFoundError(f"weights file {path} does not exist; {fix}")
    if path.suffix not in READERS:
        raise ValueError(f"weights file {path} must end in one of {', '.join(READERS)}.")
    return READERS[path.suffix](path)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # TypeError: a plain .npy is an array, which `with` does not take. The cause is not quoted: for
    # anything unknown numpy advises to unpickle it.
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        raise _unreadable(path) from None


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _library("torch", path)

    def to_array(value: Any) -> np.ndarray | None:
        if not isinstance(value, torch.Tensor):
            return None
        # As float32, since numpy lacks bfloat16.
        return (value.detach().float() if value.is_floating_point() else value).numpy()

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever foreign bytes make a parser raise
        raise _unreadable(path) from None
    return _by_name(path, loaded, to_array)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = _library("safetensors.numpy", path)
    try:
        return safetensors.load_file(path)
    except Exception:  # whatever foreign bytes make a parser raise
        raise _unreadable(path) from None


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    def to_array(value: Any) -> np.ndarray | None:
        return value.array if isinstance(value, unpickle.Array) else None

    try:
        with path.open("rb") as file:
            loaded = unpickle.load(file)
    except unpickle.RefusedError as error:
        raise ValueError(
            f"weights file {path} asks for {error}, and loading it could run anything; only plain "
            "arrays and containers are read."
        ) from None
    except Exception:  # whatever foreign bytes make a parser raise
        raise _unreadable(path) from None
    return _by_name(path, loaded, to_array)


READERS: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": _read_safetensors,
    ".pkl": _read_pickle,
}


def save_arrays(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to an .npz, .pth, .pt or .safetensors file, complete or not at all.

    Raises ValueError where the suffix is another or the library that writes it is not installed.
    """
    path = pathlib.Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(f"weights file {path} must end in one of {', '.join(WRITERS)}.")
    write = WRITERS[path.suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial{path.suffix}")  # numpy would add a suffix of its own
    try:
        write(partial, dict(arrays))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


def _write_torch(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    torch = _library("torch", path)
    torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, path)


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    _library("safetensors.numpy", path).save_file(arrays, path)


WRITERS: dict[str, Callable[[pathlib.Path, dict[str, np.ndarray]], None]] = {
    ".npz": _write_npz,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".safetensors": _write_safetensors,
}


def _by_name(
    path: pathlib.Path, loaded: Any, to_array: Callable[[Any], np.ndarray | None]
) -> dict[str, np.ndarray]:
    """The arrays of what a file held; ValueError where there is something else among them."""
    if isinstance(loaded, dict):
        for key in WEIGHTS_KEYS:
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
                break
    if not isinstance(loaded, dict):
        raise ValueError(f"weights file {path} holds a {type(loaded).__name__}, no arrays by name.")
    arrays = {}
    for name, value in loaded.items():
        array = to_array(value)
        if array is None or not isinstance(name, str):
            raise ValueError(
                f"weights file {path} holds a {type(value).__name__} under {name!r}; only arrays "
                f"by name are read, at its top or under one of {', '.join(WEIGHTS_KEYS)}."
            )
        arrays[name] = array
    return arrays


def _library(name: str, path: pathlib.Path) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(
            f"weights file {path} needs {package}, which is not installed; pip install {package}, "
            "or where that is installed write the arrays to an .npz with numpy.savez."
        ) from None


def _unreadable(path: pathlib.Path) -> ValueError:
    return ValueError(
        f"weights file {path} is not a readable {path.suffix} of plain arrays; "
        "write or download it again."
    )
