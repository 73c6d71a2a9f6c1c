"""Write tests/golden: a few numbers of each array that torchvision computes with seeded weights.

Run: python scripts/make_golden.py
It requires torch and torchvision in addition to this project, e.g.
pip install torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu
The weights are those of tests/weights/state_dicts.py; the tests in that folder read the output.

With --parity=FOLDER, a folder with torchvision_v2_128x160.npz, gradients of its loss are written
too, in float64: in float32 they have 1% of noise, since batch norms over few pixels amplify it.
"""

import argparse
import functools
import json
import pathlib
import re
import runpy
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import resnet
from torchvision.models.detection import backbone_utils, retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

TESTS = pathlib.Path(__file__).parent.parent / "tests"
GOLDEN = TESTS / "golden"
WEIGHTS = "tests/weights/state_dicts.py"
STATE_DICTS = runpy.run_path(str(TESTS / "weights" / "state_dicts.py"))

# One architecture for each type of block.
ARCHITECTURES = ("resnet18", "resnet50", "resnext50_32x4d")
INPUT = "numpy.random.default_rng(3).standard_normal((1, 64, 96, 3), numpy.float32), channels last"
# Parameters of v2 of which float32 does not give the gradients to a thousandth.
NOISY = (
    "backbone.body.conv1.weight",
    "backbone.body.layer2.0.conv1.weight",
    "backbone.fpn.inner_blocks.0.0.weight",
)


OWN_IMAGE = "numpy.random.default_rng(5).integers(0, 256, (128, 160, 3), numpy.uint8), RGB"
# The fields of our config that describe detectors of one's own, and those in which each differs.
OWN_FIELDS = {
    "model.backbone": "resnet18",
    "model.fpn_channels": 64,
    "model.p6_from": "p5",
    "model.norm": "frozen_batch",
    "model.norm_epsilon": 1e-5,
    "anchors.base_scale": 4.0,
    "anchors.scales": [1.0, 2 ** (1 / 3), 2 ** (2 / 3)],
    "anchors.ratios": [0.5, 1.0, 2.0],
}
TRAINED_NORMS = {"model.norm": "batch"}
OWN_CASES = {
    "v1 for 2 classes": ("torchvision_v1", 3, {}),
    "v1 fine-tuned from COCO_V1": ("torchvision_v1", 3, {"model.norm_epsilon": 0.0}),
    "v2 for 2 classes": ("torchvision_v2", 3, TRAINED_NORMS | {"model.p6_from": "c5"}),
    "5 ratios": ("torchvision_v1", 1, {"anchors.ratios": [0.2, 0.5, 1.0, 2.0, 5.0]}),
    "2 scales of smaller anchors": (
        "torchvision_v2",
        1,
        TRAINED_NORMS | {"anchors.base_scale": 2.0, "anchors.scales": [1.0, 1.5]},
    ),
    "P6 from C5": ("torchvision_v1", 3, TRAINED_NORMS | {"model.p6_from": "c5"}),
    "ResNet-101": ("torchvision_v1", 3, TRAINED_NORMS | {"model.backbone": "resnet101"}),
    "COCO": ("torchvision_v2", 91, TRAINED_NORMS | {"model.p6_from": "c5"}),
}


def own_case(name: str) -> dict:
    """Return a case: the library's network, its number of outputs, and fields of our config."""
    source, outputs, changes = OWN_CASES[name]
    seed = list(OWN_CASES).index(name)
    return {"source": source, "outputs": outputs, "seed": seed, "fields": OWN_FIELDS | changes}


def versions() -> str:
    """Return the versions that the numbers are of."""
    numbers = [module.__version__.partition("+")[0] for module in (torchvision, torch)]
    return "torchvision=={} with torch=={}".format(*numbers)


def make_images() -> torch.Tensor:
    """Return the input INPUT in float64, channels first."""
    values = np.random.default_rng(3).standard_normal((1, 64, 96, 3), np.float32)
    return torch.from_numpy(values.transpose(0, 3, 1, 2)).double()


