"""Settings that some files contain next to the weights, checked against the config.

State dicts of detectron2 before 2021 have the anchors, and the mean and standard deviation of the
pixels. Others contain neither.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import core

TOLERANCE = 0.05  # of pixels
FLAGS = {
    "input": "--config.input.order, .mean and .std",
    "anchors": "--config.anchors.base_scale, .scales and .ratios",
}


def check_buffers(arrays: Mapping[str, np.ndarray], config: ConfigDict, preset: str) -> None:
    """Raise ValueError if an array of settings contradicts the config.

    Args:
        arrays: A state dict.
        config: The config that is assumed for it.
        preset: A config that can be changed to be the right one, as `--config` names it.
    """
    for name, section, expected in _settings(config):
        actual = np.ravel(arrays.get(name, expected)).astype(np.float64)
        if actual.shape != expected.shape or not np.allclose(actual, expected, atol=TOLERANCE):
            raise ValueError(
                f"its {name} is {_brief(actual)}, but that of the config is {_brief(expected)}; "
                f"with --config={preset} give {FLAGS[section]} of its training."
            )


def _settings(config: ConfigDict) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the name of each array, the section of the config that it shows, and its numbers."""
    for name in ("mean", "std"):
        yield f"pixel_{name}", "input", np.array(config.input[name], np.float64)
    anchors = config.anchors
    for index, level in enumerate(range(anchors.min_level, anchors.max_level + 1)):
        boxes = core.cell_anchors(
            anchors.base_scale * 2**level, anchors.scales, anchors.ratios, anchors.rounding
        )
        xyxy = np.asarray(core.yxyx_to_xyxy(boxes), np.float64)
        yield f"anchor_generator.cell_anchors.{index}", "anchors", xyxy.ravel()


def _brief(numbers: np.ndarray) -> str:
    """Return the first numbers."""
    more = ", ..." if numbers.size > 4 else ""
    return f"({', '.join(f'{number:.4g}' for number in numbers[:4])}{more})"
