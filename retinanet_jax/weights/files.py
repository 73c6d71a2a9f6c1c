"""Files of weights: arrays by name, read by the file's content and written by its suffix.

People rename files, so the first bytes decide how one is read. No file needs PyTorch; safetensors
and h5py are imported only where a file needs them.
"""

import pathlib
import tempfile
import types
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from retinanet_jax.utils.packages import import_optional
from retinanet_jax.weights import contents, hdf5, torch_file, unpickle, wrappers
from retinanet_jax.weights.unpickle import MAX_LENGTH

SAFETENSORS = "safetensors.numpy"


def load_arrays(
    path: str | pathlib.Path, *, check_names: Callable[[Iterable[str]], None] = lambda names: None
) -> dict[str, np.ndarray]:
    """Read the arrays of a network by their own names, without running code of the file.

    They are those of `wrappers.state_dict`: in a checkpoint the network's, without the prefix of a
    wrapper.

    Args:
        path: A file of PyTorch, safetensors, NumPy (.npz), Keras (.h5), or a pickle.
        check_names: A function of the names of all arrays in the file, with their prefixes, that
            raises ValueError if they are of another network than the one expected.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the library that reads it is not installed, or the file is of another
            format, truncated, corrupt, or contains anything but arrays by name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights file {path} does not exist; give the path of an existing one."
        )
    with path.open("rb") as file:
        read = READERS[contents.recognize(file, path)]
        file.seek(0)
        content = read(file, path)
        try:
            check_names(wrappers.leaves(content))
        except ValueError as error:
            raise ValueError(f"weights file {path}: {error}") from None
        return {
            name: _read_array(name, array, path)
            for name, array in wrappers.state_dict(content, path).items()
        }


def _read_array(name: str, array: unpickle.Array | np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Return an array of a file, which is read only now if the file is a pickle."""
    if isinstance(array, np.ndarray):
        return array
    try:
        return array.read()
    except unpickle.RefusedError as error:
        raise ValueError(
            f"weights file {path} contains {error} under {name[:MAX_LENGTH]!r}; only "
            "booleans, integers and real floats are read."
        ) from None
    except Exception:  # parsers raise anything on unknown bytes
        raise contents.unreadable(path) from None


def _read_npz(file: BinaryIO, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read numpy's archive; arrays of objects are refused."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # The cause is not quoted: for any unknown content numpy recommends unpickling.
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        raise contents.unreadable(path) from None


def _read_safetensors(file: BinaryIO, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a safetensors file; floats of types that numpy lacks become float32."""
    safetensors = _import_library(SAFETENSORS, path)
    try:
        arrays = safetensors.load_file(path)
    except Exception:  # parsers raise anything on unknown bytes
        raise contents.unreadable(path) from None
    return {
        name: array if array.dtype.kind in "fiub" else array.astype(np.float32)
        for name, array in arrays.items()
    }


def _read_hdf5(file: BinaryIO, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a file of Keras."""
    _import_library("h5py", path)
    try:
        return hdf5.read(path)
    except Exception:  # parsers raise anything on unknown bytes
        raise contents.unreadable(path) from None


def _read_pickle(file: BinaryIO, path: pathlib.Path) -> Any:
    """Read a pickle of arrays, as detectron2 and Detectron publish them."""
    return _read_containers(unpickle.load, file, path)


def _read_torch(file: BinaryIO, path: pathlib.Path) -> Any:
    """Read a file that torch.save wrote; floating-point tensors become float32."""
    return _read_containers(torch_file.load, file, path)


def _read_containers(load: Callable[[BinaryIO], Any], file: BinaryIO, path: pathlib.Path) -> Any:
    """Read the containers of a file by a function that returns them."""
    try:
        return load(file)
    except unpickle.RefusedError as error:
        raise ValueError(f"weights file {path} {error}.") from None
    except Exception:  # parsers raise anything on unknown bytes
        raise contents.unreadable(path) from None


READERS: dict[contents.Format, Callable[[BinaryIO, pathlib.Path], Any]] = {
    contents.Format.NPZ: _read_npz,
    contents.Format.TORCH: _read_torch,
    contents.Format.SAFETENSORS: _read_safetensors,
    contents.Format.PICKLE: _read_pickle,
    contents.Format.HDF5: _read_hdf5,
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
    _import_library(SAFETENSORS, path).save_file(arrays, path)


WRITERS: dict[str, Callable[[pathlib.Path, dict[str, np.ndarray]], None]] = {
    ".npz": _write_npz,
    ".pth": torch_file.save,
    ".pt": torch_file.save,
    ".safetensors": _write_safetensors,
}


def check_library(file: str) -> None:
    """Check before a download that the file can be read: safetensors is an optional library.

    Args:
        file: A file's name, or its URL.

    Raises:
        ValueError: If the file requires safetensors, which cannot be imported.
    """
    if pathlib.PurePath(file.partition("?")[0]).suffix == ".safetensors":
        _import_library(SAFETENSORS, file)


def _import_library(name: str, path: pathlib.Path | str) -> types.ModuleType:
    """Import a module that the file needs; ValueError if it is not installed."""
    package = name.partition(".")[0]
    otherwise = "where it is installed write the arrays to an .npz with numpy.savez"
    return import_optional(name, f"weights file {path}", package, otherwise)
