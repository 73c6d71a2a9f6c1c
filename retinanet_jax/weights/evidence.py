"""What the arrays of a detector's state dict show of its config, with the reason for each field.

A state dict has no config. The names and shapes of its arrays determine the library and the network
except for the anchors, of which they show the number per cell, and for an epsilon of torchvision's
v1.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.weights import DETECTOR_FORMATS, detectors, resnet
from retinanet_jax.weights.detectors import BOXES, CLASSES, DetectorFormat
from retinanet_jax.weights.presets import preset_config
from retinanet_jax.weights.resnet import Path, Shape

EPSILON = "model.norm_epsilon"


class Fact(NamedTuple):
    """A config field, and why it has its value."""

    field: str  # dotted, as in model.backbone
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"config.{self.field}={self.value}: {self.reason}"


class Evidence:
    """The names and shapes of a state dict.

    Attributes:
        arrays: The arrays by the library's present names.

    Args:
        arrays: The state dict's arrays by name.
        library_format: The format of the library that wrote them.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], library_format: DetectorFormat) -> None:
        self._format = library_format
        self.arrays = {library_format.current_name(name): x for name, x in arrays.items()}
        self._shapes = {name: np.shape(value) for name, value in self.arrays.items()}
        counters = [name for name in self._shapes if name.endswith(".num_batches_tracked")]
        self._has_counters = any(map(self._is_in_backbone, counters))

    def network(self) -> list[Fact]:
        """Return the fields of `config.model` that determine the shapes of the arrays."""
        backbone = self._backbone()
        depth = 0
        while self._shape_of(("classification_head", f"conv{depth}", "kernel")):
            depth += 1
        norm = self._format.model["head_norm"]
        return [
            backbone,
            *self._pyramid(backbone.value),
            Fact("model.head_depth", depth, f"{depth} convolutions before each output"),
            Fact("model.head_norm", norm, f"the heads of {self._format.name}"),
        ]

    def norm(self) -> Fact:
        """Return whether the backbone's norms were trained."""
        if self._has_counters:
            return Fact("model.norm", "batch", "the norms have counted batches (BatchNorm2d)")
        return Fact("model.norm", "frozen_batch", "the norms have not counted batches")

    def norm_epsilon(self) -> Fact | None:
        """Return the epsilon of the backbone's norms, or None if nothing shows it."""
        name, published = self._format.name, self._format.model["norm_epsilon"]
        if self._has_counters:
            return Fact(EPSILON, 1e-5, "that of norms that count batches (BatchNorm2d)")
        if published == 1e-5:
            return Fact(EPSILON, published, f"that of all norms of {name}")
        num_outputs = self._format.num_coco_outputs
        if self._shapes == detectors.shapes(self._format, preset_config(name), num_outputs):
            reason = (
                f"torchvision's, for the weights of {num_outputs} outputs that it publishes; if "
                "these are others, give --norm_epsilon=1e-5"
            )
            return Fact(EPSILON, published, reason)
        return None

    def num_anchors(self) -> int:
        """Return the number of anchors of a cell; 0 if the output for boxes is malformed."""
        return self._size_of_bias(BOXES) // 4

    def num_outputs(self) -> int:
        """Return the number of outputs of an anchor; 0 if the predicting layers are malformed."""
        return self._size_of_bias(CLASSES) // max(self.num_anchors(), 1)

    def _backbone(self) -> Fact:
        """Return the architecture from which the fewest arrays differ by name or shape."""
        backbone, prefix = self._format.backbone, self._format.backbone_prefix
        actual = {
            (name.removeprefix(prefix), shape)
            for name, shape in self._shapes.items()
            if self._is_in_backbone(name) and not backbone.is_unused(name)
        }
        architecture = min(
            ARCHITECTURES, key=lambda other: len(actual ^ set(backbone.shapes(other).items()))
        )
        settings = ARCHITECTURES[architecture]
        stages = ", ".join(map(str, settings["stage_sizes"]))
        blocks = "bottlenecks" if settings["bottleneck"] else "blocks without bottleneck"
        groups = f", {settings['groups']} groups" if "groups" in settings else ""
        return Fact("model.backbone", architecture, f"stages of {stages} {blocks}{groups}")

    def _pyramid(self, backbone: str) -> list[Fact]:
        """Return the number of channels of the pyramid, and the input of P6."""
        kernel = self._shape_of(("fpn", "p6", "kernel"))
        if len(kernel) != 4:
            return []
        channels, inputs = kernel[:2]
        p6_from = "p5" if inputs == channels else "c5"
        reason = f"P6 is computed from {inputs} channels"
        if channels == resnet.stage_channels(backbone, 5):
            p6_from = self._format.p6_from_equal_channels
            reason = f"the choice of {self._format.name} if C5 and P5 have equally many channels"
        return [
            Fact("model.fpn_channels", channels, f"P6 has {channels} channels"),
            Fact("model.p6_from", p6_from, reason),
        ]

    def _is_in_backbone(self, name: str) -> bool:
        return name.startswith(self._format.backbone_prefix)

    def _shape_of(self, path: Path) -> Shape:
        """Return the shape of an array outside of the backbone; () if it is missing."""
        return self._shapes.get(detectors.name_of(self._format, path), ())

    def _size_of_bias(self, layer: Path) -> int:
        shape = self._shape_of((*layer, "bias"))
        return shape[0] if len(shape) == 1 else 0


def detect_source(names: Iterable[str], source: str | None = None) -> str:
    """Return the library that wrote a detector's state dict, by the names of its arrays.

    Args:
        names: The names of the arrays.
        source: The library that the user names, one of DETECTOR_FORMATS; None if none is named.

    Raises:
        ValueError: If the arrays are of another library than `source`, or of none of those known.
    """
    names = list(names)
    missing = {
        name: detectors.missing_names(names, library_format)
        for name, library_format in DETECTOR_FORMATS.items()
    }
    matching = [name for name, absent in missing.items() if not absent]
    if source is not None and matching and source not in matching:
        raise ValueError(
            f"these are {matching[0]} weights, but the source is {source}; give the source "
            f"{matching[0]}."
        )
    if source is None and not matching:
        nearest = min(missing, key=lambda name: len(missing[name]))
        count = len(detectors.missing_names((), DETECTOR_FORMATS[nearest]))
        if len(missing[nearest]) < count:
            raise ValueError(
                f"these are not all arrays of a RetinaNet of {nearest}: missing: "
                f"{resnet.join_names(missing[nearest])}; give the state dict of a whole detector "
                "with the levels P3 to P7."
            )
        raise ValueError(
            f"these are not the arrays of a RetinaNet of {', '.join(DETECTOR_FORMATS)}: the first "
            f"are {resnet.join_names(names)}; give such a file, or --source for a list of those "
            "that differ."
        )
    return source or matching[0]
