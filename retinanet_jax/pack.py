"""A config's data, decoded and resized once: training from it needs no decoder and no TensorFlow.

python -m retinanet_jax.pack --config=FILE[:ARG] --output=DIR [--part=train|eval|both]
    [--config.FIELD=VALUE ...]

Writes OUTPUT/train and OUTPUT/eval at the largest short side that the config trains with, and the
one it evaluates at, and prints the flags that make a run read them.
"""

import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from retinanet_jax import command, datasets
from retinanet_jax.configs import r50_fpn
from retinanet_jax.data.sources import Source
from retinanet_jax.data.sources.packed import write_packed
from retinanet_jax.report import duration, teller

PARTS = ("train", "eval")


def run(config: ConfigDict, parts: Sequence[str], output: pathlib.Path) -> list[str]:
    """Writes the parts ("train", "eval") into folders of `output`; returns a run's new flags."""
    command.check_fields(config, r50_fpn.get_config())
    data = config.data
    if datasets.holds_out(config) and set(parts) != set(PARTS):
        raise ValueError(
            f"data.validation_share={data.validation_share} parts the training data, and its two "
            "parts are of use together alone; give --part=both, or data.eval of its own."
        )
    sides = {"train": max(data.short_sides), "eval": data.eval_short_side}
    new = ["--config.data.loader=numpy"]
    for part, source in open_parts(config, parts, output):
        folder = output / part
        began = time.monotonic()
        packed = write_packed(
            source,
            folder,
            short_side=sides[part],
            long_side=data.long_side,
            resize=data.resize,
            num_threads=data.threads or None,
            progress=teller(part, len(source)),
        )
        print(
            f"{folder}: {len(packed)} pictures of {source.name} at short side {sides[part]}, in "
            f"{duration(time.monotonic() - began)}",
            flush=True,
        )
        new += new_flags(config, part, folder)
    return new


def open_parts(
    config: ConfigDict, parts: Sequence[str], output: pathlib.Path
) -> list[tuple[str, Source]]:
    """Each part's name and data; data that is to be drawn is drawn into `output`."""
    if set(parts) == set(PARTS):
        return list(zip(PARTS, datasets.open_sources(config, output), strict=True))
    opened = {"train": datasets.open_training, "eval": datasets.open_evaluation}
    return [(part, opened[part](config, output)) for part in parts]


def new_flags(config: ConfigDict, part: str, folder: pathlib.Path) -> list[str]:
    """What turns the config's source of `part` into the packed one."""
    fields = {"source": "packed", "images": str(folder)}
    emptied = {
        name: "" for name in datasets.LISTED if config.data[part][name] and name not in fields
    }
    return [
        shlex.quote(f"--config.data.{part}.{name}={value}")
        for name, value in (fields | emptied).items()
    ]


def main(_: list[str]) -> None:
    """Packs, and says how to go on."""
    logging.set_verbosity(logging.WARNING)
    values = flags.FLAGS
    if not values.config or not values.output:
        sys.exit("error: give --config=FILE and --output=DIR.")
    output = pathlib.Path(values.output).expanduser().absolute()
    with command.told_in_one_line():
        parts = PARTS if values.part == "both" else (values.part,)
        new = run(values.config, parts, output)
    print("to train from it, add to the run's flags:", *new, sep="\n  ")


if __name__ == "__main__":
    # Here, and not at import: the flags of several commands have the same names.
    config_flags.DEFINE_config_file("config", None, "The recipe: FILE[:ARG].", lock_config=True)
    flags.DEFINE_string("output", None, "Where the folders train and eval go.")
    flags.DEFINE_enum("part", "both", [*PARTS, "both"], "Which of the config's data.")
    app.run(main, flags_parser=command.parse_flags)
