"""The command `retinanet-jax`, which `python -m retinanet_jax` runs too."""

import importlib
import sys
from collections.abc import Sequence

import retinanet_jax

try:
    from retinanet_jax.stopping import run_program
except KeyboardInterrupt:  # before anything could catch SIGINT
    sys.exit(130)

# The module in `cli` and the summary of each command, by its name.
COMMANDS = {
    "train": ("train", "Train a detector and evaluate it."),
    "evaluate": ("evaluate", "Compute the COCO average precision of a checkpoint or detections."),
    "analyze": ("analyze", "Report what a detector gets wrong, and what to try."),
    "predict": ("predict", "Detect objects in images, and write and draw the detections."),
    "inspect": ("inspect_data", "Report the problems of a dataset before training on it."),
    "pack": ("pack", "Decode and resize a dataset once, so that training needs no decoder."),
    "convert": ("convert", "Write a dataset of any format as COCO's JSON."),
    "import-weights": (
        "import_weights",
        "Convert a detector of torchvision or detectron2 to a checkpoint.",
    ),
    "export-weights": (
        "export_weights",
        "Write a checkpoint's weights for torchvision or detectron2.",
    ),
    "export": ("export", "Write a detector that runs without this package."),
    "plan": ("plan", "Compile a config for TPUs or GPUs that are not here: does it fit?"),
    "configs": ("configs", "List the configs with the average precision to expect."),
}
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names and return its exit status.

    Args:
        argv: The program's name, the command's name and its arguments; None for `sys.argv`: then
            this does not return.

    Raises:
        SystemExit: With an error message of one line if there is no such command.
    """
    if argv is None:
        run_program(lambda: main(sys.argv))
    program, *arguments = argv
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
        commands = ", ".join(COMMANDS)
        sys.exit(f"error: {name!r} is not a command; the commands are {commands}.")
    return 0


def help_text() -> str:
    """Return the usage of the program and its list of commands."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: retinanet-jax COMMAND [--FLAG=VALUE ...]",
            "",
            *(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
            "",
            "`retinanet-jax COMMAND --help` explains the flags of a command, and",
            "`retinanet-jax --version` prints the versions of the package and its dependencies.",
        ]
    )


def versions() -> str:
    """Return the versions of this package and of those that its numbers depend on."""
    import importlib.metadata  # here, because it takes longer than all that is before the signals

    others = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    python = ".".join(map(str, sys.version_info[:3]))
    return f"retinanet-jax {retinanet_jax.__version__} ({others}, Python {python})"


if __name__ == "__main__":
    main()
