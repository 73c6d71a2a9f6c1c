"""Files of weights: arrays by name, read and written by the file's suffix.

No file needs PyTorch; safetensors is imported only where a file needs it.
"""

import importlib
import pathlib
import tempfile
import types
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from retinanet_jax.weights import hdf5, torch_file, unpickle, wrappers
from retinanet_jax.weights.unpickle import MAX_LENGTH


def load_arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by name, without running code that the file contains.

    In a checkpoint they are those of `wrappers.state_dict`. The names are the network's own,
    without the prefix of a wrapper (`wrappers.without_prefix`).

    Args:
        path: A file with one of the suffixes READERS.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is unknown, the library that reads it is not installed, or the
            file is truncated, corrupt, or contains anything but arrays by name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights file {path} does not exist; give the path of an existing one."
        )
    if path.suffix not in READERS:
        raise ValueError(f"weights file {path} must end in one of {', '.join(READERS)}.")
    return wrappers.without_prefix(READERS[path.suffix](path), path)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read numpy's archive; arrays of objects are refused."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # TypeError: a plain .npy is an array, which is no context manager. The cause is not quoted: for
    # any unknown content numpy recommends unpickling.
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        raise _unreadable(path) from None


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a safetensors file."""
    safetensors = _import_library("safetensors.numpy", path)
    try:
        return safetensors.load_file(path)
    except Exception:  # parsers raise anything on unknown bytes
        raise _unreadable(path) from None


def _read_hdf5(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a file of Keras."""
    _import_library("h5py", path)
    try:
        return hdf5.read(path)
    except Exception:  # parsers raise anything on unknown bytes
        raise _unreadable(path) from None


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a pickle of arrays, as detectron2 and Detectron publish them."""
    return _read_state_dict(path, unpickle.load)


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a file that torch.save wrote; floating-point tensors become float32."""
    return _read_state_dict(path, torch_file.load)


def _read_state_dict(path: pathlib.Path, load: Callable[[BinaryIO], Any]) -> dict[str, np.ndarray]:
    """Read the arrays of a file by a function that returns its containers."""
    with path.open("rb") as file:
        try:
            content = load(file)
        except unpickle.RefusedError as error:
            raise ValueError(f"weights file {path} {error}.") from None
        except Exception:  # parsers raise anything on unknown bytes
            raise _unreadable(path) from None
        arrays = {}
        for name, array in wrappers.state_dict(content, path).items():
            try:
                arrays[name] = array.read()
            except unpickle.RefusedError as error:
                raise ValueError(
                    f"weights file {path} contains {error} under {name[:MAX_LENGTH]!r}; only "
                    "booleans, integers and real floats are read."
                ) from None
            except Exception:
                raise _unreadable(path) from None
    return arrays


READERS: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".ckpt": _read_torch,
    ".tar": _read_torch,  # checkpoint.pth.tar of PyTorch's ImageNet script is no archive of tar
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
    ".pkl": _read_pickle,
    ".h5": _read_hdf5,
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


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a safetensors file."""
    _import_library("safetensors.numpy", path).save_file(arrays, path)


WRITERS: dict[str, Callable[[pathlib.Path, dict[str, np.ndarray]], None]] = {
    ".npz": _write_npz,
    ".pth": torch_file.save,
    ".pt": torch_file.save,
    ".safetensors": _write_safetensors,
}


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
