"""Train and evaluate; `python -m retinanet_jax.main` is the same as `retinanet-jax train`.

python -m retinanet_jax.main [--config=FILE[:ARGUMENT]] --workdir=DIR
    [--mode=train_and_evaluate|train|evaluate] [--config.FIELD=VALUE ...]
"""

import sys

from retinanet_jax.cli.common import run_command
from retinanet_jax.cli.train import COMMAND
from retinanet_jax.stopping import run_program

if __name__ == "__main__":
    run_program(lambda: run_command(COMMAND, sys.argv))
