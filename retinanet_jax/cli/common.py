"""The runner of all commands: it parses the flags, prints the help, and reports errors in one line.

Each command defines its own set of flags instead of absl's global one, so that several commands can
run in one process.
"""

import contextlib
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from retinanet_jax.config import CONFIGS, default_config, find_config, flatten, unknown_field
from retinanet_jax.datasets import use_dataset
from retinanet_jax.stopping import status_of
from retinanet_jax.utils.paths import is_remote, to_path
from retinanet_jax.utils.progress import one_line
from retinanet_jax.utils.remote import with_remote_names

HELP_FLAGS = {"--help", "-help", "-h", "--helpfull", "--helpshort"}
HELP_WIDTH = 100
# How Python's and absl's errors about the value of a flag begin, and the type that it must have.
TYPE_ERRORS = {
    "invalid literal for int()": "an integer",
    "could not convert string to float": "a number",
    "('Non-boolean argument to boolean flag'": "true or false",
}
# What a command line may leave to the run, and the field that this sets.
AUTOMATIC = {"data.batch_size": "data.batch_size=0", "anchors": "choose_anchors=True"}
TRACEBACK_HELP = "Show a Python traceback instead of one line when an error ends the command."


class Command(NamedTuple):
    """A command of `retinanet-jax`."""

    usage: str  # the command line, without the program's name
    description: str  # full sentences, for --help
    define_flags: Callable[[flags.FlagValues, list[str]], None]  # (flag values, argv)
    run: Callable[[Any, list[str]], int | None]  # (flag values, positional arguments) -> status
    takes_arguments: bool = False  # whether it accepts positional arguments
    memory_flag: str = "--config.data.batch_size"  # to lower if the device's memory is too small
    interrupted: str = "stopped"  # printed after Ctrl-C


def run_command(command: Command, argv: Sequence[str]) -> int:
    """Run a command and return its exit status.

    Args:
        command: The command.
        argv: The program's name, then flags and positional arguments.

    Raises:
        SystemExit: With an error message of one line if the input is invalid, and after a signal
            with the status 128 + its number, by the convention of shells.
    """
    values = flags.FlagValues()
    with flag_errors_in_one_line():
        arguments = map(resolve_auto, map(resolve_config, with_equals_sign(argv[1:])))
        argv = apply_jax_flags([argv[0], *arguments])
        check_config_flags(argv)
        command.define_flags(values, argv)
        flags.DEFINE_bool("traceback", False, TRACEBACK_HELP, flag_values=values)
        if HELP_FLAGS & set(argv):
            print(help_text(command, values))
            return 0
        arguments = values(argv)[1:]
    if arguments and not command.takes_arguments:
        sys.exit(f"error: {arguments[0]!r} is not a flag; flags are --NAME=VALUE, without spaces.")
    logging.set_verbosity(logging.WARNING)  # Orbax logs a page of INFO for each checkpoint
    with errors_in_one_line(command, values.traceback):
        return command.run(values, arguments) or 0
    return 0


def define_config(
    values: flags.FlagValues, argv: list[str], default: str | None, description: str
) -> None:
    """Define --config=FILE[:ARGUMENT], and the --config.FIELD=VALUE flags that `argv` contains.

    Args:
        values: The flags of the command, to which these are added.
        argv: The command line.
        default: The config file if the flag is not given; None if there is no default.
        description: The help of --config.
    """
    config_flags.DEFINE_config_file(
        "config", default, description, flag_values=values, lock_config=True, sys_argv=argv
    )


def define_data(
    values: flags.FlagValues,
    meaning: str = "The dataset, instead of config.data, of which fields that are given, too, have "
    "precedence",
) -> None:
    """Define --data.

    Args:
        values: The flags.
        meaning: The beginning of its help.
    """
    flags.DEFINE_string(
        "data",
        None,
        f"{meaning}: a folder or a file of annotations in COCO's, YOLO's, Pascal VOC's, LabelMe's "
        "or CVAT's format, CSV, TFDS, or packed. The format, the splits and the folder of the "
        "images are detected and printed.",
        flag_values=values,
        allow_overwrite=False,
    )


