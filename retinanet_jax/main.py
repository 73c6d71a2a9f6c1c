"""Train and evaluate; `python -m retinanet_jax.main` is the same as `retinanet-jax train`.

python -m retinanet_jax.main [--config=FILE[:ARGUMENT]] --workdir=DIR
    [--mode=train_and_evaluate|train|evaluate] [--config.FIELD=VALUE ...]
"""

import sys

from retinanet_jax.__main__ import run_program


def main() -> int:
    """Run the command `train`, and return its exit status."""
    # Here, so that a signal is answered while they are imported.
    from retinanet_jax.cli.common import run_command
    from retinanet_jax.cli.train import COMMAND

    return run_command(COMMAND, sys.argv)


if __name__ == "__main__":
    run_program(main)
