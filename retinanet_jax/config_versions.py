"""The versions of the config fields, by which checkpoints of earlier versions are read."""

from typing import Any

# The version of the config fields, which every checkpoint stores; that of 0.1.0 was 1.
CONFIG_VERSION = 8
# The changes of each version: renamed fields, and new fields with the value that reproduces the
# behavior of earlier versions.
RENAMED_FIELDS = {
    2: {"data.validation_share": "data.validation_fraction", "data.quarter_turns": "data.rot90"},
    3: {},
    4: {},
    5: {},
    6: {},
    7: {},
    8: {},
}
ADDED_FIELDS: dict[int, dict[str, Any]] = {
    2: {},
    3: {
        "model.padding": "plain",
        "optimizer.schedule_steps": 0,
        "optimizer.decay_biases": False,
        "loss.ema_images": 0,
    },
    4: {
        "data.value_range": "type",
        "data.exif": "applied",
        "data.split_groups": "none",
    },
    5: {"nonfinite": "stop", "shard_optimizer": False},
    6: {"loggers": ()},
    7: {
        "epochs": 0,
        "choose_anchors": False,
        "patience": 0,
        "optimizer.ema_decay": 0.0,
        "optimizer.accumulate": 1,
        "optimizer.layer_decay": 1.0,
        "model.remat": (),
        "model.frozen_parts": (),
        "data.affine.rotation": 0.0,
        "data.affine.shear": 0.0,
        "data.affine.scale": (1.0, 1.0),
        "data.affine.translation": 0.0,
        "data.mosaic": 0.0,
        "data.mixup": 0.0,
        "data.copy_paste": 0.0,
        "data.unmixed_fraction": 0.1,
        "data.gray": 0.0,
        "data.blur": 0.0,
        "data.jpeg": 0.0,
        "data.cutout": 0.0,
        "data.augmentation": "",
        "data.repeat_threshold": 0.0,
    },
    8: {"float32_gradients": False},
}
