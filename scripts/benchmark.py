"""How fast the detector is on this machine, whole and in parts, alone or beside torchvision's.

Run: python scripts/benchmark.py [--what=train,inference,forward,parts,startup]
         [--sizes=256x256,512x512,800x1344] [--dtypes=float32,bfloat16] [--batch=N] [--repeat=N]
         [--peer=torchvision] [--memory] [--json=FILE]

docs/benchmark.md says what is measured, how, and what came out. TensorFlow is not needed.
"""

import argparse
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Idle workers of torch's OpenMP would spin and take the cores from ours. Read when torch is loaded,
# which tensorboardX does.
os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from PIL import Image

from retinanet_jax import compilation, core, modeling, weights
from retinanet_jax.cli import common
from retinanet_jax.config import CONFIGS, choose
from retinanet_jax.configs import r50_fpn, torchvision
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import ARCHITECTURES, Outputs
from retinanet_jax.training import objective
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, make_train_step
from retinanet_jax.utils.files import write_json
from retinanet_jax.utils.progress import format_duration

SEED = 0
BOXES, REAL_BOXES = 100, 8  # rows of ground truth; how many are real where a picture is as most are
# Mean and deviation of random logits. .02% of the scores pass .05, as from a trained detector; or
# 2%, so that every level has more candidates than it may keep.
NOISE = 74.0  # deviation of a random byte
LOGITS = {"trained": (-7.3, 1.25), "dense": (-6.0, 1.5)}
BATCHES = {"cpu": (2, 2, 1), "other": (64, 32, 16)}  # up to 256 x 256, to 512 x 512, and beyond
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision")
COLUMNS = (  # title, field, width and format, factor
    ("lower s", "lower_s", "8.1f", 1),
    ("compile s", "compile_s", "10.1f", 1),
    ("ms", "seconds", "10.2f", 1e3),
    ("images/s", "images_per_second", "9.2f", 1),
    ("GFLOP", "flops", "9.1f", 1e-9),
    ("TFLOP/s", "flops_per_second", "8.3f", 1e-12),
    ("of matmul", "share_of_matmul", "10.0%", 1),
    ("GB", "bytes", "8.2f", 1e-9),
    ("of copy", "share_of_copy", "8.0%", 1),
    ("GiB", "memory", "7.2f", 2**-30),
)
PEER_COLUMNS = (("theirs ms", "their_seconds", "10.2f", 1e3), ("ours/theirs", "ratio", "12.3f", 1))


class Setting(NamedTuple):
    """What a row of the table is about."""

    size: tuple[int, int]  # height, width
    batch: int
    dtype: str

    def __str__(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}"
        return f"{size:9}{self.batch:6}  {self.dtype:8}"


class Work(NamedTuple):
    """A detector and pictures; all arrays are the host's."""

    setting: Setting
    config: Any  # a ConfigDict
    num_classes: int
    model: Any  # a RetinaNet, or what is applied as one
    variables: dict[str, Any]
    batch: Batch


class Call(NamedTuple):
    """A function and what it is called with."""

    function: Callable
    arguments: tuple
    carries: bool = False  # its first result is its next first argument, in the same memory


# ---- inputs ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def make_work(setting: Setting, backbone: str, peer: str) -> Work:
    recipe, num_classes = (torchvision, 91) if peer else (r50_fpn, 80)
    config = recipe.get_config().unlock()
    config.dtype, config.model.backbone = setting.dtype, backbone
    model = modeling.build_model(config, num_classes)
    variables = seeded_variables(config, num_classes)
    return Work(setting, config, num_classes, model, variables, make_batch(setting, num_classes))


def plain(work: Work) -> Work:
    """With convolutions as they are defined, whatever this device's way to do them."""
    return work._replace(model=modeling.build_model(work.config, work.num_classes, portable=True))


