"""The configs and categories of the detectors that other libraries publish."""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from retinanet_jax import weights
from retinanet_jax.config import load_config
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.weights import detectors

# Source -> the config of its weights, as `--config` names it.
PRESETS = {
    "torchvision_v1": "configs/torchvision.py:v1",
    "torchvision_v2": "configs/torchvision.py:v2",
    "detectron2": "configs/detectron2.py:3x",
}
# All outputs of torchvision's COCO models. Their indices are COCO's ids, of which 0 and ten others
# have no category.
_NAMES = {category.id: category.name for category in COCO_CATEGORIES}
ALL_CATEGORIES = tuple(Category(index, _NAMES.get(index, f"unused {index}")) for index in range(91))


def preset_config(source: str) -> ConfigDict:
    """Return the config of a source's published weights, unlocked.

    Args:
        source: One of PRESETS.
    """
    config = load_config(PRESETS[source]).unlock()
    # torchvision runs the v1 weights that it publishes, and no others, with an epsilon of 0.
    config.model.norm_epsilon = weights.DETECTOR_FORMATS[source].model["norm_epsilon"]
    return config


def detector_categories(
    path: pathlib.Path, variables: Mapping[str, Any], names: Sequence[str]
) -> tuple[Category, ...]:
    """Return the categories of a detector's outputs.

    Args:
        path: The file that the detector was read from, for error messages.
        variables: The detector's variables.
        names: The categories' names in the order of the outputs; () for COCO's categories.

    Raises:
        ValueError: If the number of outputs is not that of the categories.
    """
    count = detectors.num_classes(variables)
    if names and len(names) != count:
        raise ValueError(
            f"{path} has {count} outputs, but {len(names)} categories are named; name each output."
        )
    if names:
        return tuple(Category(index, name) for index, name in enumerate(names))
    for known in (COCO_CATEGORIES, ALL_CATEGORIES):
        if len(known) == count:
            return known
    raise ValueError(
        f"{path} has {count} outputs, which are not COCO's categories; name them in the order of "
        "the outputs: --categories=NAME,NAME."
    )


def detect_backbone(names: Iterable[str], default: str) -> str:
    """Return the ResNet with as many blocks in its third stage as a detector's state dict has.

    The other backbones that a preset's library publishes differ in nothing else.

    Args:
        names: The names of the state dict's arrays.
        default: The architecture to return if no ResNet of the presets has this number of blocks.
    """
    matches = [re.search(r"\.(?:layer3|res4)\.(\d+)\.", name) for name in names]
    blocks = len({match[1] for match in matches if match})
    for architecture in ("resnet50", "resnet101", "resnet152"):
        if ARCHITECTURES[architecture]["stage_sizes"][2] == blocks:
            return architecture
    return default
