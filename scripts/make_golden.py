"""Write tests/golden: what torchvision computes on seeded weights, a few numbers of each array.

Run: python scripts/make_golden.py
It needs torch and torchvision beside this project, e.g.
pip install torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu
Weights follow from tests/weights/conftest.py, whose tests read what this writes.

With --parity=FOLDER, where the folder has torchvision_v2_128x160.npz, the gradients of its loss are
written too, in float64: in float32 batch norms over few pixels leave them 1% of noise.
"""

import argparse
import functools
import json
import pathlib
import runpy

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import detection, resnet
from torchvision.models.detection import backbone_utils, retinanet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

TESTS = pathlib.Path(__file__).parent.parent / "tests"
GOLDEN = TESTS / "golden"
RECIPE = runpy.run_path(str(TESTS / "weights" / "conftest.py"))

# One architecture for each kind of block.
ARCHITECTURES = ("resnet18", "resnet50", "resnext50_32x4d")
INPUT = "numpy.random.default_rng(3).standard_normal((1, 64, 96, 3), numpy.float32), channels last"
# Of v2's loss: gradients that float32 does not hold to a thousandth.
NOISY = (
    "backbone.body.conv1.weight",
    "backbone.body.layer2.0.conv1.weight",
    "backbone.fpn.inner_blocks.0.0.weight",
)


def versions() -> str:
    numbers = [module.__version__.partition("+")[0] for module in (torchvision, torch)]
    return "torchvision=={} with torch=={}".format(*numbers)


def pictures() -> torch.Tensor:
    values = np.random.default_rng(3).standard_normal((1, 64, 96, 3), np.float32)
    return torch.from_numpy(values.transpose(0, 3, 1, 2)).double()


def sample(values: torch.Tensor, count: int) -> dict:
    """The root mean square of an array, and about `count` of its numbers."""
    flat = values.detach().numpy().ravel()
    picked = [float(f"{value:.7g}") for value in flat[7 :: flat.size // count + 1]]
    return {"rms": float(f"{np.sqrt((flat**2).mean()):.9g}"), "values": picked}


def with_weights(model: nn.Module, arrays: dict[str, np.ndarray]) -> nn.Module:
    """The model in float64, strictly with `arrays`."""
    state = {name: torch.from_numpy(value) for name, value in arrays.items()}
    model.load_state_dict(state, strict=True)
    return model.double()


@torch.no_grad()
def features(architecture: str) -> dict:
    """C3, C4, C5 of a classifier."""
    shapes = RECIPE["state_dict_shapes"](architecture)
    arrays = {name: RECIPE["seeded"](name, shape, 0) for name, shape in shapes.items()}
    model = with_weights(getattr(resnet, architecture)(), arrays).eval()
    x = model.maxpool(model.relu(model.bn1(model.conv1(pictures()))))
    maps = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        maps.append(x.permute(0, 2, 3, 1))
    return {name: sample(x, 8) for name, x in zip(("C3", "C4", "C5"), maps[1:], strict=True)}


def small_detector(version: str) -> nn.Module:
    """v1 or v2 on a ResNet-18, 91 outputs, as retinanet_resnet50_fpn(_v2) are on a ResNet-50."""
    norm = FrozenBatchNorm2d if version == "v1" else nn.BatchNorm2d
    backbone = backbone_utils._resnet_fpn_extractor(
        resnet.resnet18(norm_layer=norm),
        5,
        returned_layers=[2, 3, 4],
        # P6 is made of P5 where the channels are those of the pyramid.
        extra_blocks=LastLevelP6P7(256 if version == "v1" else 512, 256),
    )
    if version == "v1":
        return retinanet.RetinaNet(backbone, 91)
    head = retinanet.RetinaNetHead(256, 9, 91, norm_layer=functools.partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return retinanet.RetinaNet(backbone, 91, head=head)


@torch.no_grad()
def outputs(version: str) -> dict:
    """Logits and deltas of a small detector, in torchvision's order of anchors and deltas."""
    shapes = RECIPE["detector_shapes"](f"torchvision_{version}", "resnet18", 91)
    arrays = {name: RECIPE["parity_value"](name, shape, 0, -5.0) for name, shape in shapes.items()}
    model = with_weights(small_detector(version), arrays).eval()
    found = model.head(list(model.backbone(pictures()).values()))
    return {
        "logits": sample(found["cls_logits"], 40),
        "deltas": sample(found["bbox_regression"], 40),
    }


def v2_gradients(parity: pathlib.Path) -> dict:
    """Of both losses' sum on the parity data's picture, with trained batch norms everywhere."""
    with np.load(parity) as data:
        image, boxes, labels = (
            torch.from_numpy(data[key]) for key in ("image", "gt_boxes", "gt_labels")
        )
        seed, cls_bias = int(data["meta_seed"]), float(data["meta_cls_bias"])
    shapes = RECIPE["detector_shapes"]("torchvision_v2", "resnet50", 91)
    value = functools.partial(RECIPE["parity_value"], seed=seed, cls_bias=cls_bias)
    model = detection.retinanet_resnet50_fpn_v2(
        weights=None, weights_backbone=None, _skip_resize=True
    )
    with_weights(model, {name: value(name, shape) for name, shape in shapes.items()})
    targets = [{"boxes": boxes[0].double(), "labels": labels[0]}]
    losses = model.train()(list(image.double()), targets)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    return {name: sample(parameters[name].grad, 40) for name in NOISY}


def write(name: str, content: dict) -> None:
    """One number list a line, so that a change shows as what it is."""
    text = json.dumps(content, indent=1)
    lines, held = [], None
    for line in text.splitlines():
        if held is not None:
            held += " " + line.strip()
            if line.strip().startswith("]"):
                lines.append(held.replace("[ ", "[").replace(" ]", "]"))
                held = None
        elif line.endswith("["):
            held = line
        else:
            lines.append(line)
    path = GOLDEN / name
    path.write_text("\n".join(lines) + "\n")
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parity", type=pathlib.Path, help="folder of the parity data")
    parity = parser.parse_args().parity
    write(
        "torchvision_features.json",
        {
            "source": f"{versions()}, models.resnet in eval mode, in float64",
            "weights": "tests/weights/conftest.py: seeded(name, shape, seed=0)",
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
            "weights": "tests/weights/conftest.py: parity_value(name, shape, seed=0, cls_bias=-5)",
            "input": f"{INPUT}; as the backbone reads it",
            "values": "of (1, anchors, 91 or 4): root mean square, raveled[7 :: size // 40 + 1]",
            "outputs": {f"torchvision_{version}": outputs(version) for version in ("v1", "v2")},
        },
    )
    if parity:
        write(
            "torchvision_v2_gradients.json",
            {
                "source": f"{versions()}, retinanet_resnet50_fpn_v2 in training, in float64",
                "weights": "tests/weights/conftest.py: parity_value, as the parity data have them",
                "input": "image, gt_boxes, gt_labels of parity/torchvision_v2_128x160.npz",
                "values": "of each: root mean square, and raveled[7 :: size // 40 + 1]",
                "gradients": v2_gradients(parity / "torchvision_v2_128x160.npz"),
            },
        )


if __name__ == "__main__":
    main()
