"""torchvision's RetinaNet on the inputs of a workload, as the reference to compare with.

Each `make_*` function returns a function that does the same as the call of that name in
`workloads`. torch and torchvision are imported only inside functions.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from retinanet_jax import core, weights
from retinanet_jax.data.batch import Batch
from retinanet_jax.weights import detectors
from scripts.benchmark.timing import shortest_time
from scripts.benchmark.workloads import Workload, random_outputs, with_all_boxes


class Reference(NamedTuple):
    """torchvision's detector with the weights of a workload."""

    workload: Workload
    device: str
    model: Any
    memory_format: Any
    mixed_precision: Callable[[], Any]  # returns a context manager
    no_gradient: Callable[[], Any]  # returns a context manager


class Variant(NamedTuple):
    """Settings of torch; the fastest variant is compared with."""

    channels_last: bool
    compiled: bool


def prepare_torch() -> str:
    """Set torch's best settings for this machine and return its name of the device."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_compiled_operators() -> bool:
    """Return whether torchvision's compiled operators, NMS among them, can be loaded."""
    import torch
    import torchvision  # noqa: F401

    return any("torchvision/_C" in path for path in torch.ops.loaded_libraries)


def make_reference(workload: Workload, variant: Variant) -> Reference:
    """Return torchvision's detector with frozen norms and the weights of the workload."""
    device = prepare_torch()
    import torch
    from torchvision.models.detection import backbone_utils, retinanet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    architecture = workload.config.model.backbone
    dtype = getattr(torch, workload.setting.dtype)
    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name=architecture,
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model: Any = retinanet.RetinaNet(backbone, workload.num_classes, _skip_resize=True)
    library_format = weights.DETECTOR_FORMATS["torchvision_v1"]
    arrays = detectors.to_arrays(workload.variables, library_format, workload.config)
    model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
    memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format
    model.to(device).to(memory_format=memory_format)
    if variant.compiled:
        # torch gives up on a method after a few compilations, and all models have the same method.
        torch.compiler.reset()
        model.backbone.forward = torch.compile(model.backbone.forward)
        model.head.forward = torch.compile(model.head.forward)
    mixed = functools.partial(torch.autocast, device, dtype, enabled=dtype != torch.float32)
    no_gradient = torch.no_grad if variant.compiled else torch.inference_mode
    return Reference(workload, device, model, memory_format, mixed, no_gradient)


def image_tensors(reference: Reference) -> list:
    """Return the batch's images as the model takes them, from the host's bytes."""
    import torch

    images = torch.tensor(reference.workload.batch.images).to(reference.device)
    return list(images.permute(0, 3, 1, 2).to(torch.float32).div(255))


def ground_truth(reference: Reference, batch: Batch) -> list[dict]:
    """Return the boxes and labels of each image as torchvision's model takes them."""
    import torch

    boxes, classes = core.yxyx_to_xyxy(batch.boxes), batch.classes.astype(np.int64)
    tensor = functools.partial(torch.tensor, device=reference.device)
    return [
        {"boxes": tensor(boxes[example][mask]), "labels": tensor(classes[example][mask])}
        for example, mask in enumerate(batch.mask)
    ]


