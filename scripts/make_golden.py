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
