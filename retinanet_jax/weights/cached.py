"""Detectors as checkpoints: of a working directory, a file of another library, or a name.

`checkpoint_folder` is what `Detector.load`, --checkpoint, --weights and config.init.path mean by
their argument. A file is converted once, to a checkpoint in the user's cache. Later loads read only
that checkpoint: of a published detector neither the file nor the network is needed again. The
conversions may be deleted at any time.
"""

import contextlib
import hashlib
import os
import pathlib
import shlex
import shutil

import jax

import retinanet_jax
from retinanet_jax import checkpoint
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.utils.files import write_folder
from retinanet_jax.utils.paths import to_path
from retinanet_jax.utils.remote import is_file, local_copy
from retinanet_jax.weights import convert, download, named
from retinanet_jax.weights.presets import preset_config
from retinanet_jax.weights.resnet import join_names

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pkl", ".npz")
FOLDER = "checkpoints"  # of conversions, in the user's cache
DIGEST_LENGTH = 16  # hexadecimal digits of a file's SHA-256 in a folder's name


def load(weights: str | os.PathLike[str]) -> Checkpoint:
    """Read a detector's checkpoint to the host, see `checkpoint_folder`."""
    return checkpoint.load(checkpoint_folder(weights))


def checkpoint_folder(weights: str | os.PathLike[str]) -> pathlib.Path:
    """Return the folder of a detector's checkpoint, which is downloaded or converted if necessary.

    Args:
        weights: A working directory, the folder of one step's checkpoint, the file of a detector
            of another library (a path, a URL or a published file's name), or one of
            `named.DETECTORS`. Paths may be in remote storage. A file, or a folder with a
            checkpoint, precedes a name.

    Raises:
        FileNotFoundError: If there is no such folder or file, and the name is unknown.
        OSError: If the file cannot be downloaded.
        ValueError: If its checksum is wrong, or it is not a detector's.
    """
    if download.is_url(str(weights)):
        return _converted_file(download.locate(weights))
    if is_file(path := to_path(weights, absolute=False)):
        return _converted_file(local_copy(path))
    name = name_of(weights)
    if name in named.DETECTORS:
        return _converted_name(name)
    if path.is_dir():
        _check_folder(path)
        return path
    if name:
        raise ValueError(
            f"{weights} is the backbone of an ImageNet classifier and detects nothing; give one of "
            f"{', '.join(named.DETECTORS)}, or train with --weights={name}."
        )
    raise named.unknown_name(str(weights))


def _check_folder(path: pathlib.Path) -> None:
    """Raise ValueError if a folder has files of weights in place of a checkpoint."""
    with contextlib.suppress(FileNotFoundError):
        checkpoint.find(path)
        return
    files = sorted(file.name for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if files:
        raise ValueError(
            f"{path} has no checkpoint of a training run, but files of weights; give one of them: "
            f"{join_names(files)}."
        )


def name_of(weights: str | os.PathLike[str]) -> str | None:
    """Return which of named.NAMES an argument means; None if it means a path or a URL."""
    if not download.is_url(str(weights)):
        with contextlib.suppress(FileNotFoundError):
            checkpoint.find(to_path(weights, absolute=False))
            return None
    return named.find_name(weights)


def _converted_name(name: str) -> pathlib.Path:
    """Return the checkpoint of one of named.DETECTORS."""
    detector = named.DETECTORS[name]
    folder = conversion(f"{name}-{download.KNOWN[detector.file].prefix}")
    if not folder.exists():
        path = download.locate_checked(detector.file)
        epsilon = preset_config(detector.source).model.norm_epsilon  # a file may not show it
        imported = convert.read_detector(path, detector.source, norm_epsilon=epsilon)
        _write(folder, imported.checkpoint)
    return folder


def _converted_file(path: pathlib.Path) -> pathlib.Path:
    """Return the checkpoint of another library's file, and print what the file has shown of it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = conversion(f"{path.stem}-{digest[:DIGEST_LENGTH]}")
    if not folder.exists():
        try:
            source, converted, reasons = convert.read_detector(path)
        except convert.MissingFactError as error:
            raise ValueError(
                f"{error} The flags are those of `retinanet-jax import-weights "
                f"--input={shlex.quote(str(path))} --output=DIR`, which writes a working directory."
            ) from None
        print(f"{path}: a detector of {source}", *reasons, sep="; ", flush=True)
        _write(folder, converted)
    return folder


def conversion(key: str) -> pathlib.Path:
    """Return the folder of a conversion by this version of the package."""
    return download.cache_folder() / FOLDER / f"{key}-{retinanet_jax.__version__}"


def _write(folder: pathlib.Path, converted: Checkpoint) -> None:
    """Write a conversion; of several processes at once, the first one to finish."""
    if jax.process_count() > 1:
        raise ValueError(
            f"{folder} does not exist on this host; with --distributed, run `retinanet-jax "
            "import-weights` first, into a folder that all hosts can read, and give that folder."
        )
    variables, config, categories, *_ = converted
    with download.errors_of_the_disk(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed = sum(array.nbytes for array in jax.tree.leaves(variables))
        if shutil.disk_usage(folder.parent).free < needed:  # Orbax would end in tracebacks
            raise OSError(f"it needs {needed / 1e6:.0f} MB")
        write_folder(
            folder,
            lambda draft: checkpoint.write_imported(draft, variables, config, categories),
            is_written=folder.exists,
        )
