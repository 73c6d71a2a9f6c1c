"""The functions that are timed, each with inputs of a given size, batch and dtype."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from retinanet_jax import core, modeling
from retinanet_jax.compilation import memory_options
from retinanet_jax.configs import r50_fpn, torchvision
from retinanet_jax.data.batch import Batch
from retinanet_jax.inference import latency
from retinanet_jax.models import ARCHITECTURES, Outputs, RetinaNet
from retinanet_jax.training.objective import batch_loss
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, make_train_step

SEED = 0
NUM_BOXES = 100  # padded ground truth of an image
NUM_REAL_BOXES = 8  # how many of them are real, as in a typical image of COCO
NUM_CLASSES, NUM_TORCHVISION_CLASSES = 80, 91
PIXEL_STD = 74.0  # standard deviation of a random byte
# Mean and standard deviation of random logits. "trained": .02% of the scores exceed .05, as from a
# trained detector. "dense": 2% do, so that every level has more candidates than it may keep.
LOGITS = {"trained": (-7.3, 1.25), "dense": (-6.0, 1.5)}


class Setting(NamedTuple):
    """The inputs with which a row of the table is measured."""

    size: tuple[int, int]  # height, width
    batch: int
    dtype: str
    backbone: str = "resnet50"
    reference: str = ""  # "torchvision" or "plain" (padding) if it is measured too

    def __str__(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}"
        return f"{size:9}{self.batch:6}  {self.dtype:8}"


class Workload(NamedTuple):
    """A detector and a batch; all arrays are in the host's memory."""

    setting: Setting
    config: ConfigDict
    num_classes: int
    model: RetinaNet
    variables: dict[str, Any]
    batch: Batch


class GivenOutputs(RetinaNet):
    """A network that returns the outputs among its variables instead of computing them."""

    @nn.nowrap
    def apply(self, variables: dict[str, Any], *_: Any, **__: Any) -> Outputs:
        """Return `variables["outputs"]`."""
        return variables["outputs"]


class Call(NamedTuple):
    """A function and its arguments."""

    function: Callable
    arguments: tuple
    donates_first: bool = False  # the first result is the next call's first argument, in place
    compiler_options: Mapping[str, Any] | None = None  # of XLA


@functools.lru_cache(maxsize=1)
def make_workload(setting: Setting) -> Workload:
    """Return the detector of a setting with random weights, and a random batch."""
    if setting.reference == "torchvision":
        config, num_classes = torchvision.get_config().unlock(), NUM_TORCHVISION_CLASSES
    else:
        config, num_classes = r50_fpn.get_config().unlock(), NUM_CLASSES
    config.dtype, config.model.backbone = setting.dtype, setting.backbone
    return Workload(
        setting,
        config,
        num_classes,
        modeling.build_model(config, num_classes),
        random_variables(config, num_classes),
        random_batch(setting, num_classes),
    )


def with_plain_convolutions(workload: Workload) -> Workload:
    """Return the workload with XLA's convolutions, also where this device has faster ones."""
    model = modeling.build_model(workload.config, workload.num_classes, platform="any")
    return workload._replace(model=model)


def with_plain_padding(workload: Workload) -> Workload:
    """Return the workload without masks of the padding."""
    config = workload.config.copy_and_resolve_references()
    config.model.padding = "plain"
    model = modeling.build_model(config, workload.num_classes)
    return workload._replace(config=config, model=model)