def seeded_variables(config: Any, num_classes: int) -> dict[str, Any]:
    """Random weights under which activations keep their size and few scores pass .05."""
    mean, deviation = LOGITS["trained"]
    last_norm = "norm3" if ARCHITECTURES[config.model.backbone]["bottleneck"] else "norm2"
    gains = {"stem_conv": 2**0.5 * np.mean(config.input.std) / NOISE, "fpn": 0.5}
    gains |= {"classification_head/predict": deviation, "box_head/predict": 0.2}
    # The last norm of a block is small, or the shortcuts would add up to huge activations.
    constants = {"classification_head/predict/bias": mean, f"{last_norm}/scale": 0.3}
    constants |= {"/scale": 1.0, "/var": 1.0}

    def draw(path, like: jax.ShapeDtypeStruct) -> np.ndarray:
        name = "/".join(key.key for key in path)
        if not name.endswith("kernel"):
            value = next((x for end, x in constants.items() if name.endswith(end)), 0.0)
            return np.full(like.shape, value, np.float32)
        rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        gain = next((gain for part, gain in gains.items() if part in name), 2**0.5)
        scale = np.float32(gain / np.prod(like.shape[:-1]) ** 0.5)
        return scale * rng.standard_normal(like.shape, np.float32)

    shapes = jax.eval_shape(lambda: modeling.initialize(config, num_classes, SEED))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_batch(setting: Setting, num_classes: int) -> Batch:
    """Noise, and boxes of all sizes; classes from 1, as torchvision counts them."""
    rng, rows, size = np.random.default_rng(SEED), setting.batch, np.array(setting.size, np.float32)
    sides = np.exp(rng.uniform(np.log(8), np.log(0.7 * size.min()), (rows, BOXES, 2)))
    corners = rng.uniform(0, 1, (rows, BOXES, 2)) * (size - sides)
    return Batch(
        images=rng.integers(0, 256, (rows, *setting.size, 3), np.uint8),
        sizes=np.tile(size, (rows, 1)),
        scales=np.ones((rows, 2), np.float32),
        boxes=np.concatenate([corners, corners + sides], axis=-1).astype(np.float32),
        classes=rng.integers(1, num_classes, (rows, BOXES)).astype(np.int32),
        mask=np.tile(np.arange(BOXES) < REAL_BOXES, (rows, 1)),
        crowd_boxes=np.zeros((rows, 1, 4), np.float32),
        crowd_mask=np.zeros((rows, 1), bool),
        weights=np.ones(rows, np.float32),
        index=np.arange(rows, dtype=np.int32),
        colors=np.tile(np.array([1, 1, 1, 0], np.float32), (rows, 1)),
        dropped=np.zeros(rows, np.int32),
    )


def crowded(batch: Batch) -> Batch:
    """With all of its boxes: as many as a picture of COCO has at most."""
    return batch._replace(mask=np.ones_like(batch.mask))


def noise(shape: Sequence[int], dtype: str, mean: float = 0, deviation: float = 1) -> jax.Array:
    values = np.random.default_rng(SEED).standard_normal(shape, np.float32)
    return jnp.asarray(values * np.float32(deviation) + np.float32(mean), dtype)


def random_outputs(work: Work, regime: str) -> Outputs:
    """Outputs of no network, in its dtype."""
    lengths = [len(level) for level in modeling.image_anchors(work.setting.size, work.config)]
    rows, dtype = work.setting.batch, work.setting.dtype
    return Outputs(
        tuple(noise((rows, n, work.num_classes), dtype, *LOGITS[regime]) for n in lengths),
        tuple(noise((rows, n, 4), dtype, 0, 0.2) for n in lengths),
    )


def on_device(tree: Any) -> Any:
    """Copies, which may be given away; the host's own memory may not."""
    return jax.tree.map(jnp.array, tree)


# ---- what is measured: a Work -> a Call ------------------------------------------------------


def train_step(work: Work) -> Call:
    optimizer = make_optimizer(work.config)
    variables = on_device(work.variables)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=optimizer.init(variables["params"]),
        normalizer=jnp.asarray(work.config.loss.ema_start, jnp.float32),
    )
    step = make_train_step(work.model, optimizer, work.config)
    return Call(step, (state, on_device(work.batch)), carries=True)


def inference(work: Work) -> Call:
    """From the host's bytes to its detections."""
    detect = functools.partial(modeling.detect, model=work.model, config=work.config)
    return Call(detect, (on_device(work.variables), work.batch))


