"""Whole detectors: other libraries' state dicts and our variables, both ways by one table of names.

A `Format` says what a library calls each array of ours and how its predicting layers order their
channels. Importing reads it from their names to our paths, exporting back, bit for bit.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.weights import resnet
from retinanet_jax.weights.resnet import Path, Shape

# What all three libraries have, and what their builders give no choice of.
CHANNELS, HEAD_DEPTH = 256, 4
NUM_SCALES, NUM_RATIOS = 3, 3
NUM_ANCHORS = NUM_SCALES * NUM_RATIOS  # of a cell

NUM_COCO_CLASSES = 80
# Ids that COCO's 80 categories have, in order: ten of 1..90 were never given.
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
# The logit of an output that no class has. A score of 4e-44 passes no threshold, and unlike minus
# infinity it leaves a loss and its gradient finite for those who train on.
NEVER = -100.0

HEADS = ("classification_head", "box_head")
CLASSES = ("classification_head", "predict")
BOXES = ("box_head", "predict")
# (dx, dy, dw, dh) from (dy, dx, dh, dw), and back.
OTHER_AXES_FIRST = [1, 0, 3, 2]


class Format(NamedTuple):
    """How a library holds a RetinaNet, and what its published ones must be and be fed."""

    name: str  # by which a person asks for it
    backbone: Callable[[str], Mapping[Path, str]]  # architecture -> names, by path in our backbone
    modules: Mapping[Path, str]  # (part, layer) of ours outside of the backbone -> name of theirs
    coco_outputs: tuple[int, ...]  # of those that its COCO models have, the ones of COCO's classes
    num_coco_outputs: int
    ratio_outer: bool  # of the anchors of a cell: by ratio, then scale; ours are by scale first
    has_counters: bool  # of the batches that each norm has seen; strict loading may ask for them
    is_unused: Callable[[str], bool]  # names that hold nothing a network computes with
    current_name: Callable[[str], str]  # of an array that older files call otherwise
    model: Mapping[str, Any]  # fields of config.model that its published weights need
    input: Mapping[str, Any]  # config.input that they need


def to_variables(
    arrays: Mapping[str, np.ndarray],
    form: Format,
    *,
    architecture: str,
    norm: str,
    num_outputs: int,
) -> dict[str, dict]:
    """Return the detector's variables {"params", "batch_stats"} from a state dict's arrays.

    Args:
        arrays: by their names in `form`.
        form: whose they are.
        architecture: of the backbone (models.ARCHITECTURES).
        norm: the backbone's, "frozen_batch" or "batch".
        num_outputs: classes of our network: as many as the arrays have outputs, or 80 of those
            that the library's COCO models have, in the order of COCO's ids.

    Raises:
        ValueError: another norm, an unknown architecture, another number of outputs, and arrays of
            another library or architecture (it says whose) or wrong ones (it names them).
    """
    resnet.check_norm(norm)
    arrays = {form.current_name(name): value for name, value in arrays.items()}
    check_arrays(arrays, form, architecture)
    held = outputs_held(arrays, form)
    cut = num_outputs == NUM_COCO_CLASSES and held == form.num_coco_outputs
    if num_outputs != held and not cut:
        raise ValueError(
            f"the weights have {held} outputs and the network is to have {num_outputs}; "
            f"import all {held}, and fine-tune from them for other classes."
        )
    leaves: dict[Path, np.ndarray] = {
        path: resnet.from_oihw(arrays[name]) for path, name in names(form, architecture).items()
    }
    for path, value in leaves.items():
        if path[:2] in (CLASSES, BOXES):
            leaves[path] = _reordered(value, form, path)
        if path[:2] == CLASSES and cut:
            leaves[path] = _by_class(leaves[path], held)[..., list(form.coco_outputs)]
            leaves[path] = leaves[path].reshape(*value.shape[:-1], -1)
    backbone = {path[1:]: value for path, value in leaves.items() if path[0] == "backbone"}
    rest = {path: value for path, value in leaves.items() if path[0] != "backbone"}
    collections = resnet.variables(backbone, norm)
    params = {"backbone": collections["params"], **traverse_util.unflatten_dict(rest)}
    return {"params": params, "batch_stats": {"backbone": collections["batch_stats"]}}


def to_arrays(
    variables: Mapping[str, Any], form: Format, *, architecture: str, num_outputs: int
) -> dict[str, np.ndarray]:
    """Return the state dict's arrays by the library's names: `to_variables` backwards.

    `num_outputs` is what the library's network is to have: as many as ours has classes or, of 80,
    as many as its COCO models have; outputs that no class of ours has then have weight 0 and bias
    NEVER. Where the format counts batches, the counts are 0. Raises ValueError for another number
    of outputs and, naming the arrays, where the variables are not such a network's.
    """
    leaves = {
        path: np.asarray(value)
        for tree in variables.values()
        for path, value in traverse_util.flatten_dict(tree).items()
    }
    _check_variables(leaves, form, architecture)
    held = num_classes(variables)
    spread = held == NUM_COCO_CLASSES and num_outputs == form.num_coco_outputs
    if num_outputs != held and not spread:
        raise ValueError(
            f"the network has {held} classes and {form.name}'s is to have {num_outputs} outputs; "
            f"export {held}."
        )
    arrays = {}
    for path, name in names(form, architecture).items():
        value = leaves[path]
        if path[:2] == CLASSES and spread:
            value = _spread(value, form, 0.0 if path[-1] == "kernel" else NEVER)
        if path[:2] in (CLASSES, BOXES):
            value = _reordered(value, form, path)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        arrays[name] = np.ascontiguousarray(value)
        if path[-1] == "var" and form.has_counters:
            arrays[f"{name.rpartition('.')[0]}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def names(form: Format, architecture: str) -> dict[Path, str]:
    """Return the library's name of each array of our detector, by its path there."""
    backbone = form.backbone(architecture)
    found: dict[Path, str] = {("backbone", *path): name for path, name in backbone.items()}
    for path in _shapes(form, architecture, 1):
        if path[0] != "backbone":
            leaf = "bias" if path[-1] == "bias" else "weight"
            found[path] = f"{form.modules[path[:2]]}.{leaf}"
    return found


