"""What the project's commands have in common: how they read a config, and end on a mistake."""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence

import jax
from absl import flags

from retinanet_jax.config import default_config, field_names
from retinanet_jax.utils.progress import one_line

INTERRUPTED = 130  # the exit status that shells give to what Ctrl-C ended


@contextlib.contextmanager
def errors_in_one_line(
    traceback: bool = False,
    *,
    smaller: str = "--config.data.batch_size",
    stopped: str = "stopped",
) -> Iterator[None]:
    """A user's mistake ends the program in one line; with `traceback`, as Python does.

    `smaller` is the flag to lower where the accelerator's memory is too small, `stopped` what is
    said after Ctrl-C.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if traceback:
            raise
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        if traceback:
            raise
        print(stopped, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except jax.errors.JaxRuntimeError as error:
        if traceback or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(
            f"error: the accelerator's memory is too small for this run; lower {smaller} or the "
            "picture sizes, or train with --config.dtype=bfloat16."
        )


def parse_flags(argv: list[str]) -> list[str]:
    """`parse_flags_and_words` of a program that takes flags alone."""
    left = parse_flags_and_words(argv)
    if left[1:]:
        sys.exit(f"error: {left[1]!r} is no flag; flags are --NAME=VALUE, without blanks.")
    return left


def parse_flags_and_words(argv: list[str]) -> list[str]:
    """absl's parser, with a mistake told in one line."""
    with mistaken_flag_told(argv):
        return flags.FLAGS(argv)


@contextlib.contextmanager
def mistaken_flag_told(argv: Sequence[str]) -> Iterator[None]:
    """A misspelt flag or config field, or a missing config file, ends the program in one line."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: {unknown_field(error, argv)}")
    except (flags.Error, OSError, TypeError, ValueError) as error:
        # Of what a config file raises, ml_collections passes on the whole traceback, as text.
        told, _, traceback = one_line(error).partition("Traceback (most recent call last):")
        sys.exit(f"error: {told}{traceback.rpartition('ValueError: ')[2]}")


def unknown_field(error: AttributeError | KeyError, argv: Sequence[str]) -> str:
    """Which flag gives a field that the config lacks; ml_collections names its last part alone.

    Without such a flag it is the config file's mistake.
    """
    cause = error.args[0]  # a text, or the KeyError of which ml_collections made this error
    told = str(cause.args[0] if isinstance(cause, KeyError) else cause)
    part, _, hint = told.partition("\n")
    for flag in (argument.partition("=")[0] for argument in argv):
        if flag.startswith("--config.") and part.strip("'") in flag.split("."):
            return f"{flag}: there is no such field. {hint or fields_called(part)}".rstrip()
    without_all_fields = re.sub(r'Other fields present: "{.*}"', "", told, flags=re.DOTALL)
    return f"--config: {type(error).__name__}: {one_line(without_all_fields)}"


def fields_called(part: str) -> str:
    """Names the fields whose last part it is."""
    known = field_names(default_config())
    same = [f"--config.{name}" for name in known if name.split(".")[-1] == part.strip("'")]
    return f"Did you mean {' or '.join(same)}?" if same else ""
