"""The command `retinanet-jax train`, which `python -m retinanet_jax.main` runs too."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from retinanet_jax import hosts
from retinanet_jax.cli.common import (
    Command,
    default_config_file,
    define_config,
    define_data,
    use_data,
)
from retinanet_jax.cli.device_variant import check_choices, use_device
from retinanet_jax.cli.evaluation_config import evaluation_config, use_weights
from retinanet_jax.cli.initial_weights import define_initial_weights, with_weights
from retinanet_jax.cli.observe import STALL_SECONDS, define_profile, define_stall_seconds, watchdog
from retinanet_jax.cli.replay import define_replay, replay_step
from retinanet_jax.config import CONFIGS
from retinanet_jax.config_checks import check_fields
from retinanet_jax.stopping import Stopping
from retinanet_jax.training.profiling import parse_profile
from retinanet_jax.utils.ending import RunOutput
from retinanet_jax.utils.files import make_writable
from retinanet_jax.utils.paths import PACKAGES, scheme_of, to_path
from retinanet_jax.utils.run_lock import RunLock

DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"
MODES = ("train_and_evaluate", "train", "evaluate")


def define_run_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of both training and evaluation."""
    define_config(
        values,
        argv,
        default_config_file(argv, str(CONFIGS / "shapes.py")),
        "The config, FILE or FILE:ARGUMENT. If there is no file configs/NAME.py, the package's "
        "config of that name is used. The default of an evaluation is the checkpoint's own config, "
        "of a training configs/shapes.py, with --data configs/finetune.py. --config.FIELD=VALUE "
        "overrides a field.",
    )
    define_data(values)
    define_initial_weights(values)
    flags.DEFINE_string(
        "workdir",
        None,
        "The folder of the run's checkpoints, metrics and evaluations, on a local disk or in "
        "gs://. Training with the same folder again resumes the run.",
        flag_values=values,
    )
    define_stall_seconds(values)
    _define_cluster_flags(values)


def _define_cluster_flags(values: flags.FlagValues) -> None:
    """Define the flags of runs on many hosts, and of the reproducibility of a run."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Run on many hosts, with the same command on each. TPU pods, Slurm and Open MPI require no "
        "other flag.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of process 0; only required if the cluster does not provide it.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "The number of processes; only required if the cluster does not provide it.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "The index of this process, from 0; only required if the cluster does not provide it.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "host_timeout",
        30.0,
        "A host that has not answered for this many seconds is lost, and ends the run on all "
        "others. The default is 30.",
        lower_bound=5.0,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Let XLA use only GPU operations that have the same result in every run.",
        flag_values=values,
    )


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Define the flags of `train`."""
    define_run_flags(values, argv)
    flags.DEFINE_enum(
        "mode",
        MODES[0],
        MODES,
        "Whether to train with evaluations, to train only, or to evaluate the best checkpoint. The "
        "default is train_and_evaluate.",
        flag_values=values,
    )
    define_profile(values)
    define_replay(values)


def run(values: Any, _: list[str]) -> int:
    """Train or evaluate, depending on --mode, or repeat a step."""
    if values.replay:
        replay_step(values)
        return 0
    return run_mode(values, values.mode, parse_profile(values.profile))


def run_mode(
    values: Any,
    mode: str,
    profile: range | None = None,
    evaluate: Callable[[ConfigDict, pathlib.Path], None] | None = None,
) -> int:
    """Join the other hosts, if there are any, and train or evaluate.

    Args:
        values: The flags.
        mode: One of MODES.
        profile: The steps to profile; None for none.
        evaluate: As in `train_or_evaluate`.

    Returns:
        The exit status: 0, or 128 and the number of the signal that stopped the run.
    """
    if values.deterministic:  # jax reads it when it initializes its devices, which is later
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC_FLAG}"
    join_hosts(
        values.distributed,
        coordinator_address=values.coordinator_address,
        num_processes=values.num_processes,
        process_id=values.process_id,
        timeout=values.host_timeout,
    )
    with Stopping(hosts.joined()), contextlib.ExitStack() as stack:
        if values.distributed and jax.process_index():
            # Process 0 prints for all of them; each process prints only its own errors.
            silent = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silent))
        else:
            stack.enter_context(contextlib.redirect_stdout(RunOutput(sys.stdout)))
        config = config_of(values, mode)
        return train_or_evaluate(
            config,
            values.workdir,
            mode,
            profile=profile,
            stall_seconds=values.stall_seconds,
            evaluate=evaluate,
        )


