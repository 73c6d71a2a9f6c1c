"""Small detectors of each library, and their import and export."""

from retinanet_jax import weights
from retinanet_jax.weights import detectors
from retinanet_jax.weights.presets import preset_config

SOURCES = {"torchvision_v1": 91, "torchvision_v2": 91, "detectron2": 80}  # and their outputs
SMALL = "toy"  # the fixture `small_architecture` defines it


def config_of(source, *, backbone=SMALL, norm="frozen_batch", **fields):
    """Return the preset's config with another network; a field's dots are double underscores."""
    config = preset_config(source)
    config.model.update(backbone=backbone, norm=norm)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def to_variables(source, arrays, config=None, outputs=None):
    library_format = weights.DETECTOR_FORMATS[source]
    return detectors.to_variables(arrays, library_format, config or config_of(source), outputs)


def to_arrays(target, variables, config=None, *, as_coco=False):
    library_format = weights.DETECTOR_FORMATS[target]
    return detectors.to_arrays(
        variables, library_format, config or config_of(target), as_coco=as_coco
    )
