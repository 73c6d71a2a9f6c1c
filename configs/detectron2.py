"""RetinaNet R50-FPN as detectron2 trains it (retinanet_R_50_FPN_1x and _3x).

Command:  retinanet-jax train --config=configs/detectron2.py:1x --workdir=runs/detectron2
          (or :3x, which is three times as long)
Expects:  COCO as configs/r50_fpn.py does; MSRA's ImageNet weights at weights/R-50.pkl, from
          https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl
AP:       37.4 (1x) and 38.7 (3x) on val2017 are detectron2's numbers (its model zoo); not measured
          here.
Hours:    not measured here. detectron2's 0.205 s a step on 8 V100 (its model zoo) are 5.1 for 1x
          and 15.4 for 3x.

Unlike in the paper: short sides of 640 to 800 pixels, L1, the losses of every two images divided by
a moving average of their number of foreground anchors, weight decay on biases too, anchors centered
on their cell's corner and also matched in the padding, boxes clipped after NMS, and Pillow's
antialiased resizing.

Evaluation pads as detectron2 does, and therefore compiles a program for every shape: 53 with sizes
like COCO's; --config.data.eval_shapes=buckets compiles seven. Training differs from detectron2's in
this: a few shapes for the padding, and images without objects are trained on. docs/presets.md has
all details.
"""

from ml_collections import ConfigDict

from retinanet_jax.configs import r50_fpn

SHORT_SIDES = (640, 672, 704, 736, 768, 800)
# Both sides and aspect ratios vary, so seven shapes have 14% padding with ratios like COCO's.
BUCKETS = (
    (800, 800),
    (704, 1024),
    (800, 1120),
    (800, 1344),
    (1024, 704),
    (1120, 800),
    (1344, 800),
)


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is "1x" (the default), "3x", "tiny", or one with "tiny"."""
    config = r50_fpn.get_config().unlock()
    start_from(config, "resnet50", "weights/R-50.pkl")
    config.data.update(short_sides=SHORT_SIDES, buckets=BUCKETS)
    config.data.update(resize="pillow", eval_shapes="own")
    config.model.padding = "plain"
    config.anchors.offset = 0.0
    config.matching.ignore_padding = False
    config.loss.update(beta=0.0, normalizer="ema", ema_momentum=0.9, ema_start=100.0)
    config.loss.ema_images = 2  # as in detectron2's runs: 16 images on 8 GPUs
    config.detections.clip = "after_nms"
    config.optimizer.update(
        decay_biases=True, clip_norm=0.0, warmup_steps=1_000, warmup_factor=1e-3
    )
    return r50_fpn.finished(config, arg, {"1x": lambda config: None, "3x": make_3x})


def make_3x(config: ConfigDict) -> None:
    config.total_steps = 270_000
    config.optimizer.drops = (7 / 9, 25 / 27)  # 210k and 250k


def start_from(config: ConfigDict, backbone: str, path: str) -> None:
    """Start from MSRA's ImageNet weights at `path`, with the network and pixels they require."""
    config.model.update(backbone=backbone, stride_in_1x1=True, norm_epsilon=1e-5)
    config.init.update(source="msra", path=path)
    config.input.update(order="bgr", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
