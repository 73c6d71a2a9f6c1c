"""Your own images in COCO format: an ImageNet ResNet-50 becomes a detector of your classes.

Command:  retinanet-jax train --config=configs/finetune.py --workdir=runs/mine
            --config.data.train.annotations=mine/train.json --config.data.train.images=mine/train
Give --config.data.eval.annotations and .images as well if there is a validation set; otherwise a
fifth of the training images is held out, chosen by a hash of the file name, so that it is always
the same fifth. The names and the number of the classes come from the dataset.
To start from a detector of COCO, which `retinanet-jax import-weights` wrote to runs/coco, give
            --config=configs/finetune.py:torchvision_v1 --config.init.path=runs/coco
            (or :torchvision_v2, :detectron2; with --config.model.backbone=resnet101 for that
            backbone). All weights are transferred except those of classes that only one of the
            datasets has; the run prints a table of them.
            To start from a detector trained here, give the config that it was trained with, and
            --config.init.source=checkpoint --config.init.path=ITS_WORKDIR
Expects:  ImageNet weights at weights/resnet50.npz (scripts/get_resnet50.py writes them).
Measured: 296 photographs of playing cards (6 classes), --config.data.flip=False, 67 for testing:
          AP .517, AP50 .730 after 1,000 steps, .636, .813 after 1,500 and .731, .907 at the end,
          2,500, in 48 minutes on two CPU cores with other load (seed 0, one run, version 0.1.0 with
          plain padding, jax 0.10.2, 2026-11-23).
"""

import functools

from ml_collections import ConfigDict

from retinanet_jax.configs import detectron2, r50_fpn, torchvision

# The config of each detector; torchvision runs its own v1 without an epsilon.
DETECTORS = {
    "torchvision_v1": lambda: torchvision.get_config("v1"),
    "torchvision_v2": lambda: torchvision.get_config("v2"),
    "detectron2": lambda: detectron2.get_config("3x"),
}
EPSILONS = {"torchvision_v1": 0.0}


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is one of DETECTORS, "tiny", both, or "": an ImageNet backbone."""
    config = r50_fpn.get_config().unlock()
    config.update(total_steps=2_500, checkpoint_every=250, evaluate_every=500)
    config.data.train.update(annotations="", images="")
    config.data.eval.update(annotations="", images="")
    config.data.update(
        validation_fraction=0.2,
        batch_size=2,
        eval_batch_size=4,
        buckets=((256, 256), (256, 352), (256, 480), (352, 256), (480, 256)),
        short_sides=(256,),
        eval_short_side=256,
        long_side=480,
    )
    # New layers learn faster with group norm, AdamW and GIoU; a few hundred images need neither
    # the paper's 256 channels nor training of the early ImageNet stages.
    config.model.update(fpn_channels=128, head_depth=3, head_norm="group", frozen_stages=3)
    config.loss.box = "giou"
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-4,
        reference_batch_size=2,
        weight_decay=0.05,
        warmup_steps=100,
        warmup_factor=0.01,
        schedule="cosine",
    )
    choices = {name: functools.partial(start_from, detector=name) for name in DETECTORS}
    return r50_fpn.finished(config, arg, choices)


def start_from(config: ConfigDict, detector: str) -> None:
    """Copy the fields that define the meaning of an imported detector's weights."""
    trained_with = DETECTORS[detector]()
    for section in ("model", "anchors", "input"):
        config[section].update(trained_with[section])
    # Batches of 2 are too small to train norms with; frozen norms have the same arrays.
    config.model.update(norm="frozen_batch", frozen_stages=3)
    config.model.norm_epsilon = EPSILONS.get(detector, trained_with.model.norm_epsilon)
    # The weights adapt to masked padding within a few steps; then the detections of an image do not
    # depend on its padding.
    config.model.padding, config.anchors.stride_rule = "masked", "nominal"
    config.init.update(source="checkpoint", path="")
