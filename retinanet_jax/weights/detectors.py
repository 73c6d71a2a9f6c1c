"""Whole detectors: state dicts of other libraries to our variables and back, by one table of names.

A `DetectorFormat` has a library's name of each array of ours, and the order of the channels of its
predicting layers. Importing and exporting read the same table in opposite directions, and change no
bit of a value.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.weights import resnet
from retinanet_jax.weights.resnet import BackboneFormat, Path, Shape

# All three libraries have these numbers, and their builders have no option to change them.
CHANNELS, HEAD_DEPTH = 256, 4
NUM_SCALES, NUM_RATIOS = 3, 3
NUM_ANCHORS = NUM_SCALES * NUM_RATIOS  # per cell

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
    modules: Mapping[Path, str]  # (part, layer) of ours outside of the backbone -> the library's
    coco_outputs: tuple[int, ...]  # of the outputs of its COCO models, those of COCO's categories
    num_coco_outputs: int
    ratio_outer: bool  # a cell's anchors are ordered by ratio, then scale; ours by scale first
    has_counters: bool  # each norm counts batches; strict loading may require the counters
    current_name: Callable[[str], str]  # of an array that older files name differently
    model: Mapping[str, Any]  # fields of config.model that its published weights need
    input: Mapping[str, Any]  # config.input that they need


def to_variables(
    arrays: Mapping[str, np.ndarray],
    library_format: DetectorFormat,
    *,
    architecture: str,
    norm: str,
    num_outputs: int,
) -> dict[str, dict]:
    """Return the detector's variables from a state dict.

    Args:
        arrays: The state dict's arrays by name.
        library_format: The format of the library that wrote them.
        architecture: The backbone's architecture, one of models.ARCHITECTURES.
        norm: The backbone's norm, "frozen_batch" or "batch".
        num_outputs: The number of classes of our network: the number of outputs of the state dict
            or, if it is one of the library's COCO models, 80, in the order of COCO's ids.

    Returns:
        The collections "params" and "batch_stats".

    Raises:
        ValueError: If the norm has no running statistics, the architecture is unknown, the number
            of outputs is another, or the arrays are of another architecture, which the message
            names, or of none; then it lists the wrong arrays.
    """
    resnet.check_norm(norm)
    arrays = {library_format.current_name(name): value for name, value in arrays.items()}
    check_arrays(arrays, library_format, architecture)
    available = count_outputs(arrays, library_format)
    only_coco = num_outputs == NUM_COCO_CLASSES and available == library_format.num_coco_outputs
    if num_outputs != available and not only_coco:
        raise ValueError(
            f"the weights have {available} outputs but {num_outputs} are requested; import all "
            f"{available}, and fine-tune the detector for other classes."
        )
    leaves: dict[Path, np.ndarray] = {}
    for path, name in names(library_format, architecture).items():
        value = resnet.from_oihw(arrays[name])
        if path[:2] in (CLASSES, BOXES):
            value = _swap_order(value, library_format, path)
        if path[:2] == CLASSES and only_coco:
            value = _split_classes(value, available)[..., list(library_format.coco_outputs)]
            value = value.reshape(*value.shape[:-2], -1)
        leaves[path] = value
    backbone = {path[1:]: value for path, value in leaves.items() if path[0] == "backbone"}
    others = {path: value for path, value in leaves.items() if path[0] != "backbone"}
    collections = resnet.variables(backbone, norm)
    params = {"backbone": collections["params"], **traverse_util.unflatten_dict(others)}
    return {"params": params, "batch_stats": {"backbone": collections["batch_stats"]}}


def to_arrays(
    variables: Mapping[str, Any],
    library_format: DetectorFormat,
    *,
    architecture: str,
    num_outputs: int,
) -> dict[str, np.ndarray]:
    """Return a state dict of the detector's variables: the inverse of `to_variables`.

    Args:
        variables: The collections "params" and "batch_stats".
        library_format: The format of the library that will load the state dict.
        architecture: The backbone's architecture, one of models.ARCHITECTURES.
        num_outputs: The number of outputs of the library's network: our number of classes or, if
            that is 80, the number of its COCO models. Outputs without a class of ours then get
            weight 0 and bias NEVER.

    Returns:
        The arrays by the library's names. Where its norms count batches, the counters are 0.

    Raises:
        ValueError: If the number of outputs is another, or the variables are not those of such a
            network; then the message lists the wrong arrays.
    """
    leaves = {
        path: np.asarray(value)
        for tree in variables.values()
        for path, value in traverse_util.flatten_dict(tree).items()
    }
    _check_variables(leaves, library_format, architecture)
    classes = num_classes(variables)
    as_coco = classes == NUM_COCO_CLASSES and num_outputs == library_format.num_coco_outputs
    if num_outputs != classes and not as_coco:
        raise ValueError(
            f"the network has {classes} classes but {num_outputs} outputs are requested of "
            f"{library_format.name}; export {classes}."
        )
    arrays = {}
    for path, name in names(library_format, architecture).items():
        value = leaves[path]
        if path[:2] == CLASSES and as_coco:
            value = _spread_classes(value, library_format, 0.0 if path[-1] == "kernel" else NEVER)
        if path[:2] in (CLASSES, BOXES):
            value = _swap_order(value, library_format, path)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        arrays[name] = np.ascontiguousarray(value)
        if path[-1] == "var" and library_format.has_counters:
            arrays[f"{name.rpartition('.')[0]}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def names(library_format: DetectorFormat, architecture: str) -> dict[Path, str]:
    """Return the library's name of each array by its path in our detector."""
    backbone = library_format.backbone.names(architecture, library_format.backbone_prefix)
    result: dict[Path, str] = {("backbone", *path): name for path, name in backbone.items()}
    for path in _shapes(library_format, architecture, 1):
        if path[0] != "backbone":
            leaf = "bias" if path[-1] == "bias" else "weight"
            result[path] = f"{library_format.modules[path[:2]]}.{leaf}"
    return result


