"""Import detectors of other libraries as checkpoints, and export checkpoints to them."""

import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from retinanet_jax import checkpoint, weights
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.config import check_fields, choose, load_config
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.modeling import initialize
from retinanet_jax.stored_config import differences, network_differences
from retinanet_jax.utils.files import check_absent, write_folder
from retinanet_jax.weights import download
from retinanet_jax.weights.presets import (
    PRESETS,
    detect_backbone,
    detector_categories,
    preset_config,
)

# Fields that may differ from the target's preset, and the values that they may have; () stands for
# any.
FREE_FIELDS = {
    "torchvision_v1": {"model.backbone": (), "model.norm_epsilon": (0.0, 1e-5)},
    "torchvision_v2": {"model.backbone": ()},
    "detectron2": {
        "model.backbone": (),
        "model.stride_in_1x1": (True, False),
        "input.order": ("bgr", "rgb"),
        "input.mean": (),
        "input.std": (),
    },
}


def import_weights(
    source: str,
    file: str,
    output: pathlib.Path,
    *,
    outputs: str = "coco",
    category_names: Sequence[str] = (),
    norm_epsilon: float | None = None,
    config: ConfigDict | None = None,
) -> Checkpoint:
    """Write another library's detector as a checkpoint and return it; on an error write nothing.

    Args:
        source: The library that wrote the file, one of PRESETS.
        file: A path, a URL or a published file's name, see `download.locate`.
        output: The working directory to write; it must not exist.
        outputs: "coco" keeps 80 of the 91 outputs of torchvision's COCO models, those of COCO's
            categories; "all" keeps all.
        category_names: The categories' names in the order of the outputs; () for COCO's categories.
        norm_epsilon: The epsilon of the backbone's norms; None for that of `config`.
        config: The config of the weights; None for the source's preset with the file's backbone.

    Raises:
        OSError: If `output` exists, or the file does not exist or cannot be downloaded.
        ValueError: If the source is unknown, the file is not such a detector's, the config is
            another network's, or the categories are not as many as the outputs.
    """
    choose("source", source, PRESETS)
    check_absent(output, "folder")
    path = download.locate(file)
    config = _network_config(source, path, config, norm_epsilon)
    variables = weights.load_detector(
        source,
        path,
        architecture=config.model.backbone,
        norm=config.model.norm,
        outputs="all" if category_names else outputs,
    )
    categories = detector_categories(path, variables, category_names)
    shapes = jax.eval_shape(lambda: initialize(config, len(categories), seed=0))
    checkpoint.check_shapes(path, variables, shapes, description="weights of another network")
    write_folder(
        output,
        lambda draft: checkpoint.write_imported(draft, variables, config, categories),
        is_written=lambda: False,
    )
    return Checkpoint(variables, config, categories, step=0, folder=output)


def _network_config(
    source: str, path: pathlib.Path, config: ConfigDict | None, norm_epsilon: float | None
) -> ConfigDict:
    """Return a checked copy of `config`, or the source's preset with the file's backbone."""
    if config is None:
        config = preset_config(source)
        config.model.backbone = detect_backbone(weights.load_arrays(path), config.model.backbone)
    else:
        check_fields(config)
        config = config.copy_and_resolve_references().unlock()
    if norm_epsilon is not None:
        config.model.norm_epsilon = norm_epsilon
    return config


def next_commands(source: str, imported: Checkpoint) -> list[str]:
    """Return the commands that predict, evaluate and fine-tune with an imported detector.

    Args:
        source: The library that wrote its weights, one of PRESETS.
        imported: What `import_weights` returned.
    """
    preset, folder = PRESETS[source], imported.folder
    changes = {
        name: f" --config.{name}={value}"
        for name, _, value in differences(load_config(preset), imported.config)
    }
    return [
        f"retinanet-jax predict --checkpoint={folder} --output=DIR IMAGES",
        f"retinanet-jax evaluate --config={preset} --workdir={folder}{''.join(changes.values())}",
        f"retinanet-jax train --config=configs/finetune.py:{source} --config.init.path={folder} "
        f"--workdir=DIR{changes.get('model.backbone', '')}",
    ]


def export_weights(target: str, path: str | pathlib.Path, output: pathlib.Path) -> list[str]:
    """Write a checkpoint as a state dict that another library loads.

    Args:
        target: The library that will load it, one of PRESETS.
        path: A working directory, or the folder of one step's checkpoint.
        output: The file to write; it must not exist.

    Returns:
        `target_settings`: how the target builds the network that loads the file.

    Raises:
        FileExistsError: If `output` exists.
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the target or the file's suffix is unknown, or the target cannot build the
            checkpoint's network.
    """
    choose("target", target, PRESETS)
    check_absent(output, "file")
    trained = checkpoint.load(path)
    check_expressible(trained, target)
    weights.save_detector(
        target,
        output,
        trained.variables,
        architecture=trained.config.model.backbone,
        outputs="coco" if has_coco_categories(trained) else "all",
    )
    return target_settings(target, trained)


def check_expressible(trained: Checkpoint, target: str) -> None:
    """Raise ValueError at the first config field with a value that the target's network lacks."""
    for name, preset_value, value in network_differences(preset_config(target), trained.config):
        allowed = FREE_FIELDS[target].get(name, (preset_value,))
        if allowed and value not in allowed:
            raise ValueError(
                f"{trained.folder}: {target} has no network with config.{name}={value}, only with "
                f"{' or '.join(map(str, allowed))}; train with that to export to {target}."
            )


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
    """Return torchvision's call, and what has to follow it."""
    version = "" if target == "torchvision_v1" else "_v2"
    backbone = config.model.backbone
    other = "" if backbone == "resnet50" else f", with {backbone} in place of its resnet50"
    lines = [
        f"retinanet_resnet50_fpn{version}(weights=None, weights_backbone=None, "
        f"num_classes={num_outputs}){other}"
    ]
    if config.model.norm_epsilon == 0:
        lines.append("then eps = 0.0 in every norm of its backbone, which the file cannot contain")
    return lines


def _detectron2_settings(config: ConfigDict, num_outputs: int) -> list[str]:
    """Return the fields of detectron2's config."""
    mean, std = list(config.input.mean), list(config.input.std)
    return [
        f"MODEL.RETINANET.NUM_CLASSES {num_outputs} of RetinaNet with FPN on "
        f"{config.model.backbone}",
        f"MODEL.RESNETS.STRIDE_IN_1X1 {config.model.stride_in_1x1}",
        f"INPUT.FORMAT {config.input.order.upper()} MODEL.PIXEL_MEAN {mean} MODEL.PIXEL_STD {std}",
    ]
