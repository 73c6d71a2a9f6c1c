"""Weights of other projects as our variables, and our detectors as state dicts for them.

`load_backbone` and `load_detector` read a file, given the project that wrote it (the source);
`save_detector` writes one for the project that will load it (the target).
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from retinanet_jax.config import choose
from retinanet_jax.weights import detectors, detectron2, keras, msra, resnet, torchvision
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
# Source -> function of (arrays, architecture=, norm=, num_outputs=) that returns all variables.
DETECTOR_SOURCES = {
    name: functools.partial(detectors.to_variables, library_format=library_format)
    for name, library_format in DETECTOR_FORMATS.items()
}
# Target -> function of (variables, architecture=, num_outputs=) that returns arrays by name.
DETECTOR_TARGETS = {
    name: functools.partial(detectors.to_arrays, library_format=library_format)
    for name, library_format in DETECTOR_FORMATS.items()
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


def load_detector(
    source: str,
    path: str | pathlib.Path,
    *,
    architecture: str,
    norm: str,
    outputs: str = "coco",
) -> dict[str, dict]:
    """Read the variables of a whole detector from a file.

    Args:
        source: The project that wrote the file, one of DETECTOR_SOURCES.
        path: The file; its suffix decides how it is read (`files.READERS`).
        architecture: The backbone's architecture, one of models.ARCHITECTURES.
        norm: The backbone's norm, "frozen_batch" or "batch".
        outputs: "coco" keeps 80 of the 91 outputs of torchvision's COCO models, those of COCO's
            categories in the order of their ids; "all" keeps all. Other models keep their outputs
            either way.

    Returns:
        The collections "params" and "batch_stats".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If `source` or `outputs` is unknown, the file is not readable, or its arrays are
            not those of such a detector.
    """
    library_format = choose("source", source, DETECTOR_FORMATS)
    _check_outputs(outputs)
    arrays = load_arrays(path)
    try:
        check_source(arrays, source)
        available = detectors.count_outputs(arrays, library_format)
        only_coco = outputs == "coco" and available == library_format.num_coco_outputs
        return DETECTOR_SOURCES[source](
            arrays,
            architecture=architecture,
            norm=norm,
            num_outputs=detectors.NUM_COCO_CLASSES if only_coco else available,
        )
    except ValueError as error:
        raise ValueError(f"weights file {path}: {error}") from None


def save_detector(
    target: str,
    path: str | pathlib.Path,
    variables: Mapping[str, Any],
    *,
    architecture: str,
    outputs: str = "coco",
) -> None:
    """Write a detector's variables as a state dict that the target loads strictly.

    Args:
        target: The project that will load the file, one of DETECTOR_TARGETS.
        path: The file; its suffix decides how it is written (`files.WRITERS`).
        variables: The collections "params" and "batch_stats".
        architecture: The backbone's architecture, one of models.ARCHITECTURES.
        outputs: "coco" puts 80 classes at their places among the outputs of the target's COCO
            models (torchvision's have 91, of which the other 11 then never fire); "all" writes one
            output per class. Any other number of classes is written as it is.

    Raises:
        ValueError: If `target`, `outputs` or the file's suffix is unknown, the target has no such
            network, or the library that writes the file is not installed.
    """
    library_format = choose("target", target, DETECTOR_FORMATS)
    _check_outputs(outputs)
    classes = detectors.num_classes(variables)
    as_coco = outputs == "coco" and classes == detectors.NUM_COCO_CLASSES
    arrays = DETECTOR_TARGETS[target](
        variables,
        architecture=architecture,
        num_outputs=library_format.num_coco_outputs if as_coco else classes,
    )
    save_arrays(path, arrays)


def check_source(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Raise ValueError if `arrays` are of a detector of another source, which the message names."""
    for name, library_format in DETECTOR_FORMATS.items():
        if name != source and detectors.has_format(arrays, library_format):
            raise ValueError(
                f"these are {name} weights, but the source is {source}; give the source {name}."
            )


def _check_outputs(outputs: str) -> None:
    """Raise ValueError if `outputs` is unknown."""
    if outputs not in ("coco", "all"):
        raise ValueError(f"outputs={outputs!r} must be 'coco' or 'all'.")
