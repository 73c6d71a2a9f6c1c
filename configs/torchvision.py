"""RetinaNet R50-FPN as torchvision trains it: retinanet_resnet50_fpn (v1) and ..._fpn_v2.

Command:  retinanet-jax train --config=configs/torchvision.py:v1 --workdir=runs/torchvision
          (or :v2)
Expects:  COCO as configs/r50_fpn.py does; torchvision's ImageNet weights, which are downloaded
          unless they are at weights/resnet50-0676ba61.pth (IMAGENET1K_V1), for v2 at
          weights/resnet50-11ad3fa6.pth (IMAGENET1K_V2).
AP:       36.4 (v1) and 41.5 (v2) on val2017 are torchvision's numbers (its weights' records); not
          measured here.
Hours:    not measured here. torchvision's runs were on 8 V100; their hours are not published.

v1 unlike the paper: 26 epochs, L1, losses averaged over images, weight decay on biases too, P6 from
P5, anchors in whole pixels and spread evenly over the padded image, 300 detections. v2 unlike v1:
P6 from C5, GroupNorm in the heads, trained batch norms, GIoU, AdamW, short sides of 480 to 800
pixels (pytorch/vision#5756).

Prediction and evaluation equal torchvision's to rounding, as scripts/compare_torchvision.py checks.
Evaluation therefore compiles a program for every shape: 53 with sizes like COCO's;
--config.data.eval_shapes=buckets compiles seven. Training differs from torchvision's in this: a few
shapes for the padding, 80 classes instead of 91 outputs, and images without objects are trained on,
so the schedule has epochs of 7,393 steps instead of 7,329. docs/presets.md has all details.
"""

from ml_collections import ConfigDict

from retinanet_jax.configs import r50_fpn

STEPS_PER_EPOCH = 7_393  # 118,287 images of train2017 in batches of 16, the last of them smaller
# Both sides and aspect ratios vary, so seven shapes have 21% padding with ratios like COCO's.
V2_BUCKETS = (
    (640, 640),
    (608, 928),
    (768, 1024),
    (800, 1344),
    (928, 608),
    (1024, 768),
    (1344, 800),
)


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is "v1" (the default), "v2", "tiny", or one with "tiny"."""
    config = r50_fpn.get_config().unlock()
    config.total_steps = 26 * STEPS_PER_EPOCH
    config.data.update(resize="bilinear_float", eval_shapes="own")
    config.input.update(order="rgb", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    config.model.update(stride_in_1x1=False, norm_epsilon=1e-5, p6_from="p5", padding="plain")
    config.init.update(source="torchvision", path="weights/resnet50-0676ba61.pth")
    config.anchors.update(offset=0.0, rounding="torchvision", stride_rule="grid")
    config.matching.ignore_padding = False
    config.loss.update(beta=0.0, normalizer="image")
    config.detections.update(max_detections=300, drop_empty=False)
    config.optimizer.update(decay_biases=True, clip_norm=0.0, drops=(16 / 26, 22 / 26))
    config.optimizer.update(warmup_steps=1_000, warmup_factor=1e-3)
    return r50_fpn.finished(config, arg, {"v1": lambda config: None, "v2": make_v2})


def make_v2(config: ConfigDict) -> None:
    config.data.update(short_sides=tuple(range(480, 801, 32)), buckets=V2_BUCKETS)
    config.init.path = "weights/resnet50-11ad3fa6.pth"
    config.model.update(norm="batch", p6_from="c5", head_norm="group")
    config.loss.box = "giou"
    config.optimizer.update(name="adamw", learning_rate=1e-4, weight_decay=0.05)