def network(work: Work, *, start: str = "", stop: str = "") -> Call:
    """The forward pass, from what module `start` returns to what module `stop` does.

    Without a start it begins with normalised pictures, without a stop it ends with the outputs.
    """
    images = noise(work.batch.images.shape, work.setting.dtype)

    def run(start, stop, variables, given):
        found = []

        def intercept(function, arguments, keywords, context):
            name = context.module.name if context.method_name == "__call__" else ""
            if name and name == start:
                return given
            result = function(*arguments, **keywords)
            if name and name == stop:
                found.append(result)
            return result

        with nn.intercept_methods(intercept):
            outputs = work.model.apply(variables, images if start else given, train=False)
        return found[0] if stop else outputs

    given, variables = images, on_device(work.variables)
    if start:
        before = jax.eval_shape(functools.partial(run, "", start), variables, images)
        given = jax.tree.map(lambda x: noise(x.shape, x.dtype), before)
    return Call(functools.partial(run, start, stop), (variables, given))


def matching(work: Work) -> Call:
    anchors = np.concatenate(modeling.image_anchors(work.setting.size, work.config))
    assign = functools.partial(core.assign_targets, jnp.asarray(anchors), **work.config.matching)
    batch = crowded(work.batch)
    boxes = (batch.boxes, batch.classes, batch.mask, batch.crowd_boxes, batch.crowd_mask)
    return Call(jax.vmap(assign), on_device((*boxes, batch.sizes)))


def loss(work: Work) -> Call:
    def total(outputs, batch):
        normalizer = jnp.asarray(work.config.loss.ema_start, jnp.float32)
        return objective.batch_loss(outputs, batch, normalizer, work.config).total

    batch = on_device(crowded(work.batch))
    return Call(jax.value_and_grad(total), (random_outputs(work, "trained"), batch))


def top_k(work: Work, regime: str) -> Call:
    fields = {name: work.config.detections[name] for name in ("score_threshold", "top_k")}
    anchors = modeling.image_anchors(work.setting.size, work.config)

    def one_image(outputs):
        levels = zip(*outputs, map(jnp.asarray, anchors), strict=True)
        return [core.select_candidates(*level, **fields) for level in levels]

    return Call(jax.vmap(one_image), (random_outputs(work, regime),))


def nms(work: Work, regime: str) -> Call:
    def best_first(levels):
        rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels)
        order = jnp.argsort(rows.scores, descending=True)
        return jax.tree.map(lambda x: x[order], rows)

    before = top_k(work, regime)
    found = jax.jit(lambda outputs: jax.vmap(best_first)(before.function(outputs)))
    boxes, _, classes, mask = found(*before.arguments)
    limits = work.config.detections
    suppress = functools.partial(
        core.non_maximum_suppression,
        iou_threshold=limits.iou_threshold,
        class_agnostic=limits.class_agnostic,
        limit=limits.max_detections,
    )
    return Call(jax.vmap(suppress), (boxes, classes, mask))


def post_processing(work: Work, regime: str) -> Call:
    # In the network's place something that returns what it is given.
    model: Any = types.SimpleNamespace(apply=lambda outputs, images, train: outputs)
    detect = functools.partial(modeling.detect, model=model, config=work.config)
    return Call(detect, (random_outputs(work, regime), on_device(work.batch)))


def optimizer_update(work: Work) -> Call:
    optimizer = make_optimizer(work.config)

    def update(carried, gradients):
        params, state = carried
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), ()

    params, gradients = (on_device(work.variables["params"]) for _ in range(2))
    return Call(update, ((params, optimizer.init(params)), gradients), carries=True)


GROUPS: dict[str, dict[str, Callable[[Work], Call]]] = {
    "train": {"training step": train_step},
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
        "post-processing, trained": functools.partial(post_processing, regime="trained"),
        "post-processing, dense": functools.partial(post_processing, regime="dense"),
        "optimizer update": optimizer_update,
    },
}


# ---- torchvision's: a Peer -> what does the same as the Call of that name --------------------


class Peer(NamedTuple):
    """torchvision's detector on the pictures of a Work."""

    work: Work
    device: str
    model: Any
    layout: Any  # of memory
    mixed: Callable[[], Any]  # contexts: mixed precision, and
    no_gradient: Callable[[], Any]


def prepare_torch() -> str:
    """The best settings for this machine; returns torch's name of its device."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_their_nms() -> bool:
    """Whether torchvision's compiled operators are there."""
    import torch
    import torchvision  # noqa: F401

    return any("torchvision/_C" in path for path in torch.ops.loaded_libraries)


