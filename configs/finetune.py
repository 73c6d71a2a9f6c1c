"""Your own images: torchvision's detector of COCO becomes a detector of your classes.

Command:  retinanet-jax train --config=configs/finetune.py --data=mine --workdir=runs/mine
A fifth of the training images is held out for evaluation unless the dataset has evaluation data.
The names and the number of the classes come from the dataset.
Without --config, the command chooses one of these arguments for the device:
            :cpu (as without an argument) trains 2,500 steps at 256 pixels, of 2 images, or of 4 if
            the start is a backbone;
            :gpu, also for TPUs, trains 60 epochs at 640 pixels in bfloat16, with the batch size
            that the memory allows.
Another argument names the weights to start from (:imagenet,gpu); without one they are
torchvision_v2, which are downloaded (153 MB) and converted at the first use.
            :torchvision_v1, :torchvision_v2, :detectron2_r50_1x, :detectron2_r50_3x (also
            :detectron2) and :detectron2_r101_3x are detectors of COCO. All weights are transferred
            except those of classes that only one of the datasets has; the run prints a table.
            :imagenet is an ImageNet ResNet-50, with a smaller pyramid and heads.
            --weights=NAME starts from any weights of retinanet_jax/weights/named.py, and
            --weights=DIR_OR_FILE from a detector that was trained here or is in a file; both with
            the network that these require.
Expects:  what the argument names, from a network, or at the path that the error message names.
Measured: 296 photographs of playing cards (6 classes), :imagenet, --config.data.flip=False, 67 for
          testing: AP .849 and .853, AP50 .975 and .978 after 28 minutes on two CPU cores (seeds 0
          and 1, version 0.11.0, jax 0.10.2, 2026-11-27); docs/results.md has others.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from retinanet_jax.configs import r50_fpn
from retinanet_jax.weights import named

DEFAULT = "torchvision_v2"
# Further arguments, which stand for names of weights.
ALIASES = {"imagenet": "resnet50", "detectron2": "detectron2_r50_3x"}


def get_config(arg: str = "") -> ConfigDict:
    """Return the config.

    Args:
        arg: Names separated by commas: the weights to start from (a detector's name or one of
            ALIASES), one of DEVICES, and "tiny". Each may be missing.
    """
    names = {name: name for name in named.DETECTORS} | ALIASES
    choices = {arg: functools.partial(start_from_name, name=name) for arg, name in names.items()}
    config = base_config()
    if not set(arg.split(",")) & set(choices):
        start_from_name(config, DEFAULT)
    return r50_fpn.finished(config, arg, choices, DEVICES)


def base_config() -> ConfigDict:
    """Return the config without weights, unlocked; its network suits the weights of a backbone."""
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
    return config


def use_gpu(config: ConfigDict) -> None:
    """Train on larger images and more of them, for a device that is much faster than a CPU."""
    config.dtype = "bfloat16"
    # The batch size, and so the number of steps of an epoch, depend on the device's memory.
    config.update(epochs=60, checkpoint_every=0, evaluate_every=0)
    config.data.update(
        batch_size=0,
        eval_batch_size=8,
        buckets=(
            *((640, 640), (640, 864), (640, 960), (640, 1088)),
            *((864, 640), (960, 640), (1088, 640)),
        ),
        short_sides=(640,),
        eval_short_side=640,
        long_side=1066,
    )
    # AdamW's rate grows with the square root of the batch: from 1e-4 for 2 images to 3e-4 for 16.
    config.optimizer.update(learning_rate=3e-4, reference_batch_size=16)


# The arguments for a device. Those who name none have always had the CPU's.
DEVICES = {"cpu": lambda config: None, "gpu": use_gpu}


def start_from_name(config: ConfigDict, name: str) -> None:
    """Start from one of named.NAMES, with the network that it requires."""
    weights, network = named.NAMES[name], named.network_of(name)
    if name in named.DETECTORS:
        start_from_detector(config, name, network)
    else:
        set_network(config, network)
        config.init.update(source=weights.source, path=name)
        learn_from_backbone(config)


def learn_from_backbone(config: ConfigDict) -> None:
    """Train a pyramid and heads that begin at random, which takes more images (docs/results.md).

    `use_gpu` has other sizes and another batch with its rate.
    """
    # On a CPU, a third of the time of a step of 2 images does not depend on how many they are.
    config.data.update(batch_size=4, augmentation="light")
    config.optimizer.update(learning_rate=2.8e-4, reference_batch_size=4)
    # Detection is a little better above the size of training (docs/results.md).
    config.data.update(
        buckets=(*config.data.buckets, (288, 384), (288, 544), (384, 288), (544, 288)),
        eval_short_side=288,
        long_side=540,
    )


def start_from_detector(config: ConfigDict, weights: str, network: Mapping[str, Any]) -> None:
    """Start from a detector, with its network.

    Args:
        config: The config, unlocked; it is changed.
        weights: A name, a working directory or a file, as in config.init.path.
        network: The fields of the config that the detector was trained with, by section.
    """
    set_network(config, network)
    # Batches of 2 are too small to train norms with; frozen norms have the same arrays.
    if config.model.norm == "batch":
        config.model.norm = "frozen_batch"
    config.model.frozen_stages = 3
    # The weights adapt to masked padding within a few steps; then the detections of an image do not
    # depend on its padding.
    config.model.padding, config.anchors.stride_rule = "masked", "nominal"
    config.init.update(source="checkpoint", path=weights)


def set_network(config: ConfigDict, network: Mapping[str, Any]) -> None:
    """Copy the fields that determine the meaning of weights."""
    for section, fields in network.items():
        config[section].update(fields)
