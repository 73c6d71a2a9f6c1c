"""A detector that another library trained on COCO, as a checkpoint of this one.

python -m retinanet_jax.import_weights --source=torchvision_v1|torchvision_v2|detectron2
    --input=FILE_OR_URL_OR_KNOWN_NAME --output=DIR [--outputs=coco|all] [--categories=NAME,NAME]
    [--norm_epsilon=NUMBER] [--config=FILE[:ARG] --config.FIELD=VALUE ...]

Prediction, evaluation and fine-tuning take DIR as they take a working directory that training
wrote. Published files are known by name (download.KNOWN) and fetched where they are not there.
The config is the source's preset, with the backbone that the file holds; --config replaces it,
for weights that were trained with other settings.
"""

import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from retinanet_jax import checkpoint, command, download, weights
from retinanet_jax.configs import detectron2, r50_fpn, torchvision
from retinanet_jax.data.sources import Category
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.detector import choose, initialize
from retinanet_jax.models import ARCHITECTURES


class Preset(NamedTuple):
    """The config that a source's weights were trained with."""

    get_config: Callable[[str], ConfigDict]
    file: str
    argument: str


PRESETS = {
    "torchvision_v1": Preset(torchvision.get_config, "configs/torchvision.py", "v1"),
    "torchvision_v2": Preset(torchvision.get_config, "configs/torchvision.py", "v2"),
    "detectron2": Preset(detectron2.get_config, "configs/detectron2.py", "3x"),
}
# torchvision's outputs are COCO's ids; 0 and ten others stand for nothing.
COCO_NAMES = {category.id: category.name for category in COCO_CATEGORIES}
ALL_CATEGORIES = tuple(Category(k, COCO_NAMES.get(k, f"unused {k}")) for k in range(91))


def run(
    source: str,
    wanted: str,
    output: pathlib.Path,
    *,
    outputs: str = "coco",
    names: Sequence[str] = (),
    norm_epsilon: float | None = None,
    config: ConfigDict | None = None,
) -> checkpoint.Trained:
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
        command.check_fields(config, r50_fpn.get_config())
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
    write(output, variables, config, categories)
    return checkpoint.Trained(variables, config, categories, step=0, folder=output)


def preset_config(source: str) -> ConfigDict:
    """A source's config, unlocked, with the epsilon that its published weights are run with."""
    preset = PRESETS[source]
    config = preset.get_config(preset.argument).unlock()
    # torchvision runs the v1 weights that it publishes without an epsilon, and no others.
    config.model.norm_epsilon = weights.DETECTOR_FORMATS[source].model["norm_epsilon"]
    return config


def categories_of(
    path: pathlib.Path, variables: Mapping[str, Any], names: Sequence[str]
) -> tuple[Category, ...]:
    """COCO's categories, or those of `names`; ValueError where the outputs are not as many."""
    count = weights.detectors.num_classes(variables)
    if names and len(names) != count:
        raise ValueError(f"{path}: {count} outputs for {len(names)} categories; name each of them.")
    if names:
        return tuple(Category(k, name) for k, name in enumerate(names))
    for known in (COCO_CATEGORIES, ALL_CATEGORIES):
        if len(known) == count:
            return known
    raise ValueError(
        f"{path}: {count} outputs are not COCO's; name them in their order: --categories=NAME,NAME."
    )


def backbone_of(names: Iterable[str], otherwise: str) -> str:
    """The ResNet whose third stage has as many blocks as the `names` of a state dict tell.

    The other ones that a preset's library publishes are told apart by nothing else.
    """
    found = [re.search(r"\.(?:layer3|res4)\.(\d+)\.", name) for name in names]
    blocks = len({match[1] for match in found if match})
    for name in ("resnet50", "resnet101", "resnet152"):
        if ARCHITECTURES[name]["stage_sizes"][2] == blocks:
            return name
    return otherwise


def write(
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


def next_commands(source: str, written: checkpoint.Trained) -> list[str]:
    """How to predict, to evaluate and to fine-tune with what was written."""
    preset, folder = PRESETS[source], written.folder
    theirs = checkpoint.plain(preset.get_config(preset.argument))
    changed = {
        name: f" --config.{name}={have}"
        for name, _, have in checkpoint.differences(theirs, checkpoint.plain(written.config))
    }
    train = "python -m retinanet_jax.main"
    return [
        f"python -m retinanet_jax.predict --checkpoint={folder} --output=DIR PICTURES",
        f"{train} --mode=evaluate --config={preset.file}:{preset.argument} --workdir={folder}"
        + "".join(changed.values()),
        f"{train} --config=configs/finetune.py:{source} --config.init.path={folder} --workdir=DIR"
        + changed.get("model.backbone", ""),
    ]


def main(_: list[str]) -> None:
    """Imports, and says how to go on."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells a page of INFO a checkpoint
    values = flags.FLAGS
    if not values.source or not values.input or not values.output:
        sys.exit("error: give --source=NAME, --input=FILE_OR_URL_OR_KNOWN_NAME and --output=DIR.")
    with command.told_in_one_line():
        written = run(
            values.source,
            values.input,
            pathlib.Path(values.output).expanduser().absolute(),
            outputs=values.outputs,
            names=values.categories,
            norm_epsilon=values.norm_epsilon,
            config=values.config,
        )
    model = written.config.model
    print(
        f"{written.folder}: {model.backbone}, {len(written.categories)} classes, norm_epsilon "
        f"{model.norm_epsilon:g}; to go on:",
        *next_commands(values.source, written),
        sep="\n  ",
    )


if __name__ == "__main__":
    # Here, and not at import: the flags of several commands have the same names.
    flags.DEFINE_enum("source", None, list(PRESETS), "Whose weights they are.")
    flags.DEFINE_string("input", None, "A file, a URL, or the name of a published file.")
    flags.DEFINE_string("output", None, "The folder to write.")
    flags.DEFINE_enum(
        "outputs", "coco", ["coco", "all"], "Of torchvision's 91: the 80 of COCO, or all."
    )
    flags.DEFINE_list("categories", [], "Names of the outputs, where they are not COCO's.")
    flags.DEFINE_float("norm_epsilon", None, "Of the backbone's norms, if not the source's own.")
    config_flags.DEFINE_config_file(
        "config", None, "What they were trained with, if not the preset.", lock_config=True
    )
    app.run(main, flags_parser=command.parse_flags)