def config_of(values: Any, mode: str) -> ConfigDict:
    """Return the config of a training, or with which its checkpoint is evaluated.

    Args:
        values: The flags.
        mode: One of MODES.
    """
    if mode == "evaluate" and values.workdir:
        workdir = to_path(values.workdir)
        if values.weights:
            use_weights(values.weights, workdir)
        return evaluation_config(values, workdir)
    config = with_weights(values)
    use_device(values, config)
    check_choices(values, config)
    use_data(values, config)
    return config


def join_hosts(
    distributed: bool,
    *,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: float,
) -> None:
    """Connect this process to the others of a run, before jax initializes its devices.

    Args:
        distributed: Whether there are other processes.
        coordinator_address: HOST:PORT of process 0; None where the cluster provides it.
        num_processes: The number of processes; None where the cluster provides it.
        process_id: The index of this process, from 0; None where the cluster provides it.
        timeout: A host of which nothing was heard for this many seconds is lost.

    Raises:
        ValueError: If the other processes cannot be joined, or if an argument is given although
            there are none.
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
        hosts.join(coordinator_address, num_processes, process_id, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--distributed found no hosts to join ({error}); without a cluster's own settings, "
            "give --coordinator_address=HOST:PORT --num_processes=N --process_id=0..N-1."
        ) from None


def train_or_evaluate(
    config: ConfigDict,
    workdir: str | None,
    mode: str,
    *,
    profile: range | None = None,
    stall_seconds: float = STALL_SECONDS,
    evaluate: Callable[[ConfigDict, pathlib.Path], None] | None = None,
) -> int:
    """Check what can be checked early, then train or evaluate.

    Args:
        config: The config, locked or not.
        workdir: The run's folder.
        mode: One of MODES.
        profile: The steps to profile; None for none.
        stall_seconds: As in `Watchdog`.
        evaluate: Evaluates with a config in a working directory; None for `evaluator.evaluate`.

    Returns:
        The exit status.

    Raises:
        ValueError: If there is no workdir, or the config has unknown or missing fields.
        OSError: If the workdir cannot be written, contains the metrics of another program, or is in
            use by another run.
    """
    if not workdir:
        raise ValueError("no --workdir: give a folder for the run's checkpoints and metrics.")
    from retinanet_jax.compilation import use_run_cache

    check_fields(config)
    folder = create_workdir(workdir)
    use_run_cache(folder)
    if mode == "evaluate":
        from retinanet_jax.evaluation import evaluator

        with watchdog(folder, stall_seconds):
            (evaluate or evaluator.evaluate)(config, folder)
        return 0
    from retinanet_jax.training.loop import train
    from retinanet_jax.training.metrics import check_metrics
    from retinanet_jax.training.observation import program_age

    check_metrics(folder)
    lock = RunLock(folder) if jax.process_index() == 0 else contextlib.nullcontext()
    with lock, watchdog(folder, stall_seconds):
        signal = train(
            config, folder, evaluates=mode == MODES[0], profile=profile, age=program_age()
        )
    if signal:
        print("stopped; the same command resumes from the newest checkpoint", file=sys.stderr)
        return 128 + signal
    print(
        f"the checkpoints, metrics and evaluations are in {workdir}; to detect objects:\n"
        f"  retinanet-jax predict --weights={workdir} --output=DIR IMAGES"
    )
    return 0


def create_workdir(workdir: str) -> pathlib.Path:
    """Create the working directory, which may be in remote storage, and return its path.

    Raises:
        ValueError: If it is in remote storage that Orbax cannot write to.
        OSError: If no files can be written to it.
    """
    scheme = scheme_of(workdir)
    if scheme in PACKAGES and scheme != "gs":
        raise ValueError(
            f"--workdir={workdir}: checkpoints cannot be written to {scheme}://, only to a local "
            f"disk or gs://; data and weights may be in {scheme}://."
        )
    folder = to_path(workdir)
    try:
        make_writable(folder)
    except OSError as error:
        if scheme:  # the message has what to check
            raise
        raise OSError(
            f"--workdir={folder} cannot be written ({error.strerror}); give another folder."
        ) from None
    return folder


COMMAND = Command(
    usage=(
        "retinanet-jax train --workdir=DIR [--data=FOLDER_OR_FILE] [--weights=NAME_OR_DIR_OR_FILE] "
        "[--config=FILE[:ARGUMENT]] [--config.FIELD=VALUE ...]"
    ),
    description=(
        "Trains the detector that the config describes and evaluates it, from the newest "
        "checkpoint in the workdir if there is one. On a cluster, run the same command on every "
        "host, with --distributed and a --workdir that all hosts can access."
    ),
    define_flags=define_flags,
    run=run,
    interrupted="stopped; the same command resumes from the newest checkpoint",
)
