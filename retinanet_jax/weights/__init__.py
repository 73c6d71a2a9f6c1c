"""Other projects' checkpoints as our variables: a file and its source's name in, a tree out."""

import pathlib

from retinanet_jax.weights import keras, msra, torchvision
from retinanet_jax.weights.files import load_arrays as load_arrays

# Name of a source -> (arrays, architecture=, norm=) -> variables of the detector's `backbone`.
BACKBONE_SOURCES = {
    "keras_resnet50": keras.backbone,
    "torchvision": torchvision.backbone,
    "msra": msra.backbone,
}


def load_backbone(
    source: str, path: str | pathlib.Path, *, architecture: str, norm: str
) -> dict[str, dict]:
    """Return the variables {"params", "batch_stats"} of the detector's `backbone` from a file.

    `source` says whose file it is (BACKBONE_SOURCES), `architecture` (models.ARCHITECTURES) and
    `norm` what the backbone is. Raises ValueError for an unknown source, whatever the file's
    reading raises, and ValueError with the path where the file holds something else.
    """
    if source not in BACKBONE_SOURCES:
        known = ", ".join(BACKBONE_SOURCES)
        raise ValueError(f"weights source={source!r} is unknown; use one of {known}.")
    arrays = load_arrays(path)
    try:
        return BACKBONE_SOURCES[source](arrays, architecture=architecture, norm=norm)
    except ValueError as error:
        raise ValueError(f"weights file {path}: {error}") from None