def random_variables(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Return random weights with which activations keep their scale and few scores exceed .05."""
    mean, std = LOGITS["trained"]
    last_norm = "norm3" if ARCHITECTURES[config.model.backbone]["bottleneck"] else "norm2"
    gains = {"stem_conv": 2**0.5 * np.mean(config.input.std) / PIXEL_STD, "fpn": 0.5}
    gains |= {"classification_head/predict": std, "box_head/predict": 0.2}
    # The last norm of a block is small; otherwise the shortcuts would add up to huge activations.
    constants = {"classification_head/predict/bias": mean, f"{last_norm}/scale": 0.3}
    constants |= {"/scale": 1.0, "/var": 1.0}

    def random_array(path, like: jax.ShapeDtypeStruct) -> np.ndarray:
        name = "/".join(key.key for key in path)
        if not name.endswith("kernel"):
            value = next((x for end, x in constants.items() if name.endswith(end)), 0.0)
            return np.full(like.shape, value, np.float32)
        rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        gain = next((gain for part, gain in gains.items() if part in name), 2**0.5)
        scale = np.float32(gain / np.prod(like.shape[:-1]) ** 0.5)
        return scale * rng.standard_normal(like.shape, np.float32)

    shapes = jax.eval_shape(lambda: modeling.initialize(config, num_classes, SEED))
    return jax.tree_util.tree_map_with_path(random_array, shapes)


def random_batch(setting: Setting, num_classes: int) -> Batch:
    """Return random pixels, and boxes of all sizes; classes count from 1, as torchvision's do."""
    rng, count = np.random.default_rng(SEED), setting.batch
    size = np.array(setting.size, np.float32)
    sides = np.exp(rng.uniform(np.log(8), np.log(0.7 * size.min()), (count, NUM_BOXES, 2)))
    corners = rng.uniform(0, 1, (count, NUM_BOXES, 2)) * (size - sides)
    batch = Batch.of_images(
        rng.integers(0, 256, (count, *setting.size, 3), np.uint8),
        np.tile(size, (count, 1)),
        np.ones((count, 2), np.float32),
        num_boxes=NUM_BOXES,
        num_crowd=1,
    )
    return batch._replace(
        boxes=np.concatenate([corners, corners + sides], axis=-1).astype(np.float32),
        classes=rng.integers(1, num_classes, (count, NUM_BOXES)).astype(np.int32),
        mask=np.tile(np.arange(NUM_BOXES) < NUM_REAL_BOXES, (count, 1)),
    )


def with_all_boxes(batch: Batch) -> Batch:
    """Return the batch with all NUM_BOXES boxes real, about the maximum in an image of COCO."""
    return batch._replace(mask=np.ones_like(batch.mask))


def random_normal(shape: Sequence[int], dtype: str, mean: float = 0, std: float = 1) -> jax.Array:
    """Return normally distributed numbers; always the same for the same arguments."""
    values = np.random.default_rng(SEED).standard_normal(shape, np.float32)
    return jnp.asarray(values * np.float32(std) + np.float32(mean), dtype)


def random_outputs(workload: Workload, regime: str) -> Outputs:
    """Return random logits and deltas in the network's dtype; `regime` is a key of LOGITS."""
    setting = workload.setting
    lengths = [len(level) for level in modeling.image_anchors(setting.size, workload.config)]
    count, dtype = setting.batch, setting.dtype
    mean, std = LOGITS[regime]
    return Outputs(
        tuple(random_normal((count, n, workload.num_classes), dtype, mean, std) for n in lengths),
        tuple(random_normal((count, n, 4), dtype, 0, 0.2) for n in lengths),
    )


def on_device(tree: Any) -> Any:
    """Return copies on the device, which can be donated, unlike arrays in the host's memory."""
    return jax.tree.map(jnp.array, tree)


def training_step(workload: Workload) -> Call:
    """Return the whole training step: from a state and a batch on the device to the next state."""
    optimizer = make_optimizer(workload.config)
    variables = on_device(workload.variables)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=optimizer.init(variables["params"]),
        normalizer=jnp.asarray(workload.config.loss.ema_start, jnp.float32),
    )
    step = make_train_step(workload.model, optimizer, workload.config)
    options = memory_options(jax.default_backend())
    arguments = state, on_device(workload.batch)
    return Call(step, arguments, donates_first=True, compiler_options=options)


def inference(workload: Workload) -> Call:
    """Return the detection of a batch, from bytes in the host's memory to detections."""
    variables = on_device(workload.variables)
    detect, prepared = latency.prepare_detect(variables, workload.model, workload.config)
    options = latency.compiler_options()
    return Call(detect, (prepared, workload.batch), compiler_options=options)


def network(workload: Workload, *, start: str = "", stop: str = "") -> Call:
    """Return the forward pass, or a part of it.

    Args:
        workload: The detector and its batch.
        start: The result of this module is the input; without it, normalized images are.
        stop: The result of this module is the output; without it, logits and deltas are.
    """
    images = random_normal(workload.batch.images.shape, workload.setting.dtype)

    def run(start, stop, variables, given):
        results = []

        def intercept(function, arguments, keywords, context):
            name = context.module.name if context.method_name == "__call__" else ""
            if name and name == start:
                return given
            result = function(*arguments, **keywords)
            if name and name == stop:
                results.append(result)
            return result

        with nn.intercept_methods(intercept):
            outputs = workload.model.apply(variables, images if start else given, train=False)
        return results[0] if stop else outputs

    given, variables = images, on_device(workload.variables)
    if start:
        shapes = jax.eval_shape(functools.partial(run, "", start), variables, images)
        given = jax.tree.map(lambda x: random_normal(x.shape, x.dtype), shapes)
    options = latency.compiler_options()
    return Call(functools.partial(run, start, stop), (variables, given), compiler_options=options)


