"""What torchvision and detectron2 can build, and how, for a checkpoint that is exported to them."""

from ml_collections import ConfigDict

from retinanet_jax import weights
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.config import anchors_per_cell
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.stored_config import network_differences
from retinanet_jax.weights import resnet
from retinanet_jax.weights.presets import preset_config

# Fields that may differ from the target's preset, and the values that they may have; () stands for
# any.
_ANCHORS = {"anchors.base_scale": (), "anchors.scales": (), "anchors.ratios": ()}
_TORCHVISION = {
    "model.backbone": (),
    "model.norm_epsilon": (),
    "model.fpn_channels": (),
    "model.p6_from": ("c5", "p5"),
    **_ANCHORS,
}
FREE_FIELDS = {
    "torchvision_v1": _TORCHVISION,
    "torchvision_v2": _TORCHVISION,
    "detectron2": {
        "model.backbone": (),
        "model.stride_in_1x1": (True, False),
        "model.fpn_channels": (),
        "model.head_depth": (),
        "input.order": ("bgr", "rgb"),
        "input.mean": (),
        "input.std": (),
        **_ANCHORS,
    },
}
GROUPS = 32  # of torchvision's group norm; ours has fewer if 32 do not divide the channels


def check_expressible(trained: Checkpoint, target: str) -> None:
    """Raise ValueError at the first config field with a value that the target's network lacks."""

    def refused(name: str, value: object, allowed: str) -> ValueError:
        return ValueError(
            f"{trained.folder}: {target} has no network with config.{name}={value}, only with "
            f"{allowed}; train with that to export to {target}."
        )

    for name, preset_value, value in network_differences(preset_config(target), trained.config):
        allowed = FREE_FIELDS[target].get(name, (preset_value,))
        if allowed and value not in allowed:
            raise refused(name, value, " or ".join(map(str, allowed)))
    model = trained.config.model
    if model.head_norm == "group" and model.fpn_channels % GROUPS:
        raise refused("model.fpn_channels", model.fpn_channels, f"multiples of {GROUPS}")
    equal = model.fpn_channels == resnet.stage_channels(model.backbone, 5)
    required = weights.DETECTOR_FORMATS[target].p6_from_equal_channels
    if equal and model.p6_from != required:
        raise refused("model.p6_from", model.p6_from, f"{required} if fpn_channels are C5's")


def has_coco_categories(trained: Checkpoint) -> bool:
    """Whether a checkpoint's categories are COCO's 80, which have fixed places in the target."""
    return trained.categories == COCO_CATEGORIES


def target_settings(target: str, trained: Checkpoint) -> list[str]:
    """Return lines that state how the target builds the network that loads the exported file."""
    if has_coco_categories(trained):
        num_outputs = weights.DETECTOR_FORMATS[target].num_coco_outputs
        labels = "COCO's, with the target's own indices"
    else:
        num_outputs = len(trained.categories)
        labels = ", ".join(f"{k} {category.name}" for k, category in enumerate(trained.categories))
    if target == "detectron2":
        lines = _detectron2_settings(trained.config, num_outputs)
    else:
        lines = _torchvision_settings(target, trained.config, num_outputs)
    return [*lines, f"labels: {labels}"]


def _torchvision_settings(target: str, config: ConfigDict, num_outputs: int) -> list[str]:
    """Return torchvision's call, or the statements that build another network than it does."""
    changed = {name for name, *_ in network_differences(preset_config(target), config)}
    if changed - {"model.norm_epsilon"}:
        return _torchvision_statements(config, num_outputs)
    version = "" if target == "torchvision_v1" else "_v2"
    lines = [
        f"retinanet_resnet50_fpn{version}(weights=None, weights_backbone=None, "
        f"num_classes={num_outputs})"
    ]
    built = 1e-5
    if config.model.norm_epsilon != built:
        lines.append(
            f"then eps = {config.model.norm_epsilon} in every norm of its backbone, which the file "
            "cannot contain"
        )
    return lines


def _torchvision_statements(config: ConfigDict, num_outputs: int) -> list[str]:
    """Return statements, without imports, that build a network of torchvision's parts."""
    model, anchors = config.model, config.anchors
    channels = [resnet.stage_channels(model.backbone, stage) for stage in (3, 4, 5)]
    p6_inputs = channels[-1] if model.p6_from == "c5" else model.fpn_channels
    norm = "FrozenBatchNorm2d" if model.norm == "frozen_batch" else "BatchNorm2d"
    # As core.cell_anchors truncates them for anchors.rounding="torchvision".
    sizes = [
        tuple(int(anchors.base_scale * 2**level * scale) for scale in anchors.scales)
        for level in range(anchors.min_level, anchors.max_level + 1)
    ]
    ratios = (tuple(anchors.ratios),) * len(sizes)
    per_cell = anchors_per_cell(config)
    head_norm = f", norm_layer=partial(GroupNorm, {GROUPS})" if model.head_norm == "group" else ""
    return [
        f"body = {model.backbone}(norm_layer=partial({norm}, eps={model.norm_epsilon}))",
        "layers = {'layer2': '0', 'layer3': '1', 'layer4': '2'}",
        f"p6p7 = LastLevelP6P7({p6_inputs}, {model.fpn_channels})",
        f"backbone = BackboneWithFPN(body, layers, {channels}, {model.fpn_channels}, p6p7)",
        f"anchors = AnchorGenerator({tuple(sizes)}, {ratios})",
        f"head = RetinaNetHead({model.fpn_channels}, {per_cell}, {num_outputs}{head_norm})",
        f"RetinaNet(backbone, {num_outputs}, anchor_generator=anchors, head=head)",
    ]


def _detectron2_settings(config: ConfigDict, num_outputs: int) -> list[str]:
    """Return the fields of detectron2's config."""
    mean, std = list(config.input.mean), list(config.input.std)
    return [
        f"MODEL.RETINANET.NUM_CLASSES {num_outputs} of RetinaNet with FPN on "
        f"{config.model.backbone}",
        f"MODEL.RESNETS.STRIDE_IN_1X1 {config.model.stride_in_1x1}",
        f"INPUT.FORMAT {config.input.order.upper()} MODEL.PIXEL_MEAN {mean} MODEL.PIXEL_STD {std}",
        *_changed_detectron2_settings(config),
    ]


def _changed_detectron2_settings(config: ConfigDict) -> list[str]:
    """Return further fields of detectron2's config that differ from its own values."""
    model, anchors = config.model, config.anchors
    sizes = [
        [anchors.base_scale * 2**level * scale for scale in anchors.scales]
        for level in range(anchors.min_level, anchors.max_level + 1)
    ]
    fields = {
        "model.head_depth": f"MODEL.RETINANET.NUM_CONVS {model.head_depth}",
        "model.fpn_channels": f"MODEL.FPN.OUT_CHANNELS {model.fpn_channels}",
        "anchors.base_scale": f"MODEL.ANCHOR_GENERATOR.SIZES {sizes}",
        "anchors.scales": f"MODEL.ANCHOR_GENERATOR.SIZES {sizes}",
        "anchors.ratios": f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS {[list(anchors.ratios)]}",
    }
    differing = network_differences(preset_config("detectron2"), config)
    return list(dict.fromkeys(fields[name] for name, *_ in differing if name in fields))
