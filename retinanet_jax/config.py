"""All config fields, and functions that find, load and check configs."""

import difflib
import operator
import pathlib
import runpy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from retinanet_jax.config_versions import RENAMED_FIELDS

T = TypeVar("T")

CONFIGS = pathlib.Path(__file__).parent / "configs"
if not CONFIGS.is_dir():  # in a checkout, the folder is next to the package
    CONFIGS = CONFIGS.parent.parent / "configs"


def default_config() -> ConfigDict:
    """Return the base config, unlocked: all fields, with the values of the paper's R50-FPN.

    Other configs change some fields. Paper: https://arxiv.org/abs/1708.02002, sections 4 and 5.
    """
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 90_000
    config.epochs = 0  # if not 0, total_steps is that many epochs of the training data
    config.log_every = 20
    config.checkpoint_every = 2_500  # 0: whole epochs, about a tenth of the run
    config.evaluate_every = 10_000  # a multiple of checkpoint_every; 0: as for that
    config.patience = 0  # evaluations without a better AP after which the run ends; 0: never
    # pycocotools; hotcoco: the same results, fifty times faster (pip install hotcoco); auto:
    # hotcoco if it is installed
    config.evaluator = "auto"
    # Where metrics are written besides metrics.jsonl and TensorBoard: wandb, mlflow.
    config.loggers = ()
    config.keep_checkpoints = 2  # number of newest checkpoints; the best by AP is kept, too
    # Of the network's computation: float32, bfloat16, float64 (float16 would require loss scaling).
    # Parameters, outputs and losses are in at least float32.
    config.dtype = "float32"
    config.space = 1  # number of devices per image, split by height; all others split the batch
    # Whether the gradients of kernels are float32 if dtype is bfloat16, also while the devices add
    # them up, which then exchange twice as many bytes.
    config.float32_gradients = False
    config.shard_optimizer = False  # split the optimizer's state over the devices of the batch
    # What a step with a loss, gradient or update that is not finite does: stop the run, with a file
    # for --replay, or skip: it changes nothing, and the run counts it.
    config.nonfinite = "stop"

    config.data = ConfigDict()
    # Several datasets are merged: each of source, annotations, images, split, classes and official
    # may be a list separated by commas.
    config.data.train = dict(
        # coco, voc, csv, yolo, labelme, cvat, tfds, packed, shapes (synthetic, generated into
        # `images`)
        source="coco",
        # coco: instances JSON; voc: folder of XML files, or of VOCdevkit/VOC2007; csv: file with a
        # line for each box, read by its header or as path,x1,y1,x2,y2,name; yolo: data.yaml,
        # obj.data or the dataset's folder; labelme: folder of JSON files; cvat: XML file; tfds:
        # builder, for example coco/2017
        annotations="data/coco/annotations/instances_train2017.json",
        # folder; empty for that of the split (yolo), the one that annotations name or that is next
        # to them (voc, csv, labelme, cvat); tfds: data_dir; packed: output of pack
        images="data/coco/train2017",
        # tfds: train, validation or train+validation; voc: file in ImageSets/Main; yolo: train,
        # val or test; cvat: subset
        split="",
        classes="",  # csv: file of name,id, or empty for the names in the boxes
        official="",  # tfds: instances JSON with the areas that AP by size is computed from
        count=0,  # shapes only: number of images
        seed=0,  # shapes only
        image_size=0,  # shapes only: pixels per side
    )
    config.data.eval = dict(
        config.data.train,
        annotations="data/coco/annotations/instances_val2017.json",
        images="data/coco/val2017",
    )
    # Fraction of the training images that is held out for evaluation if data.eval has no data.
    config.data.validation_fraction = 0.0
    # Images that stay on one side of that split. auto: frames of a video, augmented copies and
    # nearly identical images; none: each image is split by the hash of its name; or a regular
    # expression, of which the first group in a file name names the image's group.
    config.data.split_groups = "auto"
    # Whether boxes were drawn on images with their EXIF orientation applied. auto: as most images
    # of a dataset show, applied if none does; applied; ignored. An image of which the declared
    # height and width fit only one way is read that way.
    config.data.exif = "auto"
    # The values of images of more than 8 bits a channel that become 0 and 255. type: those of the
    # file's type; image: the smallest and the largest of each image; or LOW,HIGH. Images of 8 bits
    # are never scaled.
    config.data.value_range = "type"
    # voc, csv without `classes`, yolo, labelme, cvat: names in the order of their ids, which start
    # from 1. (): those of the dataset; of voc, csv and labelme those that are present, sorted.
    config.data.categories = ()
    # 0 (auto): the largest that the memory allows, up to optimizer.reference_batch_size and up to a
    # sixteenth of the training images.
    config.data.batch_size = 16
    config.data.eval_batch_size = 8
    # (height, width), multiples of 32: each image is padded to the smallest one that contains it.
    landscape = ((800, 928), (800, 1088), (800, 1216), (800, 1344))
    config.data.buckets = (*landscape, (1088, 800), (1216, 800), (1344, 800))
    # buckets; own: each image's size rounded up to multiples of 32, as in torchvision and
    # detectron2, with a compilation for each shape.
    config.data.eval_shapes = "buckets"
    # bilinear: without antialiasing, rounded to bytes; bilinear_float: not rounded, as torchvision;
    # pillow: antialiased, as detectron2. The latter two also round sides to pixels as these do.
    config.data.resize = "bilinear"
    config.data.short_sides = (800,)  # pixels; one is sampled for each image
    config.data.short_side_sampling = "choice"  # choice; range: integers from first to last
    config.data.eval_short_side = 800
    config.data.long_side = 1333
    config.data.flip = True
    config.data.rot90 = False  # rotate by 0, 90, 180 or 270 degrees: for images from above
    # Range of a factor on both sides; without a crop limited so that the image fits in a bucket.
    config.data.scale_jitter = (1.0, 1.0)
    config.data.crop_size = ()  # (height, width) cropped from the scaled image: large-scale jitter
    config.data.min_visible = 0.0  # boxes with a smaller fraction inside the crop are dropped
    # Factors are sampled from 1 - strength to 1 + strength; hue is a fraction of the color circle.
    config.data.color_jitter = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    # Inside an image's height and width, after its crop: strengths of the rotation and of the shear
    # along both axes in degrees, the range of a factor, and the fraction of the sides to move by.
    config.data.affine = dict(rotation=0.0, shear=0.0, scale=(1.0, 1.0), translation=0.0)
    # Fractions of the images that are combined with three others, in a corner each; that are
    # averaged with another one; and onto which an object is pasted, for each of 4 objects.
    config.data.mosaic = 0.0
    config.data.mixup = 0.0
    config.data.copy_paste = 0.0
    config.data.unmixed_fraction = 0.1  # of the steps, at the end, without these three
    # Fractions of the images that are made gray; blurred by a Gaussian of 0.5 to 2 pixels; saved as
    # JPEG of quality 30 to 90; of which a rectangle of 10% to 30% of each side is made gray.
    config.data.gray = 0.0
    config.data.blur = 0.0
    config.data.jpeg = 0.0
    config.data.cutout = 0.0
    # light, medium, strong: values of the fields of augmentation that are off (docs/data.md).
    config.data.augmentation = ""
    # Images with a category that is in a smaller fraction of the images are repeated in an epoch,
    # sqrt(threshold / fraction) times (LVIS, https://arxiv.org/abs/1908.03195); 0: off.
    config.data.repeat_threshold = 0.0
    config.data.loader = "tf"  # tf: tf.data; numpy: threads, without TensorFlow
    config.data.prefetch = 4  # batches
    config.data.threads = 0  # 0: the loader chooses

    # The network's input: channel order, and mean and std of 0..255 pixels in that order. The
    # weights of `init` were trained with these values.
    config.input = dict(order="bgr", mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))
    config.model = dict(
        backbone="resnet50",
        backbone_width=64,
        stride_in_1x1=True,  # as in the ImageNet weights
        norm="frozen_batch",  # frozen_batch, batch, group
        norm_epsilon=1e-3,
        frozen_stages=2,  # 0 none, 1 the stem, 2 the stem and the first stage, ...
        frozen_parts=(),  # fpn, class_head, box_head
        # stem, c2, c3, c4, c5, fpn, heads: parts with less memory, computed twice in a step
        remat=(),
        p6_from="c5",  # c5, p5
        fpn_channels=256,
        head_depth=4,
        head_norm="none",  # none, group
        # masked: padding, and so the bucket of an image, changes no result; plain: it changes the
        # outputs near it and the statistics of norms, as in torchvision and detectron2.
        padding="masked",
        prior_probability=0.01,
    )
    # Initial weights. keras_resnet50, torchvision, msra, detectron2: a backbone's file or name;
    # checkpoint: a detector's working directory, file or name (weights/named.py); "": random.
    config.init = dict(source="keras_resnet50", path="weights/resnet50.npz")
    config.anchors = dict(
        min_level=3,  # the network has no other
        max_level=7,  # 5, 6, 7
        base_scale=4.0,  # side of an anchor of scale 1, in strides
        scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        ratios=(0.5, 1.0, 2.0),  # height / width
        offset=0.5,  # of the anchor's center in its cell, in strides
        rounding="exact",  # exact, torchvision
        stride_rule="nominal",  # nominal: 8..128; grid: image size // grid size
    )
    # Whether base_scale, scales and ratios are chosen for the training data if those above cover
    # its boxes poorly; also --config.anchors=auto.
    config.choose_anchors = False
    config.matching = dict(
        foreground_iou=0.5,
        background_iou=0.4,
        low_quality=True,  # the best anchor of each ground truth is foreground at any IoU
        crowd_ioa=placeholder(float),  # background with this fraction in a crowd region is ignored
        ignore_padding=True,  # ignore anchors with their center in the padding
    )
    config.loss = dict(
        classification="focal",  # focal_star, balanced_cross_entropy, cross_entropy, ohem
        alpha=0.25,
        gamma=2.0,
        star_beta=1.0,  # focal_star only
        ohem=dict(
            num_candidates=2000,  # anchors with the highest losses, which NMS selects from
            iou_threshold=0.5,
            num_examples=128,  # anchors per image in the loss
            negatives_per_positive=0,  # 0: no limit
        ),
        box="smooth_l1",  # smooth_l1, giou
        beta=1 / 9,
        box_weight=1.0,
        # The losses are divided by the number of foreground anchors of the batch (batch) or of each
        # image (image), or by a moving average of that number (ema).
        normalizer="batch",
        ema_momentum=0.9,
        ema_start=100.0,
        ema_images=0,  # images per moving average; 0: one average of the whole batch
    )
    config.detections = dict(
        score_threshold=0.05,
        top_k=1000,  # candidates per level
        iou_threshold=0.5,
        max_detections=100,
        nms="hard",  # hard, soft_linear, soft_gaussian
        soft_sigma=0.5,  # soft_gaussian only
        class_agnostic=False,  # boxes also suppress those of other classes
        clip="before_nms",  # before_nms, after_nms
        drop_empty=True,
    )
    config.optimizer = dict(
        name="sgd",  # sgd, adamw
        learning_rate=0.01,  # at reference_batch_size; scaled linearly with the batch
        reference_batch_size=16,
        momentum=0.9,
        weight_decay=1e-4,  # on the kernels of convolutions, never on norms
        decay_biases=False,  # weight decay also on the biases of convolutions
        clip_norm=10.0,  # of all gradients together; 0: off
        warmup_steps=500,
        warmup_factor=1 / 3,
        schedule="step",  # step, cosine
        schedule_steps=0,  # length of the schedule; 0: total_steps
        drops=(2 / 3, 8 / 9),  # fractions of the schedule's steps: 60k and 80k of 90k
        drop_factor=0.1,
        # Decay of the moving average of all variables, which is what is evaluated and exported; it
        # rises from 0.1 to this value in the first steps. 0: no average.
        ema_decay=0.0,
        accumulate=1,  # number of parts of a batch, of which one at a time is in memory
        layer_decay=1.0,  # factor of the learning rate per stage of the backbone, from C5 down
    )
    return config


