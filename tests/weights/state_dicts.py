"""State dicts of torchvision's classifiers and of the libraries' detectors, with seeded values.

The shapes are written down from the libraries' modules, independently of retinanet_jax.weights. The
values follow from a seed and each array's name and shape. The golden files (scripts/make_golden.py)
and the parity data were made with them, and scripts/compare_torchvision.py uses them too.
"""

import re
import zlib

import numpy as np

from retinanet_jax.models import ARCHITECTURES


def classifier_shapes(architecture):
    """Return the shape of each array of torchvision's classifier by name."""
    settings = ARCHITECTURES[architecture]
    expansion = 4 if settings["bottleneck"] else 1
    groups = settings.get("groups", 1)
    shapes = {}

    def conv_norm(conv, norm, shape):
        shapes[f"{conv}.weight"] = shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv_norm("conv1", "bn1", (64, 3, 7, 7))
    inputs = 64
    for layer, size in enumerate(settings["stage_sizes"], start=1):
        planes = 32 * 2**layer
        width = planes * settings.get("width_per_group", 64) // 64 * groups
        for block in range(size):
            prefix, outputs = f"layer{layer}.{block}.", planes * expansion
            if settings["bottleneck"]:
                conv_norm(f"{prefix}conv1", f"{prefix}bn1", (width, inputs, 1, 1))
                conv_norm(f"{prefix}conv2", f"{prefix}bn2", (width, width // groups, 3, 3))
                conv_norm(f"{prefix}conv3", f"{prefix}bn3", (outputs, width, 1, 1))
            else:
                conv_norm(f"{prefix}conv1", f"{prefix}bn1", (planes, inputs, 3, 3))
                conv_norm(f"{prefix}conv2", f"{prefix}bn2", (planes, planes, 3, 3))
            if inputs != outputs:
                conv_norm(f"{prefix}downsample.0", f"{prefix}downsample.1", (outputs, inputs, 1, 1))
            inputs = outputs
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


def small_variance_value(name, shape, seed):
    """Return the value of one array of a classifier.

    Variances are small, so that another epsilon makes a difference. The kernels are smaller by as
    much, and a block's last norm has a small scale, so that no map grows from block to block.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.array(7)
    if len(shape) > 1:
        deviation = 0.1 * (2 / np.prod(shape[1:])) ** 0.5
        return deviation.astype(np.float32) * rng.standard_normal(shape, np.float32)
    if leaf == "running_var":
        return rng.uniform(0.005, 0.015, shape).astype(np.float32)
    if leaf == "weight":
        low, high = (0.2, 0.4) if ".bn3." in name else (0.6, 1.4)
        return rng.uniform(low, high, shape).astype(np.float32)
    return rng.normal(0, 0.1, shape).astype(np.float32)


def detectron2_name(name):
    """Return the name that detectron2's converter gives to an array of torchvision's classifier."""
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    return name if name.startswith("res") else f"stem.{name}"


def detector_shapes(
    source, architecture, num_outputs, *, channels=256, num_anchors=9, p6_from=None, counters=None
):
    """Return the shape of each array of a library's whole detector by name.

    `p6_from` and whether there are `counters` of batches are the library's own choices by default.
    """
    v2, d2 = source == "torchvision_v2", source == "detectron2"
    counters = v2 if counters is None else counters
    shapes = {}
    for name, shape in classifier_shapes(architecture).items():
        if name.startswith("fc.") or (name.endswith("num_batches_tracked") and not counters):
            continue
        prefix, name = ("bottom_up", detectron2_name(name)) if d2 else ("body", name)
        shapes[f"backbone.{prefix}.{name}"] = shape

    def conv(name, outputs, inputs, kernel, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    planes = 512 if ARCHITECTURES[architecture]["bottleneck"] else 128
    for index in range(3):
        lateral, output = (
            (f"backbone.fpn_lateral{index + 3}", f"backbone.fpn_output{index + 3}")
            if d2
            else (f"backbone.fpn.inner_blocks.{index}.0", f"backbone.fpn.layer_blocks.{index}.0")
        )
        conv(lateral, channels, planes * 2**index, 1)
        conv(output, channels, channels, 3)
    extra = "backbone.top_block" if d2 else "backbone.fpn.extra_blocks"
    p6_from = p6_from or ("c5" if v2 or d2 else "p5")
    conv(f"{extra}.p6", channels, 4 * planes if p6_from == "c5" else channels, 3)
    conv(f"{extra}.p7", channels, channels, 3)
    names = (
        {"cls_subnet": "cls_score", "bbox_subnet": "bbox_pred"}
        if d2
        else {"classification_head.conv": "cls_logits", "regression_head.conv": "bbox_reg"}
    )
    for (tower, predictor), outputs in zip(names.items(), (num_outputs, 4), strict=True):
        for index in range(4):
            module = f"head.{tower}.{2 * index if d2 else f'{index}.0'}"
            conv(module, channels, channels, 3, bias=not v2)
            if v2:
                norm = f"head.{tower}.{index}.1"
                shapes |= {f"{norm}.{leaf}": (channels,) for leaf in ("weight", "bias")}
        at = "" if d2 else tower.removesuffix("conv")
        conv(f"head.{at}{predictor}", num_anchors * outputs, channels, 3)
    return shapes


def own_detector(case):
    """Return the arrays of a case of tests/golden/torchvision_own_detectors.json."""
    fields = case["fields"]
    shapes = detector_shapes(
        case["source"],
        fields["model.backbone"],
        case["outputs"],
        channels=fields["model.fpn_channels"],
        num_anchors=len(fields["anchors.scales"]) * len(fields["anchors.ratios"]),
        p6_from=fields["model.p6_from"],
        counters=fields["model.norm"] == "batch",
    )
    last_norm = ".bn3." if ARCHITECTURES[fields["model.backbone"]]["bottleneck"] else ".bn2."
    return {name: own_value(name, shape, case["seed"], last_norm) for name, shape in shapes.items()}


def own_value(name, shape, seed, last_norm):
    """Return a value as `parity_value` does, but with variances as small as the epsilon of norms.

    The norms' scales are smaller by as much, and those of the `last_norm` of a block even more, so
    that no map grows from block to block. P6 and P7 have large values, so that many detections are
    on these levels.
    """
    value = parity_value(name, shape, seed, cls_bias=-3.0, bias_deviations=(0.1, 0.1))
    if "extra_blocks" in name:
        return value * np.float32(12)
    if name.endswith("running_var"):
        return value * np.float32(1e-4)
    if "body." in name and len(shape) == 1 and name.endswith(".weight"):
        return value * np.float32(3e-3 if last_norm in name else 1e-2)
    return value


def parity_value(name, shape, seed, cls_bias, bias_deviations=(0.5, 0.05)):
    """Return the value of one array of a detector, as in the parity data.

    Norms have random statistics, and a block's last norm has a small scale, so that no map grows
    from block to block. `cls_bias` is the mean of the class logits' biases; `bias_deviations` are
    the standard deviations of those and of all other biases.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    leaf = name.rpartition(".")[2]
    predicts_classes = "cls_logits" in name or "cls_score" in name
    predicts_boxes = "bbox_reg." in name or "bbox_pred." in name
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        value = rng.normal(0, 0.1, shape)
    elif leaf == "bias":
        cls_deviation, deviation = bias_deviations
        value = (
            rng.normal(cls_bias, cls_deviation, shape)
            if predicts_classes
            else rng.normal(0, deviation, shape)
        )
    elif len(shape) == 1:
        is_last = ".bn3." in name or ".conv3.norm." in name
        value = rng.uniform(*((0.2, 0.4) if is_last else (0.6, 1.4)), shape)
    else:
        gain = 1.0
        if predicts_classes:
            factor = 0.7
        elif predicts_boxes:
            factor = 0.25
        elif "fpn" in name or ".p6." in name or ".p7." in name:
            factor = 0.5
        else:
            factor, gain = 1.0, 2.0
        value = rng.normal(0, factor * (gain / np.prod(shape[1:])) ** 0.5, shape)
    return value.astype(np.float32)
