"""What the project's commands have in common: how they read a config, and end on a mistake."""

import contextlib
import difflib
import operator
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import retinanet_jax.configs
from retinanet_jax.configs import r50_fpn

INTERRUPTED = 130  # the exit status that shells give to what Ctrl-C ended
CONFIGS = pathlib.Path(retinanet_jax.configs.__path__[0])


@contextlib.contextmanager
def told_in_one_line(
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


def one_line(told: object) -> str:
    """What an error or a text says, without its line breaks (ml_collections' have some)."""
    return " ".join(str(told).split())


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
    known = field_names(r50_fpn.get_config())
    same = [f"--config.{name}" for name in known if name.split(".")[-1] == part.strip("'")]
    return f"Did you mean {' or '.join(same)}?" if same else ""


def make_writable(folder: pathlib.Path) -> None:
    """Makes the folder where it is not there; raises OSError where no file can be made in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def use_compilation_cache() -> None:
    """The next start finds compiled what this one compiles; for programs without a workdir.

    In $JAX_COMPILATION_CACHE_DIR, else in $XDG_CACHE_HOME/retinanet_jax (~/.cache/retinanet_jax);
    nowhere, where that cannot be written.
    """
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    wanted = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(user, "retinanet_jax")
    folder = pathlib.Path(os.path.expanduser(wanted))
    try:
        make_writable(folder)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def check_fields(config: ConfigDict, known: ConfigDict) -> None:
    """Raises ValueError at the first field that no code reads, that is missing, or of another kind.

    ml_collections holds other types to what they are, but not what is in a tuple.
    """
    have, want = set(field_names(config)), set(field_names(known))
    for name in sorted(have - want):
        close = difflib.get_close_matches(name, want, 1)
        hint = f"; did you mean config.{close[0]}?" if close else "."
        raise ValueError(f"config.{name} is not a field of configs/r50_fpn.py{hint}")
    for name in sorted(want - have):
        raise ValueError(f"config.{name} is missing; configs/r50_fpn.py has all fields.")
    for name in sorted(want):
        value, example = operator.attrgetter(name)(config), operator.attrgetter(name)(known)
        if not (isinstance(example, tuple) and example):
            continue
        if any(np.shape(one) != np.shape(example[0]) for one in value):
            raise ValueError(f"config.{name}={value} must be of the kind of {example}.")


def field_names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name
