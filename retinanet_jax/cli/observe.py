"""The flags by which a run is observed: --stall_seconds and --profile."""

import pathlib

import jax
from absl import flags

from retinanet_jax.data.reading import files_in_progress
from retinanet_jax.utils.progress import ACTIVITY, Phase
from retinanet_jax.utils.remote import local_folder
from retinanet_jax.utils.watchdog import Watchdog

STALL_SECONDS = 60.0


def define_stall_seconds(values: flags.FlagValues) -> None:
    """Define --stall_seconds."""
    flags.DEFINE_float(
        "stall_seconds",
        STALL_SECONDS,
        "After waiting this many seconds for data, a warning names the files that are being read, "
        "and after ten times as long without any other progress, what the program does. The "
        f"stacks of its threads are in WORKDIR/stalls.txt. The default is {STALL_SECONDS:g}.",
        lower_bound=0.1,
        flag_values=values,
    )


def define_profile(values: flags.FlagValues) -> None:
    """Define --profile."""
    flags.DEFINE_string(
        "profile",
        None,
        "FIRST:LAST, the first and the last of the steps, numbered as in the log, of which a "
        "profile is written to WORKDIR/profile, for XProf and Perfetto.",
        flag_values=values,
    )


def watchdog(folder: pathlib.Path, stall_seconds: float) -> Watchdog:
    """Return the watchdog of this host, which writes to a file of its own, at the start of a run.

    Args:
        folder: The working directory.
        stall_seconds: The value of --stall_seconds.
    """
    ACTIVITY.begin(Phase("starting", details=files_in_progress))
    host = jax.process_index()
    name = f"stalls_{host}.txt" if host else "stalls.txt"
    return Watchdog(local_folder(folder, name), stall_seconds)