def make_peer(work: Work, *, channels_last: bool, compiled: bool) -> Peer:
    """With frozen norms and our weights."""
    device = prepare_torch()
    import torch
    from torchvision.models.detection import backbone_utils, retinanet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    architecture, dtype = work.config.model.backbone, getattr(torch, work.setting.dtype)
    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name=architecture,
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model: Any = retinanet.RetinaNet(backbone, work.num_classes, _skip_resize=True)
    arrays = weights.DETECTOR_TARGETS["torchvision_v1"](
        work.variables, architecture=architecture, num_outputs=work.num_classes
    )
    model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(device).to(memory_format=layout)
    if compiled:
        model.backbone.forward = torch.compile(model.backbone.forward)
        model.head.forward = torch.compile(model.head.forward)
    mixed = functools.partial(torch.autocast, device, dtype, enabled=dtype != torch.float32)
    no_gradient = torch.no_grad if compiled else torch.inference_mode
    return Peer(work, device, model, layout, mixed, no_gradient)


def their_pictures(peer: Peer) -> list:
    """Of the host's bytes, as the model takes them."""
    import torch

    images = torch.tensor(peer.work.batch.images).to(peer.device)
    return list(images.permute(0, 3, 1, 2).to(torch.float32).div(255))


def their_truth(peer: Peer, batch: Batch) -> list[dict]:
    import torch

    boxes, classes = core.yxyx_to_xyxy(batch.boxes), batch.classes.astype(np.int64)
    tensor = functools.partial(torch.tensor, device=peer.device)
    return [
        {"boxes": tensor(boxes[row][real]), "labels": tensor(classes[row][real])}
        for row, real in enumerate(batch.mask)
    ]


