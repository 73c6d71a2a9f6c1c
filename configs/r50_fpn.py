"""RetinaNet R50-FPN at 800 pixels: the recipe of the paper, and the base of every other config.

Command:  python -m retinanet_jax.main --config=configs/r50_fpn.py --workdir=runs/r50_fpn
          (--config=configs/r50_fpn.py:600 trains and tests at 600 pixels; :400, :500, :700, :800.
          --config=configs/r50_fpn.py:tiny draws its own pictures and takes about a minute.)
Expects:  COCO under data/coco (train2017/, val2017/, annotations/), ImageNet weights at
          weights/resnet50.npz (scripts/get_resnet50.py writes them).
AP:       on test-dev 30.5, 32.5, 34.3, 35.1, 35.7 at 400 to 800 pixels are the paper's numbers
          (Table 1e); not measured here.
Hours:    not measured here. The authors' later code took 12.1 on 8 GPUs at 800 pixels (Detectron's
          model zoo), the paper's 10 to 35 for the models of Table 1e.

A config that differs starts from this one (`config = r50_fpn.get_config()`) and sets what differs;
a field that this file lacks is an error, so every switch there is can be read here. Behind a colon
a config takes an argument: names with commas between them, as in configs/r50_fpn.py:600,tiny.
"""

import functools
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Table 1e's short sides other than 800, each with its buckets. The square holds what is nearly so;
# the wide ones end where 4:3, 3:2 and the long side's limit do.
BUCKETS = {
    400: ((448, 448), (416, 544), (416, 608), (416, 672), (544, 416), (608, 416), (672, 416)),
    500: ((544, 544), (512, 672), (512, 768), (512, 864), (672, 512), (768, 512), (864, 512)),
    600: ((640, 640), (608, 800), (608, 928), (608, 1024), (800, 608), (928, 608), (1024, 608)),
    700: ((736, 736), (704, 960), (704, 1056), (704, 1184), (960, 704), (1056, 704), (1184, 704)),
}


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is a short side of Table 1e ("400" to "800") or "tiny" or both; "" is "800"."""
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 90_000
    config.log_every = 20
    config.checkpoint_every = 2_500
    config.evaluate_every = 10_000  # a multiple of checkpoint_every
    # pycocotools; hotcoco: the same numbers, fifty times faster (pip install hotcoco)
    config.evaluator = "pycocotools"
    config.keep_checkpoints = 2  # the last ones; the best by AP is kept beside them
    config.dtype = "float32"  # of the network's computation; parameters and losses stay float32
    config.space = 1  # devices that share one image's rows; the others share the batch

    config.data = ConfigDict()
    # Several data sets are merged: source, annotations, images, split and classes may be lists
    # with commas.
    config.data.train = dict(
        source="coco",  # coco, voc, csv, tfds, packed, shapes (drawn into `images`)
        # coco: instances JSON; voc: folder of XML, or of VOCdevkit/VOC2007; csv: file of
        # path,x1,y1,x2,y2,name; tfds: builder, as coco/2017
        annotations="data/coco/annotations/instances_train2017.json",
        images="data/coco/train2017",  # folder; tfds: data_dir; packed: what the pack command wrote
        split="",  # tfds: train, validation or train+validation; voc: file in ImageSets/Main
        classes="",  # csv: file of name,id
        official="",  # tfds: instances JSON whose areas AP by size is computed with
        count=0,  # shapes only: how many pictures are drawn
        seed=0,  # shapes only
        image_size=0,  # shapes only: pixels a side
    )
    config.data.eval = dict(
        config.data.train,
        annotations="data/coco/annotations/instances_val2017.json",
        images="data/coco/val2017",
    )
    # Where data.eval.annotations is empty, this share of the training pictures is held out.
    config.data.validation_share = 0.0
    config.data.categories = ()  # voc: names in the order of their ids; (): those found, sorted
    config.data.batch_size = 16
    config.data.eval_batch_size = 8
    # (height, width), multiples of 32: each picture goes to the smallest that holds it.
    config.data.buckets = (
        (800, 928),
        (800, 1088),
        (800, 1216),
        (800, 1344),
        (1088, 800),
        (1216, 800),
        (1344, 800),
    )
    # buckets; own: each picture's size rounded up to multiples of 32, as torchvision and detectron2
    # pad in evaluation and prediction, at the cost of a compilation for every such shape.
    config.data.eval_shapes = "buckets"
    # bilinear: without antialias, rounded to bytes; bilinear_float: not rounded, as torchvision;
    # pillow: antialiased, as detectron2. The latter two also round sides to pixels as these do.
    config.data.resize = "bilinear"
    config.data.short_sides = (800,)  # pixels; one is drawn for each picture
    config.data.short_side_sampling = "choice"  # choice; range: whole numbers from first to last
    config.data.eval_short_side = 800
    config.data.long_side = 1333
    config.data.flip = True
    config.data.quarter_turns = False  # 0 to 3 of them, for pictures that have no upright
    config.data.scale_jitter = (1.0, 1.0)  # the sides are multiplied by a draw from this range
    config.data.crop_size = ()  # (height, width) kept of the scaled picture: large-scale jitter
    config.data.min_visible = 0.0  # boxes of which a crop leaves a smaller share are left out
    # Factors are drawn from 1 - strength to 1 + strength; hue is in turns of the colour circle.
    config.data.color_jitter = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    config.data.loader = "tf"  # tf: tf.data; numpy: threads, and TensorFlow need not be there
    config.data.prefetch = 4  # batches
    config.data.threads = 0  # 0: as many as the loader finds useful

    # What the network reads: channel order, and (pixel - mean) / std of 0..255 pixels in it.
    # These are the numbers that the ImageNet weights of `init` were trained with.
    config.input = dict(order="bgr", mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))

    config.model = dict(
        backbone="resnet50",
        backbone_width=64,
        stride_in_1x1=True,  # as the ImageNet weights have it
        norm="frozen_batch",  # frozen_batch, batch, group
        norm_epsilon=1e-3,
        frozen_stages=2,  # 0 none, 1 the stem, 2 the stem and the first stage, ...
        p6_from="c5",  # c5, p5
        fpn_channels=256,
        head_depth=4,
        head_norm="none",  # none, group
        prior_probability=0.01,
    )
    # Weights to start from. keras_resnet50, torchvision, msra, detectron2: a backbone's file.
    # checkpoint: a detector's working directory, written by training or by
    # retinanet_jax.import_weights. "": none.
    config.init = dict(source="keras_resnet50", path="weights/resnet50.npz")

    config.anchors = dict(
        min_level=3,
        max_level=7,
        base_scale=4.0,  # the anchor's side at scale 1, in strides
        scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        ratios=(0.5, 1.0, 2.0),  # height / width
        offset=0.5,  # of a cell's centre, in strides
        rounding="exact",  # exact, torchvision
        stride_rule="nominal",  # nominal: 8..128; grid: image size // grid size
    )
    config.matching = dict(
        foreground_iou=0.5,
        background_iou=0.4,
        low_quality=True,  # each ground truth keeps its best anchor, however poor
        crowd_ioa=placeholder(float),  # background this much inside a crowd region is ignored
        ignore_padding=True,  # anchors centred in the padding
    )
    config.loss = dict(
        # focal, focal_star, balanced_cross_entropy, cross_entropy, ohem
        classification="focal",
        alpha=0.25,
        gamma=2.0,
        star_beta=1.0,  # focal_star only
        ohem=dict(
            num_candidates=2000,  # anchors of highest loss that NMS sees
            iou_threshold=0.5,
            num_examples=128,  # anchors of a picture that are trained on
            negatives_per_positive=0,  # 0: whatever is hardest
        ),
        box="smooth_l1",  # smooth_l1, giou
        beta=1 / 9,
        box_weight=1.0,
        normalizer="batch",  # batch, image, ema: whose count of foreground anchors divides the sums
        ema_momentum=0.9,
        ema_start=100.0,
    )
    config.detections = dict(
        score_threshold=0.05,
        top_k=1000,  # candidates a level
        iou_threshold=0.5,
        max_detections=100,
        nms="hard",  # hard, soft_linear, soft_gaussian
        soft_sigma=0.5,  # soft_gaussian only
        class_agnostic=False,  # boxes of one class suppress those of others too
        clip="before_nms",  # before_nms, after_nms
        drop_empty=True,
    )
    config.optimizer = dict(
        name="sgd",  # sgd, adamw
        learning_rate=0.01,  # at reference_batch_size; scaled linearly with the batch
        reference_batch_size=16,
        momentum=0.9,
        weight_decay=1e-4,  # on kernels only
        clip_norm=10.0,  # of all gradients together; 0: off
        warmup_steps=500,
        warmup_factor=1 / 3,
        schedule="step",  # step, cosine
        drops=(2 / 3, 8 / 9),  # of total_steps: 60k and 80k of 90k
        drop_factor=0.1,
    )
    return finished(config, arg, SHORT_SIDES)


def resize_to(config: ConfigDict, short_side: int) -> None:
    """Trains and tests at one of the short sides of Table 1e, in the proportion of 800 to 1333."""
    config.data.update(short_sides=(short_side,), eval_short_side=short_side)
    config.data.update(long_side=round(short_side * 5 / 3), buckets=BUCKETS[short_side])


# What the argument may be beside "tiny"; 800 is what the base has.
SHORT_SIDES = {str(side): functools.partial(resize_to, short_side=side) for side in BUCKETS}
SHORT_SIDES["800"] = lambda config: None


def finished(
    config: ConfigDict, arg: str, choices: Mapping[str, Callable[[ConfigDict], None]] = {}
) -> ConfigDict:
    """Applies a recipe's argument and locks it: a misspelt field is an error from here on.

    `arg` holds names with commas between them: at most one of `choices`, the recipe's own (what
    each does to the config), and "tiny". Raises ValueError for any other name, and for two choices.
    """
    names = arg.split(",") if arg else []
    for name in names:
        if name != "tiny" and name not in choices:
            known = ", ".join([*choices, "tiny"])
            raise ValueError(f"config argument {name!r} is unknown; this config knows {known}.")
    chosen = [name for name in names if name != "tiny"]
    if len(chosen) > 1:
        raise ValueError(f"config argument {arg!r} asks for {' and '.join(chosen)}; give one.")
    for name in chosen:
        choices[name](config)
    if "tiny" in names:
        make_tiny(config)
    return config.lock()


def make_tiny(config: ConfigDict) -> None:
    """Shrinks any config to a minute on a laptop: a toy network on a few drawn pictures."""
    drawn = dict(source="shapes", annotations="", images="", image_size=96)
    config.data.train.update(drawn, count=16, seed=1)
    config.data.eval.update(drawn, count=8, seed=2)
    config.data.update(
        validation_share=0.0,
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
    config.update(total_steps=8, log_every=1, checkpoint_every=4, evaluate_every=4)
