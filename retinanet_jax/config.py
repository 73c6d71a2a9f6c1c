"""All config fields, their checks, and how configs are compared and stored."""

import difflib
import json
import operator
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

CONFIGS = pathlib.Path(__file__).parent / "configs"
if not CONFIGS.is_dir():  # in a checkout they lie next to the package
    CONFIGS = CONFIGS.parent.parent / "configs"


def default_config() -> ConfigDict:
    """Return the config of RetinaNet R50-FPN at 800 pixels, unlocked: every field there is, with the paper's values.

    Every other config starts from this one and sets what differs.
    """
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
    config.data.validation_fraction = 0.0
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
    config.data.rot90 = False  # 0 to 3 of them, for pictures that have no upright
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
    return config


def check_fields(config: ConfigDict) -> None:
    """Raises ValueError at the first field that no code reads, that is missing, or of another kind.

    ml_collections holds other types to what they are, but not what is in a tuple.
    """
    known = default_config()
    have, want = set(field_names(config)), set(field_names(known))
    for name in sorted(have - want):
        close = difflib.get_close_matches(name, want, 1)
        hint = f"; did you mean config.{close[0]}?" if close else "."
        raise ValueError(f"config.{name} is not a field of configs/r50_fpn.py{hint}")
    for name in sorted(want - have):
        raise ValueError(f"config.{name} is missing; configs/r50_fpn.py has all fields.")
    for name in sorted(want):
        value, example = operator.attrgetter(name)(config), operator.attrgetter(name)(known)
        if not (isinstance(example, tuple) and example):
            continue
        if any(np.shape(one) != np.shape(example[0]) for one in value):
            raise ValueError(f"config.{name}={value} must be of the kind of {example}.")


def field_names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def choose(field: str, name: str, choices: dict[str, Any]) -> Any:
    """choices[name], or a ValueError that names the config field and what it may be."""
    if name not in choices:
        raise ValueError(f"{field}={name!r} must be one of {', '.join(choices)}.")
    return choices[name]


# Sections of the config that say what the weights mean. Many a field of them can change without
# changing any array's shape; the other sections' only change how training goes on.
DEFINING = ("model", "anchors", "input")


def plain(config: ConfigDict) -> dict[str, Any]:
    """What of `config` is stored; in JSON tuples are lists."""
    return json.loads(config.to_json())


def differences(
    saved: Mapping[str, Any], config: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, saved value, value now) of each field that differs; None where it is absent."""
    for name in sorted({*saved, *config}):
        have, want = saved.get(name), config.get(name)
        if isinstance(have, Mapping) and isinstance(want, Mapping):
            yield from differences(have, want, f"{prefix}{name}.")
        elif have != want:
            yield prefix + name, have, want
