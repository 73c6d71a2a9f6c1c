"""The command `retinanet-jax`, which `python -m retinanet_jax` runs too."""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

import retinanet_jax

# For each command its module and what it does.
COMMANDS = {
    "train": ("train", "Train a detector, evaluate it and keep its checkpoints."),
    "evaluate": ("evaluate", "Compute the COCO average precision of a checkpoint."),
    "predict": ("predict", "Detect objects in images, and draw and write what is detected."),
    "inspect": ("inspect_data", "Report what is wrong with a dataset before training on it."),
    "pack": ("pack", "Decode and resize a dataset once, so that training needs no decoder."),
    "import-weights": (
        "import_weights",
        "Make a checkpoint of torchvision's or detectron2's weights.",
    ),
    "export-weights": (
        "export_weights",
        "Write a checkpoint as weights of torchvision or detectron2.",
    ),
    "export": ("export", "Write a detector that runs without this package."),
    "configs": ("configs", "List the configs with the average precision to expect."),
}
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names (by default the process's own) and return its status."""
    program, *arguments = sys.argv if argv is None else argv
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        from retinanet_jax.cli.common import run_command

        module = importlib.import_module(f"retinanet_jax.cli.{COMMANDS[name][0]}")
        return run_command(module.COMMAND, [f"{program} {name}", *arguments[1:]])
    if name in ("--version", "version"):
        print(versions())
    elif name in ("--help", "-h", "help"):
        print(help_text())
    else:
        sys.exit(f"error: {name!r} is not a command; there are {', '.join(COMMANDS)}.")
    return 0


def help_text() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: retinanet-jax COMMAND [--FLAG=VALUE ...]",
            "",
            *(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
            "",
            "`retinanet-jax COMMAND --help` explains the flags of a command, and",
            "`retinanet-jax --version` prints the versions of the package and of what it runs on.",
        ]
    )


def versions() -> str:
    """Return the versions of this package and of those that its numbers depend on."""
    others = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    python = ".".join(map(str, sys.version_info[:3]))
    return f"retinanet-jax {retinanet_jax.__version__} ({others}, Python {python})"


if __name__ == "__main__":
    sys.exit(main())
