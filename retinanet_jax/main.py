"""The program's door: flags, config, dispatch.

python -m retinanet_jax.main [--config=FILE[:ARG]] --workdir=DIR
    [--mode=train_and_evaluate|train|evaluate] [--config.FIELD=VALUE ...]

On a cluster the same command runs on every host, with --distributed and a --workdir that all share.
"""

import os
import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from retinanet_jax.cli import common
from retinanet_jax.config import CONFIGS, check_fields
from retinanet_jax.utils.files import make_writable

DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"

with common.mistaken_flag_told(sys.argv):  # the default is read at once, and argv applied to it
    _CONFIG = config_flags.DEFINE_config_file(
        "config", str(CONFIGS / "shapes.py"), "The recipe: FILE[:ARG].", lock_config=True
    )
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and evaluations go; the same again resumes."
)
_MODE = flags.DEFINE_enum(
    "mode", "train_and_evaluate", ["train_and_evaluate", "train", "evaluate"], "What to do."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One run on many hosts; TPU pods, Slurm and the like name them by itself."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where nothing else names the hosts."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, where nothing else says.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "Ask XLA for GPU operations whose result is the same in every run."
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")


def main(_: list[str]) -> None:
    """Runs the mode; a user's mistake ends in one line, not in a traceback."""
    # Orbax tells a page of INFO a checkpoint; what this program has to say it prints.
    logging.set_verbosity(logging.WARNING)
    if _DETERMINISTIC.value:  # read when jax finds its devices, which is later
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC_FLAG}"
    stopped = "stopped; the same command goes on from the newest checkpoint"
    with common.errors_in_one_line(_TRACEBACK.value, stopped=stopped):
        join_hosts(
            _DISTRIBUTED.value,
            coordinator_address=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
        )
        run(_CONFIG.value, _WORKDIR.value, _MODE.value)


def join_hosts(distributed: bool, **by_hand: str | int | None) -> None:
    """Makes this process one of many, the first of which prints. Before jax finds its devices.

    `by_hand`: coordinator_address, num_processes, process_id; None where the cluster itself says.
    """
    given = [f"--{name}={value}" for name, value in by_hand.items() if value is not None]
    if not distributed:
        if given:
            raise ValueError(f"{given[0]} is of use with --distributed only; add it.")
        return
    try:
        jax.distributed.initialize(**by_hand)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--distributed found no hosts to join ({error}); by hand they are given by "
            "--coordinator_address=HOST:PORT --num_processes=N --process_id=0..N-1."
        ) from None
    if jax.process_index():
        # The first one speaks for all; only errors are each one's own.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def run(config: ConfigDict, workdir: str | None, mode: str) -> None:
    """Checks what can be checked early, then does what `mode` says."""
    if not workdir:
        raise ValueError("no --workdir: give the folder where the run's files go.")
    check_fields(config)
    folder = writable(pathlib.Path(workdir).expanduser().absolute())
    # A second start, and a resumed run, find their programs compiled.
    jax.config.update("jax_compilation_cache_dir", str(folder / "compilation_cache"))
    from retinanet_jax.evaluation import evaluator
    from retinanet_jax.training import loop

    if mode == "evaluate":
        evaluator.evaluate(config, folder)
    else:
        loop.train(config, folder, evaluates=mode == "train_and_evaluate")
        print(
            f"{workdir} holds the checkpoints, metrics and, of each evaluation, AP and pictures.\n"
            f"python -m retinanet_jax.predict --checkpoint={workdir} --output=DIR PICTURES"
        )


def writable(folder: pathlib.Path) -> pathlib.Path:
    """Makes the folder; raises an OSError that says why it can't hold the run."""
    try:
        make_writable(folder)
    except OSError as error:
        raise OSError(
            f"--workdir={folder} can't be written ({error.strerror}); give another folder."
        ) from None
    return folder


if __name__ == "__main__":
    jax.config.config_with_absl()  # its own flags, --jax_...
    app.run(main, flags_parser=common.parse_flags)
