"""A trained detector as a state dict that another library loads.

python -m retinanet_jax.export_weights --target=torchvision_v1|torchvision_v2|detectron2
    --checkpoint=DIR --output=FILE.pth|.npz|.safetensors

A state dict holds no more than arrays: the target builds its own network and anchors, so what it
would build otherwise is refused.
"""

import pathlib
import sys
from collections.abc import Iterator

from absl import app, flags, logging
from ml_collections import ConfigDict

from retinanet_jax import checkpoint, command, weights
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.detector import choose
from retinanet_jax.import_weights import PRESETS, preset_config

# Fields that every target takes as they are: how training went on, and how outputs started.
FREE = ("model.backbone", "model.frozen_stages", "model.prior_probability")
# Frozen or trained batch norms are the same four arrays.
NORMS = {"frozen_batch", "batch"}
# Fields that a target has settings for, and the values that they take there; () is any.
SETTINGS = {
    "torchvision_v1": {"model.norm_epsilon": (0.0, 1e-5)},
    "torchvision_v2": {},
    "detectron2": {
        "model.stride_in_1x1": (True, False),
        "input.order": ("bgr", "rgb"),
        "input.mean": (),
        "input.std": (),
    },
}


def run(target: str, path: str, output: pathlib.Path) -> list[str]:
    """Writes the file, and returns what the target must be told; ValueError for what it can't be.

    `path` is a working directory or a step's folder; `output` must not be there.
    """
    choose("target", target, PRESETS)
    if output.exists():
        raise FileExistsError(f"--output={output} is there already; give another file.")
    trained = checkpoint.load(path)
    check_expressible(trained, target)
    variables, architecture = trained.variables, trained.config.model.backbone
    weights.save_detector(
        target, output, variables, architecture=architecture, outputs=outputs_of(trained)
    )
    return settings(target, trained)


def outputs_of(trained: checkpoint.Trained) -> str:
    """Whether COCO's 80 classes take their places among the target's outputs, or all are kept."""
    return "coco" if trained.categories == COCO_CATEGORIES else "all"


def check_expressible(trained: checkpoint.Trained, target: str) -> None:
    """Raises ValueError at the first field whose value the target's network cannot have."""
    for name, can, have in differing(preset_config(target), trained.config):
        allowed = SETTINGS[target].get(name)
        if name in FREE or (name == "model.norm" and have in NORMS):
            continue
        if allowed is None or (allowed and have not in allowed):
            known = " or ".join(map(str, allowed or (can,)))
            raise ValueError(
                f"{trained.folder}: {target} has no config.{name}={have}, it has {known} alone; "
                "train with that to export there."
            )


def differing(preset: ConfigDict, config: ConfigDict) -> Iterator[tuple[str, object, object]]:
    """(name, the preset's value, the config's) of the fields that say what weights mean."""
    found = checkpoint.differences(checkpoint.plain(preset), checkpoint.plain(config))
    return (one for one in found if one[0].partition(".")[0] in checkpoint.DEFINING)


def settings(target: str, trained: checkpoint.Trained) -> list[str]:
    """How the target builds the network that loads the file."""
    model, pixels = trained.config.model, trained.config.input
    spread = outputs_of(trained) == "coco"
    outputs = weights.DETECTOR_FORMATS[target].num_coco_outputs
    classes = outputs if spread else len(trained.categories)
    labels = (
        "COCO's, in the target's own numbers"
        if spread
        else ", ".join(f"{k} {category.name}" for k, category in enumerate(trained.categories))
    )
    if target == "detectron2":
        built = [
            f"MODEL.RETINANET.NUM_CLASSES {classes} of RetinaNet with FPN on {model.backbone}",
            f"MODEL.RESNETS.STRIDE_IN_1X1 {model.stride_in_1x1}",
            f"INPUT.FORMAT {pixels.order.upper()} MODEL.PIXEL_MEAN {list(pixels.mean)} "
            f"MODEL.PIXEL_STD {list(pixels.std)}",
        ]
    else:
        version = "" if target == "torchvision_v1" else "_v2"
        other = "" if model.backbone == "resnet50" else f", on {model.backbone} for its resnet50"
        built = [
            f"retinanet_resnet50_fpn{version}(weights=None, weights_backbone=None, "
            f"num_classes={classes}){other}"
        ]
        if model.norm_epsilon == 0:
            built.append("then eps = 0.0 in every norm of its backbone, which the file cannot hold")
    return [*built, f"labels: {labels}"]


def main(_: list[str]) -> None:
    """Exports, and says how the target loads it."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    values = flags.FLAGS
    if not values.target or not values.checkpoint or not values.output:
        sys.exit("error: give --target=NAME, --checkpoint=DIR and --output=FILE.")
    output = pathlib.Path(values.output).expanduser().absolute()
    with command.told_in_one_line():
        told = run(values.target, values.checkpoint, output)
    print(f"{output}: for {values.target}, built as", *told, sep="\n  ")


if __name__ == "__main__":
    # Here, and not at import: the flags of several commands have the same names.
    flags.DEFINE_enum("target", None, list(PRESETS), "Who is to load it.")
    flags.DEFINE_string("checkpoint", None, "A working directory, or one checkpoint in it.")
    flags.DEFINE_string("output", None, "The file to write; its suffix says its format.")
    app.run(main, flags_parser=command.parse_flags)
