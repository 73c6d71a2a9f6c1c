"""RetinaNet R50-FPN at 800 pixels, as in the paper; all other configs start from this one.

Command:  retinanet-jax train --config=configs/r50_fpn.py --workdir=runs/r50_fpn
          (--config=configs/r50_fpn.py:600 trains and tests at 600 pixels; :400, :500, :700, :800.
          --config=configs/r50_fpn.py:tiny trains on synthetic images, in about a minute.)
Expects:  COCO under data/coco (train2017/, val2017/, annotations/); ImageNet weights at
          weights/resnet50.npz or, if there is no such file, from Keras, where they are downloaded.
AP:       on test-dev 30.5, 32.5, 34.3, 35.1, 35.7 at 400 to 800 pixels are the paper's numbers
          (Table 1e); not measured here.
Hours:    not measured here. The authors' later code took 12.1 on 8 GPUs at 800 pixels (Detectron's
          model zoo), the paper's 10 to 35 for the models of Table 1e.

The fields and their default values are in retinanet_jax/config.py. A config of your own starts from
this one (`config = r50_fpn.get_config().unlock()`) and sets the fields that differ; a field that
does not exist is an error. After a colon a config takes an argument, names separated by commas:
configs/r50_fpn.py:600,tiny.
"""

import functools
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from retinanet_jax.config import default_config

# Table 1e's short sides other than 800, each with its buckets: one for images that are nearly
# square, and others that end at 4:3, 3:2 and the limit of the long side.
BUCKETS = {
    400: ((448, 448), (416, 544), (416, 608), (416, 672), (544, 416), (608, 416), (672, 416)),
    500: ((544, 544), (512, 672), (512, 768), (512, 864), (672, 512), (768, 512), (864, 512)),
    600: ((640, 640), (608, 800), (608, 928), (608, 1024), (800, 608), (928, 608), (1024, 608)),
    700: ((736, 736), (704, 960), (704, 1056), (704, 1184), (960, 704), (1056, 704), (1184, 704)),
}


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; `arg` is a short side of Table 1e ("400" to "800"), "tiny" or both."""
    config = default_config()
    return finished(config, arg, SHORT_SIDES)


def resize_to(config: ConfigDict, short_side: int) -> None:
    """Train and evaluate at a short side of Table 1e; the long side is at most 5/3 of it."""
    config.data.update(short_sides=(short_side,), eval_short_side=short_side)
    config.data.update(long_side=round(short_side * 5 / 3), buckets=BUCKETS[short_side])


# The possible arguments besides "tiny"; the default config already has 800.
SHORT_SIDES = {str(side): functools.partial(resize_to, short_side=side) for side in BUCKETS}
SHORT_SIDES["800"] = lambda config: None


def finished(
    config: ConfigDict, arg: str, *choices: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Apply a config's argument and lock the config, so that a misspelled field is an error.

    Args:
        config: The config, unlocked; it is changed.
        arg: Names separated by commas: at most one of each of `choices`, and "tiny".
        choices: The arguments of this config that exclude each other, with the function that
            applies each.

    Raises:
        ValueError: If a name is unknown, or there are two of the same choices.
    """
    names = arg.split(",") if arg else []
    known = [name for functions in choices for name in functions] + ["tiny"]
    for name in names:
        if name not in known:
            raise ValueError(
                f"config argument {name!r} is unknown; this config has {', '.join(known)}."
            )
    for functions in choices:
        chosen = [name for name in names if name in functions]
        if len(chosen) > 1:
            raise ValueError(f"config argument {arg!r} asks for {' and '.join(chosen)}; give one.")
        for name in chosen:
            functions[name](config)
    if "tiny" in names:
        make_tiny(config)
    return config.lock()


def make_tiny(config: ConfigDict) -> None:
    """Shrink any config to a minute on a laptop: a toy network and a few synthetic images."""
    synthetic = dict(source="shapes", annotations="", images="", image_size=96)
    config.data.train.update(synthetic, count=16, seed=1)
    config.data.eval.update(synthetic, count=8, seed=2)
    config.data.update(
        validation_fraction=0.0,
        batch_size=4,
        eval_batch_size=4,
        buckets=((96, 96),),
        short_sides=(64, 96) if len(config.data.short_sides) > 1 else (96,),
        eval_short_side=96,
        long_side=96,
        crop_size=(96, 96) if config.data.crop_size else (),
    )
    config.model.update(
        backbone="resnet18", backbone_width=8, fpn_channels=32, head_depth=1, norm="batch"
    )
    config.model.frozen_stages = 0
    config.init.update(source="", path="")
    config.loss.ohem.update(num_candidates=200, num_examples=32)
    config.optimizer.update(warmup_steps=2)
    config.update(total_steps=8, epochs=0, log_every=1, checkpoint_every=4, evaluate_every=4)