def find_config(spec: str) -> str:
    """Return the path of a config, with its argument if it has one.

    Args:
        spec: "FILE[:ARGUMENT]"; without such a file, NAME.py and configs/NAME.py are the package's.

    Raises:
        FileNotFoundError: If there is no such config; the message lists those of the package.
    """
    file, colon, argument = spec.partition(":")
    path = pathlib.Path(file).expanduser()
    if not path.is_file() and path.parent in (pathlib.Path("configs"), pathlib.Path()):
        path = CONFIGS / path.name
    if not path.is_file():
        available = ", ".join(f"configs/{path.name}" for path in config_files())
        raise FileNotFoundError(f"--config={spec}: no such file; the package has {available}.")
    return f"{path}{colon}{argument}"


def config_files() -> list[pathlib.Path]:
    """Return the config files of the package, sorted by name."""
    return sorted(path for path in CONFIGS.glob("*.py") if path.name != "__init__.py")


def load_config(spec: str) -> ConfigDict:
    """Return the config of `spec`, as described in `find_config`, locked."""
    file, _, argument = find_config(spec).partition(":")
    return runpy.run_path(file)["get_config"](argument)


def unknown_field(name: str) -> str:
    """Return the error message for an unknown field, with the most similar one and its section.

    Args:
        name: The field's dotted name, without "config.".
    """
    for renamed in RENAMED_FIELDS.values():
        if name in renamed:
            return f"config.{name} is called config.{renamed[name]} since retinanet_jax 0.2.0."
    config = default_config()
    # If no whole name is similar, compare only the last part: --config.learning_rate.
    by_last_part = {known.rpartition(".")[2]: known for known, _ in flatten(config)}
    nearest = difflib.get_close_matches(name, by_last_part.values(), 1) or [
        by_last_part[part]
        for part in difflib.get_close_matches(name.rpartition(".")[2], by_last_part, 1)
    ]
    hint = f"; did you mean config.{nearest[0]}?" if nearest else "."
    section = nearest[0].rpartition(".")[0] if nearest else ""
    fields = ", ".join(operator.attrgetter(section)(config) if section else config)
    section = f"config.{section}" if section else "config"
    return f"config.{name} is not a config field{hint} {section} has {fields}."


def choose(field: str, name: str, choices: Mapping[str, T]) -> T:
    """Return choices[name] for the value `name` of a field, or raise `unknown_choice`."""
    if name not in choices:
        raise unknown_choice(field, name, choices)
    return choices[name]


def unknown_choice(field: str, name: object, choices: Iterable[str]) -> ValueError:
    """Return the error for a config field with a value `name` that is not among its choices."""
    return ValueError(f"{field}={name!r} must be one of {', '.join(choices)}.")


def anchors_per_cell(config: ConfigDict) -> int:
    """Return the number of anchors of each cell of a pyramid level."""
    return len(config.anchors.scales) * len(config.anchors.ratios)


def flatten(fields: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name, with `prefix`, and the value of each field of a config or JSON."""
    for name, value in fields.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