def shapes(form: Format, architecture: str, num_outputs: int) -> dict[str, Shape]:
    """Return the shape of each array of the library's by its name."""
    named = names(form, architecture)
    ours = _shapes(form, architecture, num_outputs)
    return {named[path]: resnet.oihw(shape) for path, shape in ours.items()}


def outputs_held(arrays: Mapping[str, np.ndarray], form: Format) -> int:
    """Return how many outputs an anchor has; as the COCO models where that cannot be told."""
    bias = np.shape(arrays.get(f"{form.modules[CLASSES]}.bias", ()))
    if len(bias) != 1 or bias[0] < NUM_ANCHORS:
        return form.num_coco_outputs
    return bias[0] // NUM_ANCHORS


def num_classes(variables: Mapping[str, Any]) -> int:
    """Return how many classes a detector with nine anchors a cell tells apart."""
    head, layer = CLASSES
    return variables["params"][head][layer]["bias"].size // NUM_ANCHORS


def is_of(arrays: Mapping[str, np.ndarray], form: Format) -> bool:
    """Whether `arrays` have the names of pyramid and heads in `form`, whatever the backbone."""
    expected = {name for path, name in names(form, "resnet18").items() if path[0] != "backbone"}
    return expected <= {form.current_name(name) for name in arrays}


def check_arrays(arrays: Mapping[str, np.ndarray], form: Format, architecture: str) -> None:
    """Raise ValueError where `arrays`, by current names, are not an architecture's in `form`."""
    found = problems(arrays, form, architecture)
    if not found:
        return
    for other in ARCHITECTURES:
        if not problems(arrays, form, other):
            raise ValueError(
                f"{form.name} weights of {other}, and the backbone is to be {architecture}; "
                f"ask for {other}, or give another file."
            )
    raise ValueError(
        f"not {form.name} weights of {architecture}: {found}; give the file as it was published."
    )