def default_config_file(argv: Sequence[str], default: str | None) -> str | None:
    """Return the config file if the flag is not given: that for one's own images with --data.

    Args:
        argv: The command line.
        default: The config file without --data.
    """
    has_data = any(re.match(r"--?data(=|$)", argument) for argument in argv)
    return str(CONFIGS / "finetune.py") if has_data else default


def use_data(values: Any, config: ConfigDict) -> None:
    """Let the config read the dataset of --data, if it is given, and print what was detected.

    Args:
        values: The flags.
        config: The config; its fields of `data` are set.

    Raises:
        OSError: If there is no such file or folder.
        ValueError: If no format is detected.
    """
    if values.data:
        given = config_flags.get_override_values(values["config"])
        print(use_dataset(config, to_path(values.data), set(given)), flush=True)


def define_weights(values: flags.FlagValues) -> None:
    """Define --weights and, as another name of it, --checkpoint."""
    from retinanet_jax.weights.named import DETECTORS  # most commands do not need flax

    detectors = ", ".join(f"{name} ({known.ap} AP)" for name, known in DETECTORS.items())
    flags.DEFINE_string(
        "weights",
        None,
        "The detector: the working directory of a training run, or the folder of one of its "
        "checkpoints; a file of weights that torchvision or detectron2 wrote; or the name of a "
        f"published detector, which is downloaded once: {detectors}; AP on COCO as published.",
        flag_values=values,
    )
    flags.DEFINE_alias("checkpoint", "weights", flag_values=values)


def define_detection_limits(values: flags.FlagValues) -> None:
    """Define --score_threshold, --iou_threshold, --class_agnostic and --max_detections."""
    flags.DEFINE_float(
        "score_threshold",
        None,
        "Only detections with a higher score are returned. The default is the threshold of each "
        "category that `analyze --store_thresholds` has stored in the checkpoint or, if it has "
        "not, the one in the checkpoint's config.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "iou_threshold",
        None,
        "Non-maximum suppression removes a detection if its IoU with a better one of its class is "
        "higher. The default is the threshold in the checkpoint's config.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "class_agnostic",
        None,
        "A detection also suppresses those of other classes; --noclass_agnostic: only those of "
        "its own class. The default is the choice in the checkpoint's config.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_detections",
        None,
        "The largest number of detections per image. The default is the limit in the checkpoint's "
        "config.",
        flag_values=values,
    )


def detection_limits(values: flags.FlagValues) -> dict[str, Any]:
    """Return the flags of `define_detection_limits` as arguments of `Detector.load`."""
    names = ("score_threshold", "iou_threshold", "class_agnostic", "max_detections")
    return {name: values[name].value for name in names}


def require(values: flags.FlagValues, **examples: str) -> None:
    """Raise ValueError if a flag has no value; `examples` maps each flag to a placeholder."""
    if any(not values[name].value for name in examples):
        flags_needed = " ".join(f"--{name}={example}" for name, example in examples.items())
        raise ValueError(f"give {flags_needed}; --help explains them.")


def weights_of(values: flags.FlagValues) -> str:
    """Return the value of --weights; ValueError if it is given twice, by any of its names."""
    if values["weights"].present > 1:
        raise ValueError("--weights, or its other name --checkpoint, is given twice; give one.")
    return values.weights


def output_path(value: str) -> pathlib.Path:
    """Return the absolute path of a folder or file to write; ValueError if it is not local."""
    if is_remote(value):
        raise ValueError(
            f"--output={value}: must be on a local disk, from which you can copy it; only the "
            "--workdir of train and evaluate may be in remote storage."
        )
    return to_path(value)


