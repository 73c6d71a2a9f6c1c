"""Whole detectors: state dicts of other libraries to our variables and back, by one table of names.

A `DetectorFormat` has a library's name of each array of ours, and the order of the channels of its
predicting layers. Importing and exporting read the same table in opposite directions, and change no
bit of a value. The network is the one that `config.model` and `config.anchors` describe.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from retinanet_jax.config import anchors_per_cell
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.weights import resnet
from retinanet_jax.weights.resnet import BackboneFormat, Path, Shape

NUM_COCO_CLASSES = len(COCO_CATEGORIES)
# The logit of an output without a class. Its score of 4e-44 passes no threshold, and unlike minus
# infinity it leaves a loss and its gradient finite when training continues.
NEVER = -100.0

HEADS = ("classification_head", "box_head")
CLASSES = ("classification_head", "predict")
BOXES = ("box_head", "predict")
# (dx, dy, dw, dh) from (dy, dx, dh, dw), and back.
SWAP_AXES = [1, 0, 3, 2]


class DetectorFormat(NamedTuple):
    """How a library's state dicts hold a RetinaNet, and the settings of its published ones."""

    name: str  # one of weights.DETECTOR_FORMATS
    backbone: BackboneFormat
    backbone_prefix: str  # what precedes the backbone's names, as in "backbone.body."
    module_of: Callable[[Path], str]  # (part, layer) of ours outside of the backbone -> module
    coco_outputs: tuple[int, ...]  # of the outputs of its COCO models, those of COCO's categories
    num_coco_outputs: int
    has_background: bool  # output 0 is the background's, and never trained to fire
    ratio_outer: bool  # a cell's anchors are ordered by ratio, then scale; ours by scale first
    counted_norms: tuple[str, ...]  # config.model.norm for which each norm has a batch counter
    p6_from_equal_channels: str  # the input of P6 if C5 has as many channels as the pyramid
    current_name: Callable[[str], str]  # of an array that older files name differently
    model: Mapping[str, Any]  # fields of config.model that its published weights need
    input: Mapping[str, Any]  # config.input that they need


def to_variables(
    arrays: Mapping[str, np.ndarray],
    library_format: DetectorFormat,
    config: ConfigDict,
    outputs: Sequence[int] | None = None,
) -> dict[str, dict]:
    """Return the detector's variables from a state dict.

    Args:
        arrays: The state dict's arrays by name.
        library_format: The format of the library that wrote them.
        config: A config of which `model` and `anchors` describe the network.
        outputs: The indices of the outputs that become our classes, in their order; None for all.

    Returns:
        The collections "params" and "batch_stats".

    Raises:
        ValueError: If the norm has no running statistics, the architecture is unknown, or the
            arrays are of another architecture, which the message names, or of none; then it lists
            the wrong arrays.
    """
    resnet.check_norm(config.model.norm)
    arrays = {library_format.current_name(name): value for name, value in arrays.items()}
    check_arrays(arrays, library_format, config)
    leaves: dict[Path, np.ndarray] = {}
    for path, name in names(library_format, config).items():
        value = resnet.from_oihw(arrays[name])
        if path[:2] in (CLASSES, BOXES):
            cells = _split_anchors(value, _library_grid(library_format, config))
            cells = cells.swapaxes(-3, -2) if library_format.ratio_outer else cells
            if path[:2] == BOXES:
                cells = cells[..., SWAP_AXES]
            elif outputs is not None:
                cells = cells[..., list(outputs)]
            value = cells.reshape(*value.shape[:-1], -1)
        leaves[path] = value
    backbone = {path[1:]: value for path, value in leaves.items() if path[0] == "backbone"}
    others = {path: value for path, value in leaves.items() if path[0] != "backbone"}
    collections = resnet.variables(backbone, config.model.norm)
    params = {"backbone": collections["params"], **traverse_util.unflatten_dict(others)}
    return {"params": params, "batch_stats": {"backbone": collections["batch_stats"]}}


