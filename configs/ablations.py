"""The rows of the paper's Tables 1a to 1d and of its appendix: R50-FPN or R101-FPN at 600 pixels.

Command:  retinanet-jax train --config=configs/ablations.py:gamma=2 --workdir=runs/gamma_2
          (or any other of ROWS after the colon; configs/README.md lists them)
Expects:  what configs/r50_fpn.py does; for OHEM's rows what configs/r101_fpn.py does.
AP:       ROWS has the paper's numbers on minival, which has the images of val2017; not measured
          here.
Hours:    not measured here.

`python scripts/ablation.py` runs some of these rows on synthetic images, in minutes.
"""

import functools

from ml_collections import ConfigDict

from retinanet_jax.configs import detectron2, r50_fpn

# The name of each row here, and its AP in the paper; None where training diverged.
ROWS = {
    # Table 1a: cross entropy without and with the prior, then balanced by alpha.
    "ce": None,
    "ce-prior": 30.2,
    "alpha=.10": 0.0,
    "alpha=.25": 10.8,
    "alpha=.50": 30.2,
    "alpha=.75": 31.1,
    "alpha=.90": 30.8,
    "alpha=.99": 28.7,
    "alpha=.999": 25.1,
    # Table 1b: the focal loss, each gamma with its best alpha.
    "gamma=0": 31.1,
    "gamma=.1": 31.4,
    "gamma=.2": 31.9,
    "gamma=.5": 32.9,
    "gamma=1": 33.7,
    "gamma=2": 34.0,
    "gamma=5": 32.2,
    # Table 1c: anchors per cell, scales x ratios.
    "anchors=1x1": 30.3,
    "anchors=2x1": 31.9,
    "anchors=3x1": 31.8,
    "anchors=1x3": 32.4,
    "anchors=2x3": 34.2,
    "anchors=3x3": 34.0,
    "anchors=4x3": 33.8,
    # Table 1d: hard examples per image @ threshold of NMS; then with at most 3 negatives for each
    # positive. The row with the focal loss is configs/r101_fpn.py:600.
    "ohem=128@.7": 31.1,
    "ohem=256@.7": 31.8,
    "ohem=512@.7": 30.6,
    "ohem=128@.5": 32.8,
    "ohem=256@.5": 31.0,
    "ohem=512@.5": 27.6,
    "ohem13=128@.5": 31.1,
    "ohem13=256@.5": 28.3,
    "ohem13=512@.5": 24.0,
    # Table 3: FL* of (gamma, beta), named by the argument of its sigmoid.
    "star=2x+1": 33.8,
    "star=4x+0": 33.9,
}
BEST_ALPHA = {"0": 0.75, ".1": 0.75, ".2": 0.75, ".5": 0.5, "1": 0.25, "2": 0.25, "5": 0.25}


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is one of ROWS, "tiny" or both; "" is "gamma=2"."""
    config = r50_fpn.get_config("600").unlock()
    return r50_fpn.finished(config, arg, {row: functools.partial(make, row=row) for row in ROWS})


def make(config: ConfigDict, row: str) -> None:
    """Set the fields that one of ROWS changes."""
    name, _, value = row.partition("=")
    match name:
        case "ce" | "ce-prior":
            config.loss.classification = "cross_entropy"
            config.model.prior_probability = 0.5 if name == "ce" else 0.01
        case "alpha":
            config.loss.update(classification="balanced_cross_entropy", alpha=float(value))
        case "gamma":
            config.loss.update(gamma=float(value), alpha=BEST_ALPHA[value])
        case "anchors":
            scales, ratios = map(int, value.split("x"))
            config.anchors.scales = tuple(2 ** (k / scales) for k in range(scales))
            config.anchors.ratios = (1.0,) if ratios == 1 else (0.5, 1.0, 2.0)
        case "star":
            gamma, beta = map(float, value.split("x+"))
            config.loss.update(classification="focal_star", gamma=gamma, star_beta=beta)
        case "ohem" | "ohem13":
            examples, threshold = value.split("@")
            detectron2.start_from(config, "resnet101", "weights/R-101.pkl")
            config.loss.classification = "ohem"
            config.loss.ohem.update(num_examples=int(examples), iou_threshold=float(threshold))
            config.loss.ohem.negatives_per_positive = 3 if name == "ohem13" else 0