def their_anchors(peer: Peer) -> list:
    """One tensor a picture."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    size, batch, _ = peer.work.setting
    maps = [torch.zeros(1, 1, *(-(-side // 2**level) for side in size)) for level in range(3, 8)]
    images = ImageList(torch.zeros(batch, 3, *size), [size] * batch)
    return [one.to(peer.device) for one in peer.model.anchor_generator(images, maps)]


def their_outputs(peer: Peer, regime: str) -> dict[str, list]:
    """One tensor a level of each output."""
    import torch

    def tensor(x: jax.Array):
        values = torch.tensor(np.asarray(x, np.float32))
        return values.to(peer.device, getattr(torch, peer.work.setting.dtype))

    logits, deltas = random_outputs(peer.work, regime)
    return {"cls_logits": [*map(tensor, logits)], "bbox_regression": [*map(tensor, deltas)]}


def their_training_step(peer: Peer) -> Callable[[], Any]:
    import torch

    images, truth = their_pictures(peer), their_truth(peer, peer.work.batch)
    params = [p for p in peer.model.parameters() if p.requires_grad]
    rule = {"lr": 1e-5, "momentum": 0.9, "weight_decay": 1e-4, "fused": peer.device == "cuda"}
    optimizer = torch.optim.SGD(params, **rule)

    def run():
        optimizer.zero_grad(set_to_none=True)
        with peer.mixed():
            total = torch.stack([*peer.model(images, truth).values()]).sum()
        total.backward()
        optimizer.step()
        return total.detach()

    return run


def their_inference(peer: Peer) -> Callable[[], Any]:
    peer.model.eval()

    def run():
        with peer.no_gradient(), peer.mixed():
            return [x.cpu() for one in peer.model(their_pictures(peer)) for x in one.values()]

    return run


def their_forward(peer: Peer) -> Callable[[], Any]:
    images = peer.model.transform(their_pictures(peer))[0].tensors
    images = images.to(memory_format=peer.layout)

    def run():
        with peer.no_gradient(), peer.mixed():
            return peer.model.head(list(peer.model.backbone(images).values()))

    return run


def their_matching(peer: Peer) -> Callable[[], Any]:
    from torchvision.ops import box_iou

    boxes = [one["boxes"] for one in their_truth(peer, crowded(peer.work.batch))]
    pairs = list(zip(boxes, their_anchors(peer), strict=True))
    return lambda: [peer.model.proposal_matcher(box_iou(*pair)) for pair in pairs]


def their_loss(peer: Peer) -> Callable[[], Any]:
    import torch

    outputs = their_outputs(peer, "trained").items()
    outputs = {name: torch.cat(levels, dim=1).requires_grad_() for name, levels in outputs}
    truth, anchors = their_truth(peer, crowded(peer.work.batch)), their_anchors(peer)

    def run():
        for one in outputs.values():
            one.grad = None
        with peer.mixed():
            losses = peer.model.compute_loss(truth, outputs, anchors)
            total = torch.stack([*losses.values()]).sum()
        total.backward()
        return total.detach()

    return run


def their_post_processing(peer: Peer, regime: str) -> Callable[[], Any]:
    outputs, sizes = their_outputs(peer, regime), [peer.work.setting.size] * peer.work.setting.batch
    lengths = [level.shape[1] for level in outputs["cls_logits"]]
    anchors = [list(one.split(lengths)) for one in their_anchors(peer)]

    def run():
        with peer.no_gradient():
            return peer.model.postprocess_detections(outputs, anchors, sizes)

    return run


THEIRS: dict[str, Callable[[Peer], Callable[[], Any]]] = {
    "training step": their_training_step,
    "inference": their_inference,
    "forward": their_forward,
    "matching": their_matching,
    "matching, loss, gradient": their_loss,
    "post-processing, trained": functools.partial(their_post_processing, regime="trained"),
    "post-processing, dense": functools.partial(their_post_processing, regime="dense"),
}
NEEDS_THEIR_NMS = ("inference", "post-processing, trained", "post-processing, dense")
VARIANTS = {  # by torch's name of the device; channels last, compiled
    "cpu": {"contiguous": (False, False), "channels_last": (True, False)},
    "cuda": {"channels_last": (True, False), "compiled": (True, True)},
}


def their_fastest(name: str, work: Work) -> tuple[str, Callable[[], Any] | None]:
    """The variant of theirs that takes the shortest, warmed up; or why there is none."""
    device, timed = prepare_torch(), []
    if name not in THEIRS:
        return "", None
    if name in NEEDS_THEIR_NMS and not has_their_nms():
        return "not available", None
    for label, (channels_last, compiled) in VARIANTS[device].items():
        peer = make_peer(work, channels_last=channels_last, compiled=compiled)
        run = until_done(THEIRS[name](peer), device)
        timed.append((min(race({"": run}, 3)[""][1:]), label, run))  # the first one warms up
    _, label, run = min(timed, key=lambda one: one[0])
    return label, run


def until_done(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    if device == "cpu":
        return run
    import torch

    return lambda: (run(), torch.cuda.synchronize())


# ---- measuring -------------------------------------------------------------------------------


def build(call: Call) -> tuple[Callable[[], Any], dict[str, float]]:
    """The compiled call, which returns when its result is there, and what XLA says of it."""
    jitted = jax.jit(call.function, donate_argnums=0 if call.carries else ())
    began = time.perf_counter()
    lowered = jitted.lower(*call.arguments)
    lowered_at = time.perf_counter()
    compiled: Any = lowered.compile()
    compile_s = time.perf_counter() - lowered_at
    arguments = list(call.arguments)

    def run():
        result = jax.block_until_ready(compiled(*arguments))
        if call.carries:
            arguments[0] = result[0]
        return result

    memory = compiled.memory_analysis()
    return run, {
        "lower_s": lowered_at - began,
        "compile_s": compile_s,
        "bytes": compiled.cost_analysis()["bytes accessed"],
        "memory": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    }


def count_flops(call: Call) -> float:
    """Of the program as it is written; of a `plain` one the same number on every device."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), call.arguments)
    with jax.default_device(jax.devices("cpu")[0]):  # the only one that tells before compiling
        lowered: Any = jax.jit(call.function).lower(*shapes)
        return lowered.cost_analysis()["flops"]


def race(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in each round; they take turns, so that disturbances meet all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


class Ceilings(NamedTuple):
    """The most that this device was seen to do in a second."""

    flops: dict[str, float]  # by dtype
    bytes: float  # read and written


def measure_ceilings(dtypes: Sequence[str], repeat: int) -> Ceilings:
    """Of a large matrix product, and of a large array that is changed in place."""
    side, length = (2048, 2**26) if jax.default_backend() == "cpu" else (8192, 2**28)

    def least_seconds(call: Call) -> float:
        run, _ = build(call)
        return min(race({"": run}, 1 + max(repeat, 5))[""][1:])  # the first one warms up

    products = {dtype: Call(jnp.matmul, (noise((side, side), dtype),) * 2) for dtype in dtypes}
    change = Call(lambda x: (x + 1, ()), (jnp.zeros(length, jnp.float32),), carries=True)
    return Ceilings(
        {dtype: 2 * side**3 / least_seconds(product) for dtype, product in products.items()},
        2 * 4 * length / least_seconds(change),
    )


def measure(
    name: str, make: Callable[[Work], Call], setting: Setting, options: Any, ceilings: Ceilings
) -> dict[str, Any]:
    """A row of the table: ours and, with --peer, theirs beside it."""
    work = make_work(setting, options.backbone, options.peer)
    run, facts = build(make(work))
    facts["flops"] = count_flops(make(plain(work)))
    run()
    runs, variant = {"ours": run}, ""
    if options.peer:
        variant, theirs = their_fastest(name, work)
        runs |= {"theirs": theirs} if theirs else {}
    seconds = race(runs, options.repeat)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "name": name,
        **setting._asdict(),
        **facts,
        **figures(seconds, setting, facts["flops"], facts["bytes"], ceilings),
        "device_peak": stats.get("peak_bytes_in_use"),
        "their_variant": variant,
        "rounds": seconds,
    }


