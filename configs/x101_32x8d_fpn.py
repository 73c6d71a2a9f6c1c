"""RetinaNet ResNeXt-101-32x8d-FPN: the paper's best model (Table 2).

Command:  retinanet-jax train --config=configs/x101_32x8d_fpn.py --workdir=runs/x101
Expects:  COCO as configs/r50_fpn.py does; the authors' ImageNet weights at weights/X-101-32x8d.pkl,
          from https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/FAIR/X-101-32x8d.pkl
AP:       40.8 on test-dev is the paper's number (Table 2; 61.1 at IoU .5, 44.1 at .75, and 24.1,
          44.2, 51.2 by size); not measured here.
Hours:    not measured here. 135,000 steps at the 1.343 s of Detectron's model zoo (8 GPUs, at 800
          pixels throughout) are 50.

Schedule and scale jitter are those of configs/r101_fpn_1_5x.py.
"""

from ml_collections import ConfigDict

from retinanet_jax.configs import detectron2, r50_fpn, r101_fpn_1_5x


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is "" or "tiny"."""
    config = r101_fpn_1_5x.get_config().unlock()
    detectron2.start_from(config, "resnext101_32x8d", "weights/X-101-32x8d.pkl")
    # FAIR trained these weights itself, unlike MSRA's ResNets.
    config.model.stride_in_1x1 = False
    config.input.std = (57.375, 57.12, 58.395)
    return r50_fpn.finished(config, arg)