def to_arrays(
    variables: Mapping[str, Any],
    library_format: DetectorFormat,
    config: ConfigDict,
    *,
    as_coco: bool = False,
) -> dict[str, np.ndarray]:
    """Return a state dict of the detector's variables: the inverse of `to_variables`.

    Args:
        variables: The collections "params" and "batch_stats".
        library_format: The format of the library that will load the state dict.
        config: A config of which `model` and `anchors` describe the network.
        as_coco: Whether the classes are COCO's 80, which have fixed places among the outputs of the
            library's COCO models; other outputs get weight 0 and bias NEVER. Otherwise there is an
            output for each class.

    Returns:
        The arrays by the library's names. Where its norms count batches, the counters are 0.

    Raises:
        ValueError: If the library has no such network, or the variables are not those of the
            config's network; then the message lists the wrong arrays.
    """
    leaves = {
        path: np.asarray(value)
        for tree in variables.values()
        for path, value in traverse_util.flatten_dict(tree).items()
    }
    _check_variables(leaves, library_format, config, as_coco)
    arrays = {}
    for path, name in names(library_format, config).items():
        value = leaves[path]
        if path[:2] in (CLASSES, BOXES):
            cells = _split_anchors(value, _grid(config))
            if path[:2] == BOXES:
                cells = cells[..., SWAP_AXES]
            elif as_coco:
                cells = _spread_classes(
                    cells, library_format, 0.0 if path[-1] == "kernel" else NEVER
                )
            cells = cells.swapaxes(-3, -2) if library_format.ratio_outer else cells
            value = cells.reshape(*value.shape[:-1], -1)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        arrays[name] = np.ascontiguousarray(value)
        if path[-1] == "var" and config.model.norm in library_format.counted_norms:
            arrays[f"{name.rpartition('.')[0]}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def names(library_format: DetectorFormat, config: ConfigDict) -> dict[Path, str]:
    """Return the library's name of each array by its path in our detector."""
    backbone = library_format.backbone.names(config.model.backbone, library_format.backbone_prefix)
    result: dict[Path, str] = {("backbone", *path): name for path, name in backbone.items()}
    for path in _shapes(config, 1):
        if path[0] != "backbone":
            result[path] = name_of(library_format, path)
    return result


def name_of(library_format: DetectorFormat, path: Path) -> str:
    """Return the library's name of an array outside of the backbone."""
    leaf = "bias" if path[-1] == "bias" else "weight"
    return f"{library_format.module_of(path[:2])}.{leaf}"


def shapes(
    library_format: DetectorFormat, config: ConfigDict, num_outputs: int
) -> dict[str, Shape]:
    """Return the shape of each array by the library's name."""
    own_names = names(library_format, config)
    ours = _shapes(config, num_outputs)
    return {own_names[path]: resnet.oihw_shape(shape) for path, shape in ours.items()}


def missing_names(names: Iterable[str], library_format: DetectorFormat) -> list[str]:
    """Return which of the format's names of pyramid and heads are missing, for any network."""
    parts = [("fpn", layer) for layer in ("lateral3", "output3", "p6", "p7")]
    expected = [*parts, CLASSES, BOXES]
    expected += [(head, "conv0") for head in HEADS]
    has_norm = library_format.model["head_norm"] == "group"
    biases = [(head, "norm0" if has_norm else "conv0", "bias") for head in HEADS]
    present = {library_format.current_name(name) for name in names}
    paths = [*((*layer, "kernel") for layer in expected), *biases]
    return [name for path in paths if (name := name_of(library_format, path)) not in present]


def num_classes(variables: Mapping[str, Any], config: ConfigDict) -> int:
    """Return the number of classes of a detector."""
    head, layer = CLASSES
    return variables["params"][head][layer]["bias"].size // anchors_per_cell(config)


def check_arrays(
    arrays: Mapping[str, np.ndarray], library_format: DetectorFormat, config: ConfigDict
) -> None:
    """Raise ValueError if `arrays`, by current names, are not of a detector of the config."""
    bias = np.shape(arrays.get(name_of(library_format, (*CLASSES, "bias")), ()))
    num_outputs = bias[0] // anchors_per_cell(config) if len(bias) == 1 else 0

    def shapes_of(architecture: str) -> dict[str, Shape]:
        changed = ConfigDict({"model": config.model.to_dict(), "anchors": config.anchors.to_dict()})
        changed.model.backbone = architecture
        return shapes(library_format, changed, num_outputs or library_format.num_coco_outputs)

    resnet.check_arrays(
        arrays,
        shapes_of,
        architecture=config.model.backbone,
        is_unused=library_format.backbone.is_unused,
        library=library_format.name,
    )


def _check_variables(
    leaves: Mapping[Path, np.ndarray],
    library_format: DetectorFormat,
    config: ConfigDict,
    as_coco: bool,
) -> None:
    """Raise ValueError if the library has no network with these arrays."""
    head_norm = library_format.model["head_norm"]
    if config.model.head_norm != head_norm:
        raise ValueError(
            f"{library_format.name} has no network with config.model.head_norm="
            f"{config.model.head_norm}, only with {head_norm}."
        )
    bias = np.shape(leaves.get((*CLASSES, "bias"), ()))
    classes = bias[0] // anchors_per_cell(config) if bias else 0
    if as_coco and classes != NUM_COCO_CLASSES:
        raise ValueError(
            f"the network has {classes} classes, but COCO has {NUM_COCO_CLASSES}; export each "
            "class as an output of its own."
        )
    wrong = resnet.wrong_arrays(
        {"/".join(path): value for path, value in leaves.items()},
        {"/".join(path): shape for path, shape in _shapes(config, classes or 1).items()},
        lambda name: False,
    )
    if wrong:
        raise ValueError(
            f"the variables are not those of a detector of {library_format.name} with this config: "
            f"{wrong}; it has levels up to P7 and a batch norm, and config.model.backbone_width=64."
        )


def _shapes(config: ConfigDict, num_outputs: int) -> dict[Path, Shape]:
    """Return our shape of each array by its path in the detector; kernels are HWIO."""
    model = config.model
    channels, layers = model.fpn_channels, resnet.layers(model.backbone)
    result: dict[Path, Shape] = {
        ("backbone", *layer.path(leaf)): layer.shape(leaf)
        for layer in layers
        for leaf in resnet.LEAVES
    }

    def add_convolution(part: str, name: str, kernel: Shape, *, bias: bool = True) -> None:
        result[part, name, "kernel"] = kernel
        if bias:
            result[part, name, "bias"] = kernel[-1:]

    for level in (3, 4, 5):
        inputs = resnet.stage_channels(model.backbone, level)
        add_convolution("fpn", f"lateral{level}", (1, 1, inputs, channels))
        add_convolution("fpn", f"output{level}", (3, 3, channels, channels))
    add_convolution("fpn", "p6", (3, 3, inputs if model.p6_from == "c5" else channels, channels))
    add_convolution("fpn", "p7", (3, 3, channels, channels))
    has_norm = model.head_norm == "group"
    for head, outputs in zip(HEADS, (num_outputs, 4), strict=True):
        for index in range(model.head_depth):
            kernel = (3, 3, channels, channels)
            add_convolution(head, f"conv{index}", kernel, bias=not has_norm)
            if has_norm:
                result |= {(head, f"norm{index}", leaf): (channels,) for leaf in ("scale", "bias")}
        add_convolution(head, "predict", (3, 3, channels, anchors_per_cell(config) * outputs))
    return result


def _grid(config: ConfigDict) -> tuple[int, int]:
    """Return the numbers of scales and of ratios of a cell's anchors, in our order."""
    return len(config.anchors.scales), len(config.anchors.ratios)


def _library_grid(library_format: DetectorFormat, config: ConfigDict) -> tuple[int, int]:
    """Return the numbers of scales and of ratios in the library's order."""
    num_scales, num_ratios = _grid(config)
    return (num_ratios, num_scales) if library_format.ratio_outer else (num_scales, num_ratios)


def _split_anchors(value: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Split the channels of a predicting layer's array into (scale, ratio, output) or so."""
    return value.reshape(*value.shape[:-1], *grid, -1)


def _spread_classes(cells: np.ndarray, library_format: DetectorFormat, fill: float) -> np.ndarray:
    """Put COCO's 80 classes at their places among the outputs of the library's COCO models."""
    result = np.full((*cells.shape[:-1], library_format.num_coco_outputs), fill, cells.dtype)
    result[..., list(library_format.coco_outputs)] = cells
    return result
