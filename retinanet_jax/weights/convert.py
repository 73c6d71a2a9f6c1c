"""Other libraries' detectors as checkpoints of this one, and back."""

import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from retinanet_jax import checkpoint, weights
from retinanet_jax.config import DEFINING, check_fields, choose, differences, plain
from retinanet_jax.data.sources.base import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.modeling import initialize
from retinanet_jax.weights import download
from retinanet_jax.weights.presets import PRESETS, backbone_of, categories_of, preset_config


def import_weights(
    source: str,
    wanted: str,
    output: pathlib.Path,
    *,
    outputs: str = "coco",
    names: Sequence[str] = (),
    norm_epsilon: float | None = None,
    config: ConfigDict | None = None,
) -> checkpoint.Checkpoint:
    """Writes the checkpoint and returns what is in it; where anything is wrong writes nothing.

    Args:
        source: one of PRESETS.
        wanted: a path, a URL, or a published file's name.
        output: the folder to write; it must not be there.
        outputs: of torchvision's 91, "coco" keeps the 80 that COCO uses, "all" keeps all.
        names: of the outputs, where they are not COCO's.
        norm_epsilon: of the backbone's norms; None: the source's, or what `config` has.
        config: what the weights were trained with; None: the source's preset.
    """
    choose("source", source, PRESETS)
    if output.exists():
        raise FileExistsError(f"--output={output} is there already; give another folder.")
    path = download.locate(wanted)
    if config is None:
        config = preset_config(source)
        config.model.backbone = backbone_of(weights.load_arrays(path), config.model.backbone)
    else:
        check_fields(config)
        config = config.copy_and_resolve_references().unlock()
    if norm_epsilon is not None:
        config.model.norm_epsilon = norm_epsilon
    variables = weights.load_detector(
        source,
        path,
        architecture=config.model.backbone,
        norm=config.model.norm,
        outputs="all" if names else outputs,
    )
    categories = categories_of(path, variables, names)
    shapes = jax.eval_shape(lambda: initialize(config, len(categories), seed=0))
    checkpoint.check_shapes(path, variables, shapes, what="weights of another network")
    write_checkpoint(output, variables, config, categories)
    return checkpoint.Checkpoint(variables, config, categories, step=0, folder=output)


def write_checkpoint(
    output: pathlib.Path,
    variables: Mapping[str, Any],
    config: ConfigDict,
    categories: Sequence[Category],
) -> None:
    """Writes the checkpoint beside `output`, and moves it there when it is complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=output.parent) as partial:
        written = pathlib.Path(partial) / output.name
        checkpoint.write_imported(written, variables, config, categories)
        written.rename(output)


def next_commands(source: str, written: checkpoint.Checkpoint) -> list[str]:
    """How to predict, to evaluate and to fine-tune with what was written."""
    preset, folder = PRESETS[source], written.folder
    theirs = plain(preset.get_config(preset.argument))
    changed = {
        name: f" --config.{name}={have}"
        for name, _, have in differences(theirs, plain(written.config))
    }
    train = "python -m retinanet_jax.main"
    return [
        f"python -m retinanet_jax.predict --checkpoint={folder} --output=DIR PICTURES",
        f"{train} --mode=evaluate --config={preset.file}:{preset.argument} --workdir={folder}"
        + "".join(changed.values()),
        f"{train} --config=configs/finetune.py:{source} --config.init.path={folder} --workdir=DIR"
        + changed.get("model.backbone", ""),
    ]


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


def export_weights(target: str, path: str, output: pathlib.Path) -> list[str]:
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


def outputs_of(trained: checkpoint.Checkpoint) -> str:
    """Whether COCO's 80 classes take their places among the target's outputs, or all are kept."""
    return "coco" if trained.categories == COCO_CATEGORIES else "all"


def check_expressible(trained: checkpoint.Checkpoint, target: str) -> None:
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
    found = differences(plain(preset), plain(config))
    return (one for one in found if one[0].partition(".")[0] in DEFINING)


def settings(target: str, trained: checkpoint.Checkpoint) -> list[str]:
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
