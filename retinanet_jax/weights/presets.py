"""The configs and categories of the detectors that other libraries publish."""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from retinanet_jax import weights
from retinanet_jax.config import load_config
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.weights.detectors import DetectorFormat

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


class Selection(NamedTuple):
    """The outputs of a detector that are imported, as our classes."""

    outputs: tuple[int, ...] | None  # their indices; None for all
    categories: tuple[Category, ...]


def select_outputs(
    count: int, library_format: DetectorFormat, *, only_coco: bool, names: Sequence[str]
) -> Selection:
    """Return which outputs of a detector are imported, and their categories.

    Args:
        count: The number of outputs of an anchor.
        library_format: The format of the library that trained the detector.
        only_coco: Whether of the outputs of the library's COCO models only those of COCO's
            categories are imported, if there are no `names`.
        names: The categories' names in the order of the outputs, () for COCO's categories. The
            first output of torchvision's detectors, the background, may be left out; then it is not
            imported, and the indices of the others remain the categories' ids.

    Raises:
        ValueError: If the number of outputs is not that of the categories.
    """
    background = library_format.has_background
    if names:
        first = int(background and len(names) == count - 1)
        if len(names) != count - first:
            raise ValueError(
                f"it has {count} outputs, but {len(names)} categories are named; name each output"
                + (", or each except for output 0, the background." if background else ".")
            )
        if "" in names or len(set(names)) < len(names):
            raise ValueError("the categories' names must differ, and none may be empty.")
        categories = tuple(Category(index, name) for index, name in enumerate(names, start=first))
        return Selection(tuple(range(1, count)) if first else None, categories)
    if only_coco and count == library_format.num_coco_outputs:
        return Selection(library_format.coco_outputs, COCO_CATEGORIES)
    for known in (COCO_CATEGORIES, ALL_CATEGORIES):
        if len(known) == count:
            return Selection(None, known)
    raise ValueError(
        f"it has {count} outputs, which are not COCO's categories; name them in the order of the "
        "outputs"
        + (" (output 0 may be left out if it is the background)" if background else "")
        + ": --categories=NAME,NAME."
    )