def anchor_tensors(reference: Reference) -> list:
    """Return one tensor of anchors per image."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    size, batch = reference.workload.setting.size, reference.workload.setting.batch
    maps = [torch.zeros(1, 1, *(-(-side // 2**level) for side in size)) for level in range(3, 8)]
    images = ImageList(torch.zeros(batch, 3, *size), [size] * batch)
    anchors = reference.model.anchor_generator(images, maps)
    return [tensor.to(reference.device) for tensor in anchors]


def output_tensors(reference: Reference, regime: str) -> dict[str, list]:
    """Return random raw outputs, one tensor per level; `regime` is a key of LOGITS."""
    import torch

    def tensor(x: jax.Array):
        values = torch.tensor(np.asarray(x, np.float32))
        return values.to(reference.device, getattr(torch, reference.workload.setting.dtype))

    logits, deltas = random_outputs(reference.workload, regime)
    return {"cls_logits": [*map(tensor, logits)], "bbox_regression": [*map(tensor, deltas)]}


def make_training_step(reference: Reference) -> Callable[[], Any]:
    """Return a function that does a training step."""
    import torch

    images = image_tensors(reference)
    truth = ground_truth(reference, reference.workload.batch)
    params = [p for p in reference.model.parameters() if p.requires_grad]
    fused = reference.device == "cuda"
    optimizer = torch.optim.SGD(params, lr=1e-5, momentum=0.9, weight_decay=1e-4, fused=fused)

    def run():
        optimizer.zero_grad(set_to_none=True)
        with reference.mixed_precision():
            total = torch.stack([*reference.model(images, truth).values()]).sum()
        total.backward()
        optimizer.step()
        return total.detach()

    return run


def make_inference(reference: Reference) -> Callable[[], Any]:
    """Return a function that detects objects in the images, from host memory to host memory."""
    reference.model.eval()

    def run():
        with reference.no_gradient(), reference.mixed_precision():
            results = reference.model(image_tensors(reference))
            return [x.cpu() for result in results for x in result.values()]

    return run


def make_forward(reference: Reference) -> Callable[[], Any]:
    """Return a function that computes the forward pass of normalized images."""
    images = reference.model.transform(image_tensors(reference))[0].tensors
    images = images.to(memory_format=reference.memory_format)

    def run():
        with reference.no_gradient(), reference.mixed_precision():
            return reference.model.head(list(reference.model.backbone(images).values()))

    return run


def make_matching(reference: Reference) -> Callable[[], Any]:
    """Return a function that matches all anchors with the ground truth."""
    from torchvision.ops import box_iou

    truth = ground_truth(reference, with_all_boxes(reference.workload.batch))
    boxes = [target["boxes"] for target in truth]
    pairs = list(zip(boxes, anchor_tensors(reference), strict=True))
    return lambda: [reference.model.proposal_matcher(box_iou(*pair)) for pair in pairs]


def make_loss(reference: Reference) -> Callable[[], Any]:
    """Return a function that computes the loss and its gradient from random outputs."""
    import torch

    levels = output_tensors(reference, "trained")
    outputs = {name: torch.cat(x, dim=1).requires_grad_() for name, x in levels.items()}
    truth = ground_truth(reference, with_all_boxes(reference.workload.batch))
    anchors = anchor_tensors(reference)

    def run():
        for output in outputs.values():
            output.grad = None
        with reference.mixed_precision():
            losses = reference.model.compute_loss(truth, outputs, anchors)
            total = torch.stack([*losses.values()]).sum()
        total.backward()
        return total.detach()

    return run


def make_postprocessing(reference: Reference, regime: str) -> Callable[[], Any]:
    """Return a function from random outputs to detections; `regime` is a key of LOGITS."""
    setting = reference.workload.setting
    outputs, sizes = output_tensors(reference, regime), [setting.size] * setting.batch
    lengths = [level.shape[1] for level in outputs["cls_logits"]]
    anchors = [list(tensor.split(lengths)) for tensor in anchor_tensors(reference)]

    def run():
        # torchvision's NMS takes bfloat16 only under autocast.
        with reference.no_gradient(), reference.mixed_precision():
            return reference.model.postprocess_detections(outputs, anchors, sizes)

    return run


FUNCTIONS: dict[str, Callable[[Reference], Callable[[], Any]]] = {  # by the name of a row
    "training step": make_training_step,
    "inference": make_inference,
    "forward": make_forward,
    "matching": make_matching,
    "matching, loss, gradient": make_loss,
    "post-processing, trained": functools.partial(make_postprocessing, regime="trained"),
    "post-processing, dense": functools.partial(make_postprocessing, regime="dense"),
}
REQUIRE_NMS = ("inference", "post-processing, trained", "post-processing, dense")
VARIANTS = {  # by torch's name of the device
    "cpu": {
        "contiguous": Variant(channels_last=False, compiled=False),
        "channels_last": Variant(channels_last=True, compiled=False),
    },
    "cuda": {
        "channels_last": Variant(channels_last=True, compiled=False),
        "compiled": Variant(channels_last=True, compiled=True),
    },
}


def fastest_variant(name: str, workload: Workload) -> tuple[str, Callable[[], Any] | None]:
    """Return the fastest variant's name and its function, warmed up, for a row of the table.

    Without a function the name is "not available" if torchvision's NMS cannot be loaded, and empty
    if the row has no counterpart in torchvision.
    """
    device = prepare_torch()
    if name not in FUNCTIONS:
        return "", None
    if name in REQUIRE_NMS and not has_compiled_operators():
        return "not available", None
    timed = []
    for label, variant in VARIANTS[device].items():
        run = synchronized(FUNCTIONS[name](make_reference(workload, variant)), device)
        timed.append((shortest_time(run, 2), label, run))
    _, label, run = min(timed, key=lambda entry: entry[0])
    return label, run


def synchronized(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    """Return a function that also waits until the device is done."""
    if device == "cpu":
        return run
    import torch

    return lambda: (run(), torch.cuda.synchronize())