def figures(
    seconds: dict[str, list[float]], setting: Setting, flops: float, moved: float, most: Ceilings
) -> dict[str, float | None]:
    """What follows from the seconds of the rounds."""
    ours, theirs = seconds["ours"], seconds.get("theirs")
    median = statistics.median(ours)
    return {
        "seconds": median,
        "images_per_second": setting.batch / median,
        "flops_per_second": flops / median,
        "share_of_matmul": flops / median / most.flops[setting.dtype],
        "bytes_per_second": moved / median,
        "share_of_copy": moved / median / most.bytes,
        "their_seconds": statistics.median(theirs) if theirs else None,
        "ratio": median_ratio(ours, theirs) if theirs else None,
    }


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


# ---- memory and startup, in processes of their own -------------------------------------------


def resident(field: str) -> int:
    """Bytes of this process by Linux: VmRSS, held now; VmHWM, at most since the peak was reset."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def training_peak(whose: str, setting: Setting, options: Any) -> int:
    """Bytes for a training state and three steps, in a process that does nothing else."""
    work = make_work(setting, options.backbone, options.peer)
    device = prepare_torch()
    import torch
    import torchvision  # noqa: F401

    if whose == "ours":
        call = train_step(work)
        run, _ = build(call)
        # What tracing left behind is not the training's.
        held = resident("VmRSS") - sum(x.nbytes for x in jax.tree.leaves(call.arguments))
    else:
        held = resident("VmRSS")
        run = their_training_step(make_peer(work, channels_last=True, compiled=False))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in range(3):
        run()
    if device == "cpu":
        return resident("VmHWM") - held
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] if whose == "ours" else torch.cuda.max_memory_allocated()


def compare_peaks(setting: Setting, options: Any) -> dict[str, Any]:
    """Peak memory of training, ours and theirs."""
    (height, width), batch, dtype = setting
    line = [sys.executable, __file__, f"--sizes={height}x{width}", f"--batch={batch}"]
    line += [f"--dtypes={dtype}", f"--backbone={options.backbone}", f"--peer={options.peer}"]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}

        def peak(whose: str) -> int:
            told = subprocess.check_output([*line, f"--peak_of={whose}"], env=environment)
            return int(told.splitlines()[-1])

        peak("ours")  # compiles, which takes memory of its own; the next one finds it done
        ours, theirs = peak("ours"), peak("theirs")
    return {**setting._asdict(), "ours": ours, "theirs": theirs, "ratio": ours / theirs}


def largest_batch(memory_at: Callable[[int], float], limit: float) -> int:
    """The most pictures whose memory is within the limit, 0 where not even one is.

    `memory_at` costs a compilation, and grows nearly by the same for each picture.
    """
    needs = functools.cache(memory_at)
    if needs(1) > limit:
        return 0
    batch = 1 + max(0, int((limit - needs(1)) // (needs(2) - needs(1))))
    while needs(batch) > limit:
        batch -= 1
    while needs(batch + 1) <= limit:
        batch += 1
    return batch


def find_largest_batch(setting: Setting, options: Any) -> Setting:
    """Of a training step, by XLA's plan of its memory."""
    stats = jax.devices()[0].memory_stats() or {}
    limit = options.limit_gib * 2**30 or stats.get("bytes_limit")
    if not limit:
        raise ValueError("this device tells no memory limit; give --limit_gib=NUMBER.")

    def memory_at(batch: int) -> float:
        work = make_work(setting._replace(batch=batch), options.backbone, options.peer)
        return build(train_step(work))[1]["memory"]

    return setting._replace(batch=largest_batch(memory_at, limit))


