"""The commands `retinanet-jax train` and `python -m retinanet_jax.main`, which are one."""

import contextlib
import os
import pathlib
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from retinanet_jax.cli.common import Command, define_config
from retinanet_jax.config import CONFIGS, check_fields
from retinanet_jax.utils.files import make_writable

DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"
MODES = ("train_and_evaluate", "train", "evaluate")


def define_run_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of both training and evaluation."""
    define_config(
        values,
        argv,
        str(CONFIGS / "shapes.py"),
        "The config, FILE or FILE:ARGUMENT; configs/NAME.py names one of the package's own where "
        "no such file exists. The default is configs/shapes.py. --config.FIELD=VALUE overrides a "
        "field.",
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "The folder of the run's checkpoints, metrics and evaluations. The same folder again "
        "resumes the run.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "Run on many hosts, with the same command on each. TPU pods, Slurm and Open MPI need no "
        "other flag.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of process 0, where the cluster does not provide it.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "The number of processes, where the cluster does not provide it.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "The number of this process, from 0, where the cluster does not provide it.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Ask XLA for GPU operations with the same result in every run.",
        flag_values=values,
    )


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `train`."""
    define_run_flags(values, argv)
    flags.DEFINE_enum(
        "mode",
        MODES[0],
        MODES,
        "Whether to train with evaluations, to train only, or to evaluate the best checkpoint.",
        flag_values=values,
    )


def run(values: Any, _: list[str]) -> None:
    """Do what --mode names."""
    start(values, values.mode)


def start(values: Any, mode: str) -> None:
    """Join the other hosts if there are any, then do what `mode` names."""
    if values.deterministic:  # jax reads it when it initializes its devices, which is later
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC_FLAG}"
    join_hosts(
        values.distributed,
        coordinator_address=values.coordinator_address,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )
    with contextlib.ExitStack() as stack:
        if values.distributed and jax.process_index():
            # Process 0 prints for all; only errors are each process's own.
            silent = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silent))
        train_or_evaluate(values.config, values.workdir, mode)


def join_hosts(
    distributed: bool,
    *,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    """Make this process one of many; to be called before jax initializes its devices.

    Args:
        distributed: Whether there are other processes.
        coordinator_address: HOST:PORT of process 0; None where the cluster provides it.
        num_processes: The number of processes; None where the cluster provides it.
        process_id: The number of this process; None where the cluster provides it.

    Raises:
        ValueError: If no other processes can be joined, or if there are none to join.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if not distributed:
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"--{name}={value} is only used with --distributed; add it.")
        return
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--distributed found no hosts to join ({error}); without a cluster's own settings, "
            "give --coordinator_address=HOST:PORT --num_processes=N --process_id=0..N-1."
        ) from None


def train_or_evaluate(config: ConfigDict, workdir: str | None, mode: str) -> None:
    """Check what can be checked early, then train or evaluate.

    Args:
        config: The config, locked or not.
        workdir: The run's folder.
        mode: One of MODES.

    Raises:
        ValueError: If there is no workdir, or the config has unknown or missing fields.
        OSError: If the workdir cannot be written.
    """
    if not workdir:
        raise ValueError("no --workdir: give the folder of the run's files.")
    check_fields(config)
    folder = writable(pathlib.Path(workdir).expanduser().absolute())
    # A second start, and a resumed run, find their programs compiled.
    jax.config.update("jax_compilation_cache_dir", str(folder / "compilation_cache"))
    if mode == "evaluate":
        from retinanet_jax.evaluation.evaluator import evaluate

        evaluate(config, folder)
    else:
        from retinanet_jax.training.loop import train

        train(config, folder, evaluates=mode == MODES[0])
        print(
            f"{workdir} has the checkpoints, the metrics and, for each evaluation, AP and images.\n"
            f"retinanet-jax predict --checkpoint={workdir} --output=DIR IMAGES"
        )


def writable(folder: pathlib.Path) -> pathlib.Path:
    """Create the folder and return it; raise OSError with the reason if it cannot be written."""
    try:
        make_writable(folder)
    except OSError as error:
        raise OSError(
            f"--workdir={folder} can't be written ({error.strerror}); give another folder."
        ) from None
    return folder


COMMAND = Command(
    usage="retinanet-jax train --workdir=DIR [--config=FILE[:ARGUMENT]] [--config.FIELD=VALUE ...]",
    description=(
        "Trains the detector that the config describes and evaluates it, from the newest "
        "checkpoint in the workdir if there is one. On a cluster, run the same command on every "
        "host, with --distributed and a --workdir that all hosts can access."
    ),
    define_flags=define_flags,
    run=run,
    interrupted="stopped; the same command resumes from the newest checkpoint",
)
