"""Other projects' checkpoints as our variables, and back: a file and whose it is, and a tree."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from retinanet_jax.weights import detectors, detectron2, keras, msra, torchvision
from retinanet_jax.weights.files import load_arrays as load_arrays
from retinanet_jax.weights.files import save_arrays as save_arrays

# Name of a source -> (arrays, architecture=, norm=) -> variables of the detector's `backbone`.
BACKBONE_SOURCES = {
    "keras_resnet50": keras.backbone,
    "torchvision": torchvision.backbone,
    "msra": msra.backbone,
    "detectron2": detectron2.backbone,
}
DETECTOR_FORMATS = {
    form.name: form
    for form in (torchvision.TORCHVISION_V1, torchvision.TORCHVISION_V2, detectron2.DETECTRON2)
}
# Name of a source -> (arrays, architecture=, norm=, num_outputs=) -> variables of the detector.
DETECTOR_SOURCES = {
    name: functools.partial(detectors.to_variables, form=form)
    for name, form in DETECTOR_FORMATS.items()
}
# Name of a target -> (variables, architecture=, num_outputs=) -> its arrays by name.
DETECTOR_TARGETS = {
    name: functools.partial(detectors.to_arrays, form=form)
    for name, form in DETECTOR_FORMATS.items()
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


def load_detector(
    source: str,
    path: str | pathlib.Path,
    *,
    architecture: str,
    norm: str,
    outputs: str = "coco",
) -> dict[str, dict]:
    """Return the variables {"params", "batch_stats"} of a whole detector from a file.

    `source` says whose file it is (DETECTOR_SOURCES), `architecture` (models.ARCHITECTURES) and
    `norm` what the backbone is. `outputs` "coco" keeps, of the 91 that torchvision's COCO models
    have, the 80 that COCO uses, in the order of its ids; "all" keeps all. Other models keep what
    they have either way. Raises ValueError for an unknown source or `outputs`, whatever the file's
    reading raises, and ValueError with the path where the file holds something else.
    """
    form = _form("source", source)
    _check_outputs(outputs)
    arrays = load_arrays(path)
    try:
        check_source(arrays, source)
        held = detectors.outputs_held(arrays, form)
        cut = outputs == "coco" and held == form.num_coco_outputs
        return DETECTOR_SOURCES[source](
            arrays,
            architecture=architecture,
            norm=norm,
            num_outputs=detectors.NUM_COCO_CLASSES if cut else held,
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
    """Write a detector's variables as a state dict that `target` (DETECTOR_TARGETS) loads strictly.

    `outputs` "coco" gives 80 classes their places among the outputs of the target's COCO models
    (torchvision has 91; the other 11 then never fire), "all" writes as many as there are. Any other
    number of classes is written as it is, for a model of so many. Raises ValueError for an unknown
    target or `outputs`, a network that the target cannot hold, and whatever writing raises.
    """
    form = _form("target", target)
    _check_outputs(outputs)
    held = detectors.num_classes(variables)
    spread = outputs == "coco" and held == detectors.NUM_COCO_CLASSES
    arrays = DETECTOR_TARGETS[target](
        variables,
        architecture=architecture,
        num_outputs=form.num_coco_outputs if spread else held,
    )
    save_arrays(path, arrays)


def check_source(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Raise ValueError where `arrays` are those of another source's detector: it says which."""
    for name, form in DETECTOR_FORMATS.items():
        if name != source and detectors.is_of(arrays, form):
            raise ValueError(f"{name} weights, and the source is {source}; ask for {name}.")


def _form(kind: str, name: str) -> detectors.Format:
    if name not in DETECTOR_FORMATS:
        known = ", ".join(DETECTOR_FORMATS)
        raise ValueError(f"weights {kind}={name!r} is unknown; use one of {known}.")
    return DETECTOR_FORMATS[name]


def _check_outputs(outputs: str) -> None:
    if outputs not in ("coco", "all"):
        raise ValueError(f"outputs={outputs!r} must be 'coco' or 'all'.")