def matching(workload: Workload) -> Call:
    """Return the assignment of targets to all anchors, with `NUM_BOXES` real boxes per image."""
    anchors = np.concatenate(modeling.image_anchors(workload.setting.size, workload.config))
    assign = functools.partial(
        modeling.assign_batch_targets, jnp.asarray(anchors), matching=workload.config.matching
    )
    return Call(assign, (on_device(with_all_boxes(workload.batch)),))


def loss(workload: Workload) -> Call:
    """Return the loss and its gradient, with `NUM_BOXES` real boxes per image."""

    def total(outputs, batch):
        normalizer = jnp.asarray(workload.config.loss.ema_start, jnp.float32)
        return batch_loss(outputs, batch, normalizer, workload.config).total

    batch = on_device(with_all_boxes(workload.batch))
    return Call(jax.value_and_grad(total), (random_outputs(workload, "trained"), batch))


def top_k(workload: Workload, regime: str) -> Call:
    """Return the selection of each level's candidates; `regime` is a key of LOGITS."""
    fields = {name: workload.config.detections[name] for name in ("score_threshold", "top_k")}
    anchors = modeling.image_anchors(workload.setting.size, workload.config)

    def select_in_image(outputs):
        levels = zip(*outputs, map(jnp.asarray, anchors), strict=True)
        return [core.select_candidates(*level, **fields) for level in levels]

    return Call(jax.vmap(select_in_image), (random_outputs(workload, regime),))


def nms(workload: Workload, regime: str) -> Call:
    """Return non-maximum suppression of the candidates; `regime` is a key of LOGITS."""

    def sort_by_score(levels):
        candidates = jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels)
        order = jnp.argsort(candidates.scores, descending=True)
        return jax.tree.map(lambda x: x[order], candidates)

    selection = top_k(workload, regime)
    select = jax.jit(lambda outputs: jax.vmap(sort_by_score)(selection.function(outputs)))
    boxes, _, classes, mask = select(*selection.arguments)
    limits = workload.config.detections
    suppress = functools.partial(
        core.non_maximum_suppression,
        iou_threshold=limits.iou_threshold,
        class_agnostic=limits.class_agnostic,
        limit=limits.max_detections,
    )
    return Call(jax.vmap(suppress), (boxes, classes, mask))


def postprocessing(workload: Workload, regime: str) -> Call:
    """Return everything from raw outputs to detections; `regime` is a key of LOGITS."""
    fields = {f.name for f in dataclasses.fields(RetinaNet)} - {"parent", "name"}
    model = GivenOutputs(**{name: getattr(workload.model, name) for name in fields})
    # A network masks its logits as part of its last convolution; given logits would be copied.
    config = with_plain_padding(workload).config
    detect = functools.partial(modeling.detect, model=model, config=config)
    variables = {"outputs": random_outputs(workload, regime)}
    return Call(detect, (variables, on_device(workload.batch)))


def optimizer_update(workload: Workload) -> Call:
    """Return the update of the parameters and the optimizer's state from gradients."""
    optimizer = make_optimizer(workload.config)

    def update(carried, gradients):
        params, state = carried
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), ()

    params, gradients = (on_device(workload.variables["params"]) for _ in range(2))
    return Call(update, ((params, optimizer.init(params)), gradients), donates_first=True)


GROUPS: dict[str, dict[str, Callable[[Workload], Call]]] = {
    "train": {"training step": training_step},
    "inference": {"inference": inference},
    "forward": {"forward": network},
    "parts": {
        "backbone": functools.partial(network, stop="backbone"),
        "FPN": functools.partial(network, start="backbone", stop="fpn"),
        "heads": functools.partial(network, start="fpn"),
        "matching": matching,
        "matching, loss, gradient": loss,
        "top-k, trained": functools.partial(top_k, regime="trained"),
        "top-k, dense": functools.partial(top_k, regime="dense"),
        "NMS, trained": functools.partial(nms, regime="trained"),
        "NMS, dense": functools.partial(nms, regime="dense"),
        "post-processing, trained": functools.partial(postprocessing, regime="trained"),
        "post-processing, dense": functools.partial(postprocessing, regime="dense"),
        "optimizer update": optimizer_update,
    },
}
