"""Published weights by short names, and the config fields that they require.

A name stands for a published file (`download.KNOWN`). `locate` returns that file, which is
downloaded if necessary, and `network_of` the config fields without which the weights would mean
something else. `cached.checkpoint_folder` returns a detector as a checkpoint.
"""

import difflib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from retinanet_jax.stored_config import NETWORK_SECTIONS
from retinanet_jax.utils.paths import to_path
from retinanet_jax.utils.remote import is_file, local_copy
from retinanet_jax.weights import download, files, keras, msra, torchvision
from retinanet_jax.weights.presets import preset_config

Fields = Mapping[str, Any]


class NamedDetector(NamedTuple):
    """A published detector of COCO's categories."""

    file: str  # its name in download.KNOWN
    source: str  # the library that trained it, one of presets.PRESETS
    backbone: str  # one of models.ARCHITECTURES
    ap: float  # on val2017, as its library states


class NamedBackbone(NamedTuple):
    """A published ImageNet classifier, of which the backbone is used."""

    file: str  # its name in download.KNOWN
    source: str  # one of weights.BACKBONE_SOURCES, as in config.init.source
    backbone: str  # one of models.ARCHITECTURES
    model: Fields  # the fields of config.model that it requires besides
    input: Fields  # config.input


DETECTORS = {
    "torchvision_v1": NamedDetector(
        "retinanet_resnet50_fpn_coco-eeacb38b.pth", "torchvision_v1", "resnet50", 36.4
    ),
    "torchvision_v2": NamedDetector(
        "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", "torchvision_v2", "resnet50", 41.5
    ),
    "detectron2_r50_1x": NamedDetector("model_final_bfca0b.pkl", "detectron2", "resnet50", 37.4),
    "detectron2_r50_3x": NamedDetector("model_final_5bd44e.pkl", "detectron2", "resnet50", 38.7),
    "detectron2_r101_3x": NamedDetector("model_final_971ab9.pkl", "detectron2", "resnet101", 40.4),
}
# Without a library's name: those of the paper's authors, which the paper's configs start from.
BACKBONES = {
    "resnet50": NamedBackbone(
        download.KERAS_RESNET50,
        "keras_resnet50",
        "resnet50",
        keras.KERAS_MODEL,
        keras.KERAS_INPUT,
    ),
    "resnet101": NamedBackbone("R-101.pkl", "msra", "resnet101", msra.MSRA_MODEL, msra.MSRA_INPUT),
    "resnext101_32x8d": NamedBackbone(
        "X-101-32x8d.pkl", "msra", "resnext101_32x8d", msra.FAIR_MODEL, msra.FAIR_INPUT
    ),
    "msra_resnet50": NamedBackbone(
        "R-50.pkl", "msra", "resnet50", msra.MSRA_MODEL, msra.MSRA_INPUT
    ),
    # timm's ResNets have torchvision's arrays, epsilon and input.
    "timm_resnet50_a1": NamedBackbone(
        download.TIMM_RESNET50,
        "torchvision",
        "resnet50",
        torchvision.TORCHVISION_MODEL,
        torchvision.TORCHVISION_INPUT,
    ),
}
BACKBONES |= {
    f"torchvision_{name}": NamedBackbone(
        file,
        "torchvision",
        file.partition("-")[0],
        torchvision.TORCHVISION_MODEL,
        torchvision.TORCHVISION_INPUT,
    )
    for name, file in {
        "resnet18": "resnet18-f37072fd.pth",
        "resnet34": "resnet34-b627a593.pth",
        "resnet50_v1": "resnet50-0676ba61.pth",
        "resnet50_v2": "resnet50-11ad3fa6.pth",
        "resnet101_v1": "resnet101-63fe2227.pth",
        "resnet101_v2": "resnet101-cd907fc2.pth",
        "resnet152_v1": "resnet152-394f9c45.pth",
        "resnet152_v2": "resnet152-f82ba261.pth",
        "resnext50_32x4d_v1": "resnext50_32x4d-7cdf4587.pth",
        "resnext50_32x4d_v2": "resnext50_32x4d-1a0047aa.pth",
        "resnext101_32x8d_v1": "resnext101_32x8d-8ba56ff5.pth",
        "resnext101_32x8d_v2": "resnext101_32x8d-110c445d.pth",
        "resnext101_64x4d": "resnext101_64x4d-173b62eb.pth",
    }.items()
}
NAMES: dict[str, NamedDetector | NamedBackbone] = {**DETECTORS, **BACKBONES}


def find_name(weights: str | os.PathLike[str]) -> str | None:
    """Return the name in NAMES of an argument that is one or, as in configs, a published file."""
    if str(weights) in NAMES:
        return str(weights)
    file = pathlib.PurePath(weights).name
    file = download.SAME_ARRAYS.get(file, file)
    return next((name for name, known in NAMES.items() if known.file == file), None)


def locate(weights: str | os.PathLike[str]) -> pathlib.Path:
    """Return the path of a file of weights, which is downloaded if necessary.

    Args:
        weights: A path, which may be in remote storage, a URL, the name of a published file, or one
            of NAMES; a file of this path precedes a name.

    Raises:
        FileNotFoundError: If it is none of these.
        OSError: If the file cannot be downloaded.
        ValueError: If its checksum is wrong, or a library that reads it is missing.
    """
    is_url = download.is_url(str(weights))
    if not is_url and is_file(path := to_path(weights, absolute=False)):
        return local_copy(path)
    name = find_name(weights)
    if name is None and not is_url:
        raise unknown_name(str(weights))
    file = NAMES[name].file if name else str(weights)
    files.check_library(file)
    return download.locate(file)


def unknown_name(weights: str) -> FileNotFoundError:
    """Return the error for an argument that is neither the path of a file nor a name."""
    if to_path(weights).is_dir():
        return FileNotFoundError(f"{weights} is a folder; give a file of weights in it.")
    if pathlib.PurePath(weights).suffix or len(pathlib.PurePath(weights).parts) > 1:
        return FileNotFoundError(
            f"{weights} does not exist, and is no name of published weights; give the path of an "
            "existing file, a URL, or a name such as torchvision_v2 or resnet50."
        )
    nearest = difflib.get_close_matches(weights, NAMES, 1)
    hint = f"did you mean {nearest[0]}? The names are" if nearest else "the names are"
    return FileNotFoundError(
        f"{weights} does not exist, and is no name of published weights; {hint} "
        f"{', '.join(DETECTORS)} (detectors) and {', '.join(BACKBONES)} (backbones)."
    )


def network_of(name: str) -> dict[str, Fields]:
    """Return the config fields that determine the meaning of weights, by section.

    Those of a detector are all of `model`, `anchors` and `input`; those of a backbone only the
    fields that its own layers and its input depend on.

    Args:
        name: One of NAMES.
    """
    known = NAMES[name]
    if isinstance(known, NamedBackbone):
        return {"model": {"backbone": known.backbone, **known.model}, "input": known.input}
    trained_with = preset_config(known.source)
    trained_with.model.backbone = known.backbone
    return {section: trained_with[section].to_dict() for section in NETWORK_SECTIONS}