STARTUP = (  # R50-FPN on drawn pictures of 256 x 256, one step
    f"--config={CONFIGS / 'r50_fpn.py'}:tiny",
    "--mode=train",
    *(f"--config.{name}=1" for name in ("total_steps", "checkpoint_every", "evaluate_every")),
    *(f"--config.data.{name}=256" for name in ("train.image_size", "eval_short_side", "long_side")),
    *("--config.data.short_sides=(256,)", "--config.data.buckets=((256,256),)"),
    *("--config.data.loader=numpy", "--config.model.norm=frozen_batch"),
    *("--config.model.backbone=resnet50", "--config.model.backbone_width=64"),
    *("--config.model.fpn_channels=256", "--config.model.head_depth=4"),
)


def startup_seconds(folder: pathlib.Path) -> dict[str, list[float]]:
    """From a command to its first step or picture: with an empty cache of programs, then again."""
    picture, workdir, cache = folder / "picture.png", folder / "run", folder / "kept"
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(picture)
    commands = {
        "main": ("step 1/", [*STARTUP, f"--workdir={workdir}"]),
        "predict": (
            "predicting: 1/1",
            [f"--checkpoint={workdir}", f"--output={folder}", str(picture)],
        ),
    }
    seconds = {}
    for module, (line, arguments) in commands.items():
        cold = seconds_to_line(line, module, arguments, folder)
        if module == "main":  # what was compiled stays, the rest goes
            (workdir / "compilation_cache").rename(cache)
            shutil.rmtree(workdir)
            workdir.mkdir()
            cache.rename(workdir / "compilation_cache")
        seconds[module] = [cold, seconds_to_line(line, module, arguments, folder)]
    return seconds


def seconds_to_line(start: str, module: str, arguments: list[str], folder: pathlib.Path) -> float:
    """From the start of `python -m retinanet_jax.MODULE` to a line that begins with `start`."""
    line = [sys.executable, "-m", f"retinanet_jax.{module}", *arguments]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    began, told = time.perf_counter(), None
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for said in process.stdout or ():
            if told is None and said.startswith(start):
                told = time.perf_counter() - began
    if told is None or process.returncode:
        raise ValueError(f"{shlex.join(line)} ended with status {process.returncode}; run it.")
    return told


# ---- the command -----------------------------------------------------------------------------


def table_head(columns: Sequence[tuple]) -> str:
    titles = "".join(f"{title:>{int(form.split('.')[0])}}" for title, _, form, _ in columns)
    return f"{'':26}{'size':9} batch  {'dtype':8}{titles}"


def table_line(row: dict[str, Any], columns: Sequence[tuple]) -> str:
    line = f"{row['name']:26}{Setting(row['size'], row['batch'], row['dtype'])}"
    for _, field, form, factor in columns:
        blank = f"{'-':>{int(form.split('.')[0])}}"
        line += blank if row[field] is None else f"{row[field] * factor:{form}}"
    return f"{line}  {row['their_variant']}".rstrip()


def circumstances() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    cpu_info = pathlib.Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "command": shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "processor": [*names, platform.machine()][0],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
    }


def plan_rows(
    what: Sequence[str], settings: Sequence[Setting]
) -> list[tuple[str, Callable[[Work], Call], Setting]]:
    """What `measure` is to measure; inference is also of single pictures."""
    return [
        (name, make, setting._replace(batch=batch))
        for setting in settings
        for group in what
        for name, make in GROUPS.get(group, {}).items()
        for batch in sorted({setting.batch, 1} if group == "inference" else {setting.batch})
    ]


def default_batch(size: tuple[int, int], platform_name: str) -> int:
    index = sum(size[0] * size[1] > side**2 for side in (256, 512))
    return BATCHES.get(platform_name, BATCHES["other"])[index]


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) % 32 == int(width) % 32 == 0):
        raise ValueError(f"size {text!r} must be HEIGHTxWIDTH, multiples of 32; try 256x256.")
    return int(height), int(width)


