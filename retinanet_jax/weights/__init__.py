"""Weights of other projects as our variables, and our detectors as state dicts for them.

`load_backbone` reads the backbone of a file, given the project that wrote it (the source). Whole
detectors are read by `convert.read_detector` and written by `convert.export_weights`.
"""

import functools
import pathlib

from retinanet_jax.config import choose
from retinanet_jax.weights import detectron2, keras, msra, resnet, torchvision
from retinanet_jax.weights.files import load_arrays as load_arrays
from retinanet_jax.weights.files import save_arrays as save_arrays

# Source -> function of (arrays, architecture=, norm=) that returns the variables of `backbone`.
BACKBONE_SOURCES = {
    "keras_resnet50": keras.backbone,
    "torchvision": functools.partial(
        resnet.from_state_dict, backbone_format=torchvision.TORCHVISION
    ),
    "msra": msra.backbone,
    "detectron2": functools.partial(resnet.from_state_dict, backbone_format=detectron2.CONVERTED),
}
DETECTOR_FORMATS = {
    library_format.name: library_format
    for library_format in (
        torchvision.TORCHVISION_V1,
        torchvision.TORCHVISION_V2,
        detectron2.DETECTRON2,
    )
}


def load_backbone(
    source: str, path: str | pathlib.Path, *, architecture: str, norm: str
) -> dict[str, dict]:
    """Read the variables of the detector's `backbone` from a file.

    Args:
        source: The project that wrote the file, one of BACKBONE_SOURCES.
        path: The file; its suffix decides how it is read (`files.READERS`).
        architecture: The backbone's architecture, one of models.ARCHITECTURES.
        norm: The backbone's norm, "frozen_batch" or "batch".

    Returns:
        The collections "params" and "batch_stats".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the source is unknown, the file is not readable, or its arrays are not those
            of the architecture.
    """
    to_variables = choose("source", source, BACKBONE_SOURCES)
    arrays = load_arrays(path)
    try:
        return to_variables(arrays, architecture=architecture, norm=norm)
    except ValueError as error:
        raise ValueError(f"weights file {path}: {error}") from None
