"""Import detectors of other libraries as checkpoints, and export checkpoints to them."""

import os
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import checkpoint, weights
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.config import anchors_per_cell, choose
from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.modeling import initialize
from retinanet_jax.utils.files import check_absent, write_folder
from retinanet_jax.weights import detectors, named, other_networks
from retinanet_jax.weights.buffers import check_buffers
from retinanet_jax.weights.evidence import EPSILON, Evidence, Fact, detect_source
from retinanet_jax.weights.presets import PRESETS, preset_config, select_outputs
from retinanet_jax.weights.targets import check_expressible, has_coco_categories, target_settings


class MissingFactError(ValueError):
    """A file does not show something that must be given; the message has the flags."""


class Imported(NamedTuple):
    """A detector of another library."""

    source: str  # the library that trained it, one of PRESETS
    checkpoint: Checkpoint
    reasons: tuple[str, ...]  # why the config has the fields that the file itself does not contain


def import_weights(
    source: str | None,
    file: str,
    output: pathlib.Path,
    *,
    outputs: str = "coco",
    category_names: Sequence[str] = (),
    norm_epsilon: float | None = None,
    config: ConfigDict | None = None,
) -> Imported:
    """Write another library's detector as a checkpoint and return it; on an error write nothing.

    Args:
        source: As in `read_detector`.
        file: A path, a URL, a name or a published file's name, see `named.locate`.
        output: The working directory to write; it must not exist.
        outputs: As in `read_detector`.
        category_names: As in `read_detector`.
        norm_epsilon: As in `read_detector`.
        config: As in `read_detector`.

    Raises:
        OSError: If `output` exists, or the file does not exist or cannot be downloaded.
        ValueError: As in `read_detector`.
    """
    if source is not None:
        choose("source", source, PRESETS)
    check_absent(output, "folder")
    imported = read_detector(
        named.locate(file),
        source,
        outputs=outputs,
        category_names=category_names,
        norm_epsilon=norm_epsilon,
        config=config,
    )
    variables, config, categories, *_ = imported.checkpoint
    write_folder(
        output,
        lambda draft: checkpoint.write_imported(draft, variables, config, categories),
        is_written=lambda: False,
    )
    return imported._replace(checkpoint=imported.checkpoint._replace(folder=output))


def read_detector(
    path: str | os.PathLike[str],
    source: str | None = None,
    *,
    outputs: str = "coco",
    category_names: Sequence[str] = (),
    norm_epsilon: float | None = None,
    config: ConfigDict | None = None,
) -> Imported:
    """Read another library's detector from a file.

    What the shapes of the file's arrays determine is taken from them: the backbone, `p6_from`, the
    numbers of channels, convolutions and anchors.

    Args:
        path: The file.
        source: The library that wrote the file, one of PRESETS; None to recognize it by the names
            of the arrays.
        outputs: "coco" keeps 80 of the 91 outputs of torchvision's COCO models, those of COCO's
            categories; "all" keeps all.
        category_names: The categories' names in the order of the outputs, see
            `presets.select_outputs`; () for COCO's categories.
        norm_epsilon: The epsilon of the backbone's norms; None for that of `config` or, without
            one, for that which the file shows.
        config: The config of the weights, for what the arrays do not determine; None for the
            source's preset.

    Raises:
        OSError: If the file does not exist.
        ValueError: If the source or `outputs` is unknown, the file is not such a detector's, the
            config is another network's, the categories are not as many as the outputs, or the
            file does not show the epsilon and none is given.
    """
    if outputs not in ("coco", "all"):
        raise ValueError(f"outputs={outputs!r} must be 'coco' or 'all'.")
    path = pathlib.Path(path)
    arrays = weights.load_arrays(path, check_names=other_networks.refuse)
    try:
        imported = _convert(
            arrays, source, outputs, category_names, norm_epsilon=norm_epsilon, config=config
        )
    except ValueError as error:
        raise type(error)(f"weights file {path}: {error}") from None
    trained = imported.checkpoint._replace(folder=path)
    described, num_classes = trained.config, len(trained.categories)
    shapes = jax.eval_shape(lambda: initialize(described, num_classes, seed=0))
    description = "weights of another network"
    checkpoint.check_shapes(path, trained.variables, shapes, description=description)
    return imported._replace(checkpoint=trained)


def _convert(
    arrays: Mapping[str, np.ndarray],
    source: str | None,
    outputs: str,
    category_names: Sequence[str],
    *,
    norm_epsilon: float | None,
    config: ConfigDict | None,
) -> Imported:
    """Return the detector of a state dict; the arguments are those of `read_detector`."""
    source = detect_source(arrays, source)
    library_format = choose("source", source, weights.DETECTOR_FORMATS)
    evidence = Evidence(arrays, library_format)
    described = _network_config(evidence, source, config)
    if evidence.num_anchors() in (0, anchors_per_cell(described)):
        detectors.check_arrays(evidence.arrays, library_format, described)
    *_, anchors, selection, epsilon = _all_facts(
        lambda: check_buffers(arrays, described, PRESETS[source]),
        lambda: _anchors(evidence, source, described),
        lambda: select_outputs(
            evidence.num_outputs() or library_format.num_coco_outputs,
            library_format,
            only_coco=outputs == "coco",
            names=category_names,
        ),
        lambda: _epsilon(evidence, norm_epsilon, config),
    )
    variables = detectors.to_variables(arrays, library_format, described, selection.outputs)
    described.model.norm_epsilon = epsilon.value
    reasons = [str(fact) for fact in (*evidence.network(), epsilon, anchors)]
    if selection.outputs is not None:
        reasons.append(f"{len(selection.categories)} of its {evidence.num_outputs()} outputs")
    trained = Checkpoint(variables, described, selection.categories, 0, pathlib.Path())
    return Imported(source, trained, tuple(reasons))


