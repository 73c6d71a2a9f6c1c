"""The configs that other libraries' weights were trained with."""

import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from retinanet_jax import weights
from retinanet_jax.configs import detectron2, torchvision
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.models import ARCHITECTURES


class Preset(NamedTuple):
    """The config that a source's weights were trained with."""

    get_config: Callable[[str], ConfigDict]
    file: str
    argument: str


PRESETS = {
    "torchvision_v1": Preset(torchvision.get_config, "configs/torchvision.py", "v1"),
    "torchvision_v2": Preset(torchvision.get_config, "configs/torchvision.py", "v2"),
    "detectron2": Preset(detectron2.get_config, "configs/detectron2.py", "3x"),
}
# torchvision's outputs are COCO's ids; 0 and ten others stand for nothing.
COCO_NAMES = {category.id: category.name for category in COCO_CATEGORIES}
ALL_CATEGORIES = tuple(Category(k, COCO_NAMES.get(k, f"unused {k}")) for k in range(91))


def preset_config(source: str) -> ConfigDict:
    """A source's config, unlocked, with the epsilon that its published weights are run with."""
    preset = PRESETS[source]
    config = preset.get_config(preset.argument).unlock()
    # torchvision runs the v1 weights that it publishes without an epsilon, and no others.
    config.model.norm_epsilon = weights.DETECTOR_FORMATS[source].model["norm_epsilon"]
    return config


def categories_of(
    path: pathlib.Path, variables: Mapping[str, Any], names: Sequence[str]
) -> tuple[Category, ...]:
    """COCO's categories, or those of `names`; ValueError where the outputs are not as many."""
    count = weights.detectors.num_classes(variables)
    if names and len(names) != count:
        raise ValueError(f"{path}: {count} outputs for {len(names)} categories; name each of them.")
    if names:
        return tuple(Category(k, name) for k, name in enumerate(names))
    for known in (COCO_CATEGORIES, ALL_CATEGORIES):
        if len(known) == count:
            return known
    raise ValueError(
        f"{path}: {count} outputs are not COCO's; name them in their order: --categories=NAME,NAME."
    )


def backbone_of(names: Iterable[str], otherwise: str) -> str:
    """The ResNet whose third stage has as many blocks as the `names` of a state dict tell.

    The other ones that a preset's library publishes are told apart by nothing else.
    """
    found = [re.search(r"\.(?:layer3|res4)\.(\d+)\.", name) for name in names]
    blocks = len({match[1] for match in found if match})
    for name in ("resnet50", "resnet101", "resnet152"):
        if ARCHITECTURES[name]["stage_sizes"][2] == blocks:
            return name
    return otherwise