def sample(array: torch.Tensor, count: int) -> dict:
    """Return the root mean square of an array, and about `count` of its numbers."""
    flat = array.detach().numpy().ravel()
    values = [float(f"{value:.7g}") for value in flat[7 :: flat.size // count + 1]]
    return {"rms": float(f"{np.sqrt((flat**2).mean()):.9g}"), "values": values}


def with_weights(model: nn.Module, arrays: dict[str, np.ndarray]) -> nn.Module:
    """Load `arrays` strictly, and return the model in float64."""
    state = {name: torch.from_numpy(value) for name, value in arrays.items()}
    model.load_state_dict(state, strict=True)
    return model.double()


@torch.no_grad()
def features(architecture: str) -> dict:
    """Return samples of C3, C4, C5 of a classifier."""
    shapes = STATE_DICTS["classifier_shapes"](architecture)
    arrays = {
        name: STATE_DICTS["small_variance_value"](name, shape, 0) for name, shape in shapes.items()
    }
    model = with_weights(getattr(resnet, architecture)(), arrays).eval()
    x = model.maxpool(model.relu(model.bn1(model.conv1(make_images()))))
    maps = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        maps.append(x.permute(0, 2, 3, 1))
    return {name: sample(x, 8) for name, x in zip(("C3", "C4", "C5"), maps[1:], strict=True)}


def make_detector(version: str, architecture: str, **options: Any) -> nn.Module:
    """Return a detector as retinanet_resnet50_fpn (v1) or ..._v2 is built with published weights.

    All layers are trained. Options are those of torchvision's RetinaNet.
    """
    norm = FrozenBatchNorm2d if version == "v1" else nn.BatchNorm2d
    network = getattr(resnet, architecture)(norm_layer=norm)
    channels = network.fc.in_features  # of C5
    backbone = backbone_utils._resnet_fpn_extractor(
        network,
        5,
        returned_layers=[2, 3, 4],
        # P6 is computed from P5 if its number of channels is given, and from C5 otherwise.
        extra_blocks=LastLevelP6P7(256 if version == "v1" else channels, 256),
    )
    if version == "v1":
        return retinanet.RetinaNet(backbone, 91, **options)
    head = retinanet.RetinaNetHead(256, 9, 91, norm_layer=functools.partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return retinanet.RetinaNet(backbone, 91, head=head, **options)


@torch.no_grad()
def outputs(version: str) -> dict:
    """Return samples of logits and deltas, in torchvision's order of anchors and deltas."""
    shapes = STATE_DICTS["detector_shapes"](f"torchvision_{version}", "resnet18", 91)
    arrays = {
        name: STATE_DICTS["parity_value"](name, shape, 0, -5.0) for name, shape in shapes.items()
    }
    model = with_weights(make_detector(version, "resnet18"), arrays).eval()
    predictions = model.head(list(model.backbone(make_images()).values()))
    return {
        "logits": sample(predictions["cls_logits"], 40),
        "deltas": sample(predictions["bbox_regression"], 40),
    }


def v2_gradients(parity: pathlib.Path) -> dict:
    """Return samples of the gradients of both losses' sum, with all batch norms trained."""
    with np.load(parity) as data:
        image, boxes, labels = (
            torch.from_numpy(data[key]) for key in ("image", "gt_boxes", "gt_labels")
        )
        seed, cls_bias = int(data["meta_seed"]), float(data["meta_cls_bias"])
    shapes = STATE_DICTS["detector_shapes"]("torchvision_v2", "resnet50", 91)
    value = functools.partial(STATE_DICTS["parity_value"], seed=seed, cls_bias=cls_bias)
    model = make_detector("v2", "resnet50", _skip_resize=True)
    with_weights(model, {name: value(name, shape) for name, shape in shapes.items()})
    targets = [{"boxes": boxes[0].double(), "labels": labels[0]}]
    losses = model.train()(list(image.double()), targets)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    return {name: sample(parameters[name].grad, 40) for name in NOISY}


def build_own(case: dict) -> nn.Module:
    """Return a detector of one's own, of the parts that torchvision offers for that purpose."""
    fields, channels = case["fields"], case["fields"]["model.fpn_channels"]
    norm = {"batch": nn.BatchNorm2d, "frozen_batch": FrozenBatchNorm2d}[fields["model.norm"]]
    norm_layer = functools.partial(norm, eps=fields["model.norm_epsilon"])
    body = getattr(resnet, fields["model.backbone"])(norm_layer=norm_layer)
    c5 = body.fc.in_features
    backbone = backbone_utils.BackboneWithFPN(
        body,
        {"layer2": "0", "layer3": "1", "layer4": "2"},
        [c5 // 4, c5 // 2, c5],
        channels,
        LastLevelP6P7(c5 if fields["model.p6_from"] == "c5" else channels, channels),
    )
    side = 8 * fields["anchors.base_scale"]
    sizes = tuple(
        tuple(int(side * 2**level * scale) for scale in fields["anchors.scales"])
        for level in range(5)
    )
    anchors = AnchorGenerator(sizes, (tuple(fields["anchors.ratios"]),) * 5)
    head_norm = functools.partial(nn.GroupNorm, 32) if case["source"][-2:] == "v2" else None
    num_anchors = anchors.num_anchors_per_location()[0]
    head = retinanet.RetinaNetHead(channels, num_anchors, case["outputs"], head_norm)
    model = retinanet.RetinaNet(
        backbone,
        case["outputs"],
        min_size=128,
        max_size=160,
        anchor_generator=anchors,
        head=head,
        detections_per_img=40,
    )
    return with_weights(model, STATE_DICTS["own_detector"](case)).eval()


@torch.no_grad()
def own_detections(case: dict) -> dict:
    """Return the detections of a detector of one's own in the image of OWN_IMAGE, best first."""
    pixels = np.random.default_rng(5).integers(0, 256, (128, 160, 3), np.uint8)
    image = torch.from_numpy(pixels.transpose(2, 0, 1) / 255)
    (detections,) = build_own(case)([image])
    return {
        "boxes": [[round(x, 4) for x in box] for box in detections["boxes"].tolist()],
        "scores": [round(score, 7) for score in detections["scores"].tolist()],
        "labels": detections["labels"].tolist(),
    }


def write(name: str, content: dict) -> None:
    """Write a golden file with each list of numbers on one line, for readable differences."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), text)
    text = text.replace("[ ", "[").replace(" ]", "]")
    path = GOLDEN / name
    path.write_text(text + "\n")
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parity", type=pathlib.Path, help="folder of the parity data")
    parity = parser.parse_args().parity
    write(
        "torchvision_features.json",
        {
            "source": f"{versions()}, models.resnet in eval mode, in float64",
            "weights": f"{WEIGHTS}: small_variance_value(name, shape, seed=0)",
            "input": INPUT,
            "values": "of each map, channels last: its root mean square, and "
            "raveled[7 :: size // 8 + 1]",
            "features": {name: features(name) for name in ARCHITECTURES},
        },
    )
    write(
        "torchvision_detectors.json",
        {
            "source": f"{versions()}, RetinaNet on resnet18 in eval mode, in float64",
            "weights": f"{WEIGHTS}: parity_value(name, shape, seed=0, cls_bias=-5)",
            "input": f"{INPUT}; as the backbone reads it",
            "values": "of (1, anchors, 91 or 4): root mean square, raveled[7 :: size // 40 + 1]",
            "outputs": {f"torchvision_{version}": outputs(version) for version in ("v1", "v2")},
        },
    )
    cases = {name: own_case(name) for name in OWN_CASES}
    write(
        "torchvision_own_detectors.json",
        {
            "source": f"{versions()}, RetinaNet of its parts in eval mode, in float64",
            "weights": f"{WEIGHTS}: own_detector(case)",
            "input": OWN_IMAGE,
            "values": "the best 40 detections; xyxy in pixels",
            "cases": {name: {**case, **own_detections(case)} for name, case in cases.items()},
        },
    )
    if parity:
        write(
            "torchvision_v2_gradients.json",
            {
                "source": f"{versions()}, retinanet_resnet50_fpn_v2 in training, in float64",
                "weights": f"{WEIGHTS}: parity_value, as the parity data have them",
                "input": "image, gt_boxes, gt_labels of parity/torchvision_v2_128x160.npz",
                "values": "of each: root mean square, and raveled[7 :: size // 40 + 1]",
                "gradients": v2_gradients(parity / "torchvision_v2_128x160.npz"),
            },
        )


if __name__ == "__main__":
    main()