def _all_facts(*facts: Callable[[], Any]) -> list[Any]:
    """Return the results of functions, or raise MissingFactError with the errors of all of them."""
    results, errors = [], []
    for fact in facts:
        try:
            results.append(fact())
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise MissingFactError(" Also, ".join(errors))
    return results


def _network_config(evidence: Evidence, source: str, config: ConfigDict | None) -> ConfigDict:
    """Return `config`, or the source's preset, with the network that a file's arrays show."""
    if config is None:
        described = preset_config(source)
        described.model.norm = evidence.norm().value
    else:
        check_fields(config)
        described = config.copy_and_resolve_references().unlock()
    described.update_from_flattened_dict({fact.field: fact.value for fact in evidence.network()})
    return described


def _epsilon(evidence: Evidence, norm_epsilon: float | None, config: ConfigDict | None) -> Fact:
    """Return the epsilon that is given or, otherwise, that the file shows.

    Raises:
        ValueError: If there is none, or it is negative.
    """
    evident = evidence.norm_epsilon()
    if norm_epsilon is not None:
        if not norm_epsilon >= 0:
            raise ValueError(f"norm_epsilon={norm_epsilon} must be 0 or positive, such as 1e-5.")
        return Fact(EPSILON, norm_epsilon, "as given")
    if config is not None:
        value, reason = config.model.norm_epsilon, "as in the given config"
        if evident is not None and evident.value != value:
            reason += f", although {evident.value} is {evident.reason}"
        return Fact(EPSILON, value, reason)
    if evident is None:
        raise ValueError(
            "frozen norms do not show their epsilon, which torchvision sets to 0 for a model that "
            "it builds with weights=COCO_V1, also if another head is trained then, and otherwise "
            "to 1e-5; give that of the model that predicts, --norm_epsilon=0 or "
            "--norm_epsilon=1e-5."
        )
    return evident


def _anchors(evidence: Evidence, source: str, config: ConfigDict) -> Fact:
    """Return the config's anchors, of which a file only shows the number in a cell.

    Raises:
        ValueError: If the config has another number of anchors; the message asks for the missing
            ones.
    """
    anchors, count = config.anchors, evidence.num_anchors()
    num_scales, num_ratios = len(anchors.scales), len(anchors.ratios)
    if count in (0, num_scales * num_ratios):
        sides = np.array([8 * anchors.base_scale * scale for scale in anchors.scales])
        if anchors.rounding == "torchvision":
            sides = np.trunc(sides)
        sides, ratios = (
            ", ".join(f"{number:.4g}" for number in numbers) for numbers in (sides, anchors.ratios)
        )
        return Fact(
            "anchors",
            f"sides of {sides} pixels at P3, ratios {ratios}",
            f"the file shows only that they are {count}; for others give --config.anchors",
        )
    choices = [
        f"its {count // other} {name}, --config.anchors.{name}='({name[:-1].upper()}, ...)'"
        for name, other in (("ratios", num_scales), ("scales", num_ratios))
        if count % other == 0
    ] or ["--config.anchors.scales='(SCALE, ...)' and --config.anchors.ratios='(RATIO, ...)'"]
    raise ValueError(
        f"it has {count} anchors per cell, but config.anchors has {num_scales} scales and "
        f"{num_ratios} ratios; with --config={PRESETS[source]}, or a config of your own, give "
        f"{' or '.join(choices)}."
    )


def next_commands(imported: Imported) -> list[str]:
    """Return the commands that predict, evaluate and fine-tune with an imported detector.

    Those for data other than COCO have a placeholder for the data.
    """
    folder = shlex.quote(str(imported.checkpoint.folder))
    is_coco = imported.checkpoint.categories == COCO_CATEGORIES  # the preset names its data
    data = "" if is_coco else " --data=FOLDER_OR_FILE"
    return [
        f"retinanet-jax predict --weights={folder} --output=DIR IMAGES",
        f"retinanet-jax evaluate --workdir={folder}{data}",
        f"retinanet-jax train --weights={folder} --data=FOLDER_OR_FILE --workdir=DIR",
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
    weights.save_arrays(output, detector_arrays(target, trained))
    return target_settings(target, trained)


def detector_arrays(target: str, trained: Checkpoint) -> dict[str, np.ndarray]:
    """Return a checkpoint's arrays by the target's names; COCO's classes at its own places."""
    variables: Mapping[str, Any] = trained.variables
    library_format = weights.DETECTOR_FORMATS[target]
    as_coco = has_coco_categories(trained)
    return detectors.to_arrays(variables, library_format, trained.config, as_coco=as_coco)
