"""Other projects' checkpoints as our variables: a file and its source's name in, a tree out."""

import pathlib
import zipfile
import zlib

import numpy as np

from retinanet_jax.weights import keras

# Name of a source -> (arrays, norm) -> variables of the detector's `backbone`.
BACKBONE_SOURCES = {"keras_resnet50": keras.resnet50_backbone}


def load_arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name.

    Raises FileNotFoundError where there is no such file, and ValueError where it is no .npz, is
    truncated or corrupt, or holds pickled objects (which could run code, and are not loaded).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights file {path} does not exist; scripts/get_resnet50.py writes one."
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # TypeError: a plain .npy is an array, which `with` does not take. The cause is not quoted: for
    # anything unknown numpy advises to unpickle it.
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(
            f"weights file {path} is not a readable .npz of plain arrays; "
            "write or download it again."
        ) from None


def load_backbone(source: str, path: str | pathlib.Path, norm: str) -> dict[str, dict]:
    """Return the variables {"params", "batch_stats"} of the detector's `backbone` from a file.

    `source` says whose file it is ("keras_resnet50"), `norm` which norm the backbone has.
    Raises ValueError for an unknown source, and whatever the file's reading and import raise.
    """
    if source not in BACKBONE_SOURCES:
        known = ", ".join(BACKBONE_SOURCES)
        raise ValueError(f"weights source={source!r} is unknown; use one of {known}.")
    return BACKBONE_SOURCES[source](load_arrays(path), norm)
