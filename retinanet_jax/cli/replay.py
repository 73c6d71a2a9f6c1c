"""The flag --replay of `retinanet-jax train`: a step that was not finite is repeated."""

from typing import Any

from absl import flags
from ml_collections import config_flags

from retinanet_jax.utils.paths import to_path
from retinanet_jax.utils.remote import local_copy

UNUSED = ("config", "data", "weights", "workdir", "mode", "distributed")


def define_replay(values: flags.FlagValues) -> None:
    """Define --replay."""
    flags.DEFINE_string(
        "replay",
        None,
        "The file of a step that was not finite, WORKDIR/replay/step_S.npz. The step is repeated "
        "on the devices of this machine, without a dataset, and its arrays that are not finite "
        "are printed; the exit status is 0 if there are none. Of the other flags only "
        "--config.FIELD=VALUE is used, for instance to see whether --config.dtype=float32 helps.",
        flag_values=values,
    )


def replay_step(values: Any) -> None:
    """Repeat the step of --replay.

    Raises:
        FloatingPointError: If it is not finite.
        FileNotFoundError: If there is no such file.
        ValueError: If another flag is given, or the file is damaged.
    """
    for name in UNUSED:
        if values[name].present:
            raise ValueError(f"--{name} has no effect with --replay; leave it out.")
    from retinanet_jax.compilation import use_compilation_cache
    from retinanet_jax.training.replay import replay

    use_compilation_cache()
    replay(local_copy(to_path(values.replay)), config_flags.get_override_values(values["config"]))