def with_equals_sign(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--config FILE` written as `--config=FILE`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--config", "-config"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def resolve_config(argument: str) -> str:
    """Return a --config=FILE argument with the path of the file; other arguments unchanged."""
    name, equals, spec = argument.partition("=")
    if name in ("--config", "-config") and equals:
        return f"--config={find_config(spec)}"
    return argument


def resolve_auto(argument: str) -> str:
    """Return an argument --config.FIELD=auto as the one that lets a run set the field itself."""
    flag = re.fullmatch(r"--?config\.(.*)=auto", argument)
    return f"--config.{AUTOMATIC[flag[1]]}" if flag and flag[1] in AUTOMATIC else argument


def apply_jax_flags(argv: list[str]) -> list[str]:
    """Apply the --jax_... flags, which are jax's own settings, and return the other arguments."""
    if not any(argument.startswith("--jax") for argument in argv):
        return argv
    jax.config.parse_flags_with_absl()
    return [argument for argument in argv if not argument.startswith("--jax")]


def check_config_flags(argv: Sequence[str]) -> None:
    """Raise ValueError at the first --config.FIELD that is no config field."""
    known = {name for name, _ in flatten(default_config())}
    for argument in argv:
        flag = re.match(r"--?config\.([^=]*)", argument)
        if flag and flag[1] not in known:
            raise ValueError(unknown_field(flag[1]))


def help_text(command: Command, values: flags.FlagValues) -> str:
    """Return the command's usage, description and flags."""
    lines = [f"usage: {command.usage}", "", textwrap.fill(command.description, HELP_WIDTH), ""]
    indent = " " * 6
    for name in values:  # in the order of their definition
        flag = values[name]
        prefix = "[no]" if flag.default is True else ""
        lines.append(f"  --{prefix}{name}")
        lines += textwrap.wrap(
            str(flag.help), HELP_WIDTH, initial_indent=indent, subsequent_indent=indent
        )
    return "\n".join(lines)


@contextlib.contextmanager
def flag_errors_in_one_line() -> Iterator[None]:
    """End the program in one line at an unknown flag or config field, or a wrong config file."""
    try:
        yield
    except (AttributeError, KeyError) as error:  # in the config file
        cause = error.args[0]  # a string, or the KeyError from which ml_collections made this error
        text = str(cause.args[0] if isinstance(cause, KeyError) else cause)
        brief = re.sub(r'Other fields present: "{.*}"', "", text, flags=re.DOTALL)
        sys.exit(f"error: --config: {type(error).__name__}: {one_line(brief)}")
    except BrokenPipeError:
        raise  # of --help
    except (flags.Error, OSError, TypeError, ValueError) as error:
        # ml_collections appends the whole traceback, as text, to the errors of a config file.
        text, _, traceback = one_line(error).partition("Traceback (most recent call last):")
        sys.exit(f"error: {name_type(text)}{traceback.rpartition('ValueError: ')[2]}")


def name_type(message: str) -> str:
    """Return absl's message about a flag, with the type that a value of another type must have."""
    for cause, expected in TYPE_ERRORS.items():
        flag, separator, _ = message.partition(f": {cause}")
        if separator:
            return f"{flag.removeprefix('flag ')} must be {expected}."
    return message


@contextlib.contextmanager
def errors_in_one_line(command: Command, traceback: bool) -> Iterator[None]:
    """End the program in one line at a user's mistake, or with Python's traceback."""
    try:
        yield
    except BrokenPipeError:
        raise  # `run_program` knows that the reader of the output has ended
    except (ValueError, OSError, FloatingPointError) as error:
        if traceback:
            raise
        sys.exit(f"error: {with_remote_names(one_line(error))}")
    except KeyboardInterrupt as error:
        if traceback:
            raise
        print(command.interrupted, file=sys.stderr)
        sys.exit(status_of(error))
    except jax.errors.JaxRuntimeError as error:
        if traceback or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(
            "error: the accelerator's memory is too small for this run; lower "
            f"{command.memory_flag} or the image sizes, or train with --config.dtype=bfloat16."
        )