def shapes(library_format: DetectorFormat, architecture: str, num_outputs: int) -> dict[str, Shape]:
    """Return the shape of each array by the library's name."""
    own_names = names(library_format, architecture)
    ours = _shapes(library_format, architecture, num_outputs)
    return {own_names[path]: resnet.oihw_shape(shape) for path, shape in ours.items()}


def count_outputs(arrays: Mapping[str, np.ndarray], library_format: DetectorFormat) -> int:
    """Return the number of outputs per anchor; that of the COCO models if the bias is malformed."""
    bias = np.shape(arrays.get(f"{library_format.modules[CLASSES]}.bias", ()))
    if len(bias) != 1 or bias[0] < NUM_ANCHORS:
        return library_format.num_coco_outputs
    return bias[0] // NUM_ANCHORS


def num_classes(variables: Mapping[str, Any]) -> int:
    """Return the number of classes of a detector with nine anchors per cell."""
    head, layer = CLASSES
    return variables["params"][head][layer]["bias"].size // NUM_ANCHORS


def has_format(arrays: Mapping[str, np.ndarray], library_format: DetectorFormat) -> bool:
    """Whether `arrays` have the format's names of pyramid and heads, whatever the backbone."""
    own_names = names(library_format, "resnet18")
    expected = {name for path, name in own_names.items() if path[0] != "backbone"}
    return expected <= {library_format.current_name(name) for name in arrays}


def check_arrays(
    arrays: Mapping[str, np.ndarray], library_format: DetectorFormat, architecture: str
) -> None:
    """Raise ValueError if `arrays`, by current names, are not a detector's on this architecture."""
    num_outputs = count_outputs(arrays, library_format)
    resnet.check_arrays(
        arrays,
        lambda other: shapes(library_format, other, num_outputs),
        architecture=architecture,
        is_unused=library_format.backbone.is_unused,
        library=library_format.name,
    )


def _check_variables(
    leaves: Mapping[Path, np.ndarray], library_format: DetectorFormat, architecture: str
) -> None:
    """Raise ValueError if the library has no network with these arrays."""
    bias = np.shape(leaves.get((*CLASSES, "bias"), ()))
    classes = bias[0] // NUM_ANCHORS if bias else NUM_COCO_CLASSES
    expected = _shapes(library_format, architecture, max(classes, 1))
    wrong = resnet.wrong_arrays(
        {"/".join(path): value for path, value in leaves.items()},
        {"/".join(path): shape for path, shape in expected.items()},
        lambda name: False,
    )
    if wrong:
        raise ValueError(
            f"{library_format.name} has no such network on {architecture}: {wrong}; it has "
            f"config.model.p6_from={library_format.model['p6_from']!r}, "
            f"head_norm={library_format.model['head_norm']!r}, head_depth={HEAD_DEPTH}, "
            f"fpn_channels={CHANNELS}, a batch norm, and {NUM_ANCHORS} anchors per cell."
        )


def _shapes(
    library_format: DetectorFormat, architecture: str, num_outputs: int
) -> dict[Path, Shape]:
    """Return our shape of each array by its path in the detector; kernels are HWIO."""
    layers = resnet.layers(architecture)
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
        inputs = max(layer.kernel[-1] for layer in layers if layer.stage == level)
        add_convolution("fpn", f"lateral{level}", (1, 1, inputs, CHANNELS))
        add_convolution("fpn", f"output{level}", (3, 3, CHANNELS, CHANNELS))
    p6_inputs = inputs if library_format.model["p6_from"] == "c5" else CHANNELS
    add_convolution("fpn", "p6", (3, 3, p6_inputs, CHANNELS))
    add_convolution("fpn", "p7", (3, 3, CHANNELS, CHANNELS))
    has_norm = library_format.model["head_norm"] == "group"
    for head, outputs in zip(HEADS, (num_outputs, 4), strict=True):
        for index in range(HEAD_DEPTH):
            kernel = (3, 3, CHANNELS, CHANNELS)
            add_convolution(head, f"conv{index}", kernel, bias=not has_norm)
            if has_norm:
                result |= {(head, f"norm{index}", leaf): (CHANNELS,) for leaf in ("scale", "bias")}
        add_convolution(head, "predict", (3, 3, CHANNELS, NUM_ANCHORS * outputs))
    return result


def _swap_order(value: np.ndarray, library_format: DetectorFormat, path: Path) -> np.ndarray:
    """Reorder the channels of a predicting layer's array: from the library's to ours, or back.

    Both directions are the same, since two axes and two pairs of deltas change places.
    """
    cells = value.reshape(*value.shape[:-1], NUM_SCALES, NUM_RATIOS, -1)
    if library_format.ratio_outer:
        cells = cells.swapaxes(-3, -2)
    if path[:2] == BOXES:
        cells = cells[..., SWAP_AXES]
    return cells.reshape(value.shape)


def _split_classes(value: np.ndarray, num_outputs: int) -> np.ndarray:
    """Split the channels (... A*K) of the classification output into (... A K)."""
    return value.reshape(*value.shape[:-1], NUM_ANCHORS, num_outputs)


def _spread_classes(value: np.ndarray, library_format: DetectorFormat, fill: float) -> np.ndarray:
    """Put COCO's 80 classes at their places among the outputs of the library's COCO models."""
    ours = _split_classes(value, NUM_COCO_CLASSES)
    result = np.full((*ours.shape[:-1], library_format.num_coco_outputs), fill, ours.dtype)
    result[..., list(library_format.coco_outputs)] = ours
    return result.reshape(*value.shape[:-1], -1)
