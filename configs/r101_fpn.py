"""RetinaNet R101-FPN: the deeper half of the paper's Table 1e, at 400 to 800 pixels.

Command:  retinanet-jax train --config=configs/r101_fpn.py --workdir=runs/r101_fpn
          (configs/r101_fpn.py:600 trains and tests at 600 pixels; :400, :500, :700, :800)
Expects:  COCO as configs/r50_fpn.py does; the authors' ImageNet weights at weights/R-101.pkl, from
          https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-101.pkl
AP:       on test-dev 31.9, 34.4, 36.0, 37.1, 37.8 at 400 to 800 pixels are the paper's numbers
          (Table 1e); not measured here.
Hours:    not measured here. The authors' later code took 0.666 s a step at 800 pixels on 8 GPUs
          (Detectron's model zoo), which makes 16.7 hours.
"""

from ml_collections import ConfigDict

from retinanet_jax.configs import detectron2, r50_fpn


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is a short side of Table 1e ("400" to "800"), "tiny" or both."""
    config = r50_fpn.get_config().unlock()
    detectron2.start_from(config, "resnet101", "weights/R-101.pkl")
    return r50_fpn.finished(config, arg, r50_fpn.SHORT_SIDES)
