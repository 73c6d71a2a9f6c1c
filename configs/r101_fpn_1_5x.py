"""RetinaNet R101-FPN of the paper's Table 2: scale jitter and 1.5 times as many steps.

Command:  retinanet-jax train --config=configs/r101_fpn_1_5x.py --workdir=runs/r101_1_5x
Expects:  what configs/r101_fpn.py does.
AP:       39.1 on test-dev is the paper's number (Table 2; 59.1 at IoU .5, 42.3 at .75, and 21.8,
          42.7, 50.2 by size); not measured here.
Hours:    not measured here. 135,000 steps at the 0.666 s of Detectron's model zoo (8 GPUs, at 800
          pixels throughout) are 25.

The paper does not give the range of its "scale jitter"; this is the one of detectron2, the authors'
later code.
"""

from ml_collections import ConfigDict

from retinanet_jax.configs import detectron2, r50_fpn, r101_fpn


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is "" or "tiny"."""
    config = r101_fpn.get_config().unlock()
    config.total_steps = 135_000  # so the drops are at 90k and 120k
    config.evaluate_every = 15_000
    config.data.update(short_sides=detectron2.SHORT_SIDES, buckets=detectron2.BUCKETS)
    return r50_fpn.finished(config, arg)