def parse_names(option: str, text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        choose(option, name, dict.fromkeys(known))
    return names


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises ValueError for a size or name that is none."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--what", help=f"of {','.join(GROUPS)},startup; all, unless --memory")
    parser.add_argument("--sizes", default="256x256,512x512,800x1344", help="height x width")
    parser.add_argument("--dtypes", help="float32,bfloat16; on CPU float32 alone if not given")
    parser.add_argument("--batch", type=int, help="if not given, what suits the size and device")
    parser.add_argument("--repeat", type=int, default=7, help="rounds whose median is taken")
    parser.add_argument("--backbone", choices=list(ARCHITECTURES), default="resnet50")
    parser.add_argument("--peer", choices=["torchvision"], default="", help="measured beside ours")
    parser.add_argument("--memory", action="store_true", help="the largest batch to train with")
    parser.add_argument("--limit_gib", type=float, default=0, help="of --memory; the device's own")
    parser.add_argument("--cached", action="store_true", help="reuse what earlier runs compiled")
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
    parser.add_argument("--peak_of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    everything = [*GROUPS, "startup"]
    default = [] if options.memory else everything
    options.what = parse_names("--what", options.what, everything) if options.what else default
    options.sizes = [parse_size(size) for size in options.sizes.split(",")]
    on_cpu = jax.default_backend() == "cpu"
    dtypes = options.dtypes or ("float32" if on_cpu else "float32,bfloat16")
    options.dtypes = parse_names("--dtypes", dtypes, ("float32", "bfloat16"))
    return options


def run(options: argparse.Namespace) -> None:
    settings = [
        Setting(size, options.batch or default_batch(size, jax.default_backend()), dtype)
        for dtype in options.dtypes
        for size in options.sizes
    ]
    record = circumstances() | {"backbone": options.backbone, "repeat": options.repeat}
    print(f"{record['device']}; {record['processor']}, {record['cores']} cores", flush=True)

    def keep(kind: str, found: Any) -> None:
        record.setdefault(kind, []).append(found)
        if options.json:
            write_json(options.json, record)

    planned = plan_rows(options.what, settings)
    if planned:
        ceilings = measure_ceilings(options.dtypes, options.repeat)
        keep("ceilings", ceilings._asdict())
        products = (f"{x / 1e12:.3f} TFLOP/s in {name}" for name, x in ceilings.flops.items())
        print(f"at most {', '.join(products)} (matrix product), {ceilings.bytes / 1e9:.1f} GB/s")
        columns = COLUMNS + (PEER_COLUMNS if options.peer else ())
        print(table_head(columns), flush=True)
        began = time.monotonic()
        for done, (name, make, setting) in enumerate(planned):
            left = (time.monotonic() - began) / max(done, 1) * (len(planned) - done)
            told = f"[{done + 1}/{len(planned)}] {name} {setting}, {format_duration(left)} left"
            print(told, file=sys.stderr, flush=True)
            row = measure(name, make, setting, options, ceilings)
            print(table_line(row, columns), flush=True)
            keep("rows", row)
    for setting in settings if options.peer and "train" in options.what else ():
        peaks = compare_peaks(setting, options)
        ours, theirs = peaks["ours"] / 2**30, peaks["theirs"] / 2**30
        told = f"ours {ours:.2f} GiB, theirs {theirs:.2f} GiB, ours/theirs {peaks['ratio']:.3f}"
        print(f"{'peak memory of training':26}{setting}  {told}", flush=True)
        keep("training_peaks", peaks)
    for setting in settings if options.memory else ():
        largest = find_largest_batch(setting, options)
        print(f"{'largest batch to train':26}{largest}", flush=True)
        keep("largest_batches", largest._asdict())
    if "startup" in options.what:
        with tempfile.TemporaryDirectory() as folder:
            startup = startup_seconds(pathlib.Path(folder))
        for module, (cold, warm) in startup.items():
            print(f"startup of {module}: {cold:.1f} s cold, {warm:.1f} s warm", flush=True)
        keep("startup", startup)


def main() -> None:
    if any(argument.startswith("--peer") for argument in sys.argv):
        # Two libraries share the device: neither may take all its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with common.errors_in_one_line():
        options = parse_arguments(sys.argv[1:])
        if options.peak_of:
            setting = Setting(options.sizes[0], options.batch, options.dtypes[0])
            print(training_peak(options.peak_of, setting, options))
            return
        if options.cached:
            compilation.use_compilation_cache()
        else:
            jax.config.update("jax_enable_compilation_cache", False)
        run(options)


if __name__ == "__main__":
    main()