def problems(arrays: Mapping[str, np.ndarray], form: Format, architecture: str) -> str:
    """Return what differs from an architecture's arrays in `form`, in one line; "" if nothing."""
    expected = shapes(form, architecture, outputs_held(arrays, form))
    return resnet.problems(arrays, expected, form.is_unused)


def _check_variables(leaves: Mapping[Path, np.ndarray], form: Format, architecture: str) -> None:
    bias = np.shape(leaves.get((*CLASSES, "bias"), ()))
    classes = bias[0] // NUM_ANCHORS if bias else NUM_COCO_CLASSES
    expected = _shapes(form, architecture, max(classes, 1))
    found = resnet.problems(
        {"/".join(path): value for path, value in leaves.items()},
        {"/".join(path): shape for path, shape in expected.items()},
        lambda name: False,
    )
    if found:
        raise ValueError(
            f"the network is no {form.name} of {architecture}: {found}; that has "
            f"config.model.p6_from={form.model['p6_from']!r}, "
            f"head_norm={form.model['head_norm']!r}, head_depth={HEAD_DEPTH}, "
            f"fpn_channels={CHANNELS}, a batch norm, and {NUM_ANCHORS} anchors in a cell."
        )


def _shapes(form: Format, architecture: str, num_outputs: int) -> dict[Path, Shape]:
    """Our shape of each array by its path in the detector; kernels are HWIO."""
    layers = resnet.layers(architecture)
    found: dict[Path, Shape] = {
        ("backbone", *layer.path(leaf)): layer.shape(leaf)
        for layer in layers
        for leaf in resnet.LEAVES
    }

    def add_convolution(part: str, name: str, kernel: Shape, *, bias: bool = True) -> None:
        found[part, name, "kernel"] = kernel
        if bias:
            found[part, name, "bias"] = kernel[-1:]

    for level in (3, 4, 5):
        incoming = max(layer.kernel[-1] for layer in layers if layer.stage == level)
        add_convolution("fpn", f"lateral{level}", (1, 1, incoming, CHANNELS))
        add_convolution("fpn", f"output{level}", (3, 3, CHANNELS, CHANNELS))
    p6_incoming = incoming if form.model["p6_from"] == "c5" else CHANNELS
    add_convolution("fpn", "p6", (3, 3, p6_incoming, CHANNELS))
    add_convolution("fpn", "p7", (3, 3, CHANNELS, CHANNELS))
    normed = form.model["head_norm"] == "group"
    for head, outputs in zip(HEADS, (num_outputs, 4), strict=True):
        for index in range(HEAD_DEPTH):
            kernel = (3, 3, CHANNELS, CHANNELS)
            add_convolution(head, f"conv{index}", kernel, bias=not normed)
            if normed:
                found |= {(head, f"norm{index}", leaf): (CHANNELS,) for leaf in ("scale", "bias")}
        add_convolution(head, "predict", (3, 3, CHANNELS, NUM_ANCHORS * outputs))
    return found


def _reordered(value: np.ndarray, form: Format, path: Path) -> np.ndarray:
    """A predicting layer's array in the other's order of channels: theirs to ours, ours to theirs.

    Both ways are the same: two axes, and two pairs of deltas, change places.
    """
    cells = value.reshape(*value.shape[:-1], NUM_SCALES, NUM_RATIOS, -1)
    if form.ratio_outer:
        cells = cells.swapaxes(-3, -2)
    if path[:2] == BOXES:
        cells = cells[..., OTHER_AXES_FIRST]
    return cells.reshape(value.shape)


def _by_class(value: np.ndarray, num_outputs: int) -> np.ndarray:
    return value.reshape(*value.shape[:-1], NUM_ANCHORS, num_outputs)


def _spread(value: np.ndarray, form: Format, filling: float) -> np.ndarray:
    """COCO's 80 classes at their places among the outputs of the library's COCO models."""
    ours = _by_class(value, NUM_COCO_CLASSES)
    theirs = np.full((*ours.shape[:-1], form.num_coco_outputs), filling, ours.dtype)
    theirs[..., list(form.coco_outputs)] = ours
    return theirs.reshape(*value.shape[:-1], -1)
