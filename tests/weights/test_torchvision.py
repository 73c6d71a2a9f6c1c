"""torchvision's classifiers as our backbone: nothing is changed, and errors name the arrays."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from state_dicts import classifier_shapes

from retinanet_jax.models import ARCHITECTURES, ResNet
from retinanet_jax.weights import BACKBONE_SOURCES, resnet
from retinanet_jax.weights.torchvision import (
    TORCHVISION,
    TORCHVISION_INPUT,
    TORCHVISION_MODEL,
    is_unused,
)

backbone = BACKBONE_SOURCES["torchvision"]

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torchvision_features.json"
# One for each type of block: two 3x3, bottleneck, bottleneck with groups.
EXAMPLES = ("resnet18", "resnet50", "resnext50_32x4d")
# (parameters that torchvision publishes, those of the classifier among them, arrays)
PUBLISHED = {
    "resnet18": (11_689_512, 513_000, 122),
    "resnet34": (21_797_672, 513_000, 218),
    "resnet50": (25_557_032, 2_049_000, 320),
    "resnet101": (44_549_160, 2_049_000, 626),
    "resnet152": (60_192_808, 2_049_000, 932),
    "resnext50_32x4d": (25_028_904, 2_049_000, 320),
    "resnext101_32x8d": (88_791_336, 2_049_000, 626),
    "resnext101_64x4d": (83_455_272, 2_049_000, 626),
}


@pytest.fixture(scope="module")
def arrays(state_dict):
    return state_dict("resnet18")


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def features(variables, architecture, images):
    """Return C3, C4, C5 of the imported network."""
    model = ResNet(**ARCHITECTURES[architecture], norm="frozen_batch", **TORCHVISION_MODEL)
    return jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, images)


def images():
    return np.random.default_rng(3).standard_normal((1, 64, 96, 3), np.float32)


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_the_number_of_parameters_is_the_published_one(zeros, architecture):
    arrays = zeros(architecture)
    variables = backbone(arrays, architecture=architecture, norm="batch")
    parameters, classifier, count = PUBLISHED[architecture]
    assert len(arrays) == count
    assert size(variables["params"]) == parameters - classifier
    # Frozen, the norms' scales and biases are no parameters; nothing else changes.
    frozen = backbone(arrays, architecture=architecture, norm="frozen_batch")
    assert size(frozen) == size(variables)
    assert size(frozen["params"]) == sum(x.size for x in arrays.values() if x.ndim == 4)


@pytest.mark.parametrize(
    ("architecture", "norm"),
    [("resnet18", "frozen_batch"), *((architecture, "batch") for architecture in PUBLISHED)],
)
def test_the_variables_are_those_of_the_backbone(zeros, architecture, norm):
    model = ResNet(**ARCHITECTURES[architecture], norm=norm, **TORCHVISION_MODEL)
    inputs = jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    expected = jax.eval_shape(lambda: model.init(*inputs, train=False))
    variables = backbone(zeros(architecture), architecture=architecture, norm=norm)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), variables)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


@pytest.mark.parametrize(
    "architecture",
    [EXAMPLES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES[1:])],
)
def test_the_features_equal_torchvision_s_golden_ones(state_dict, architecture):
    golden = json.loads(GOLDEN.read_text())["features"][architecture]
    variables = backbone(state_dict(architecture), architecture=architecture, norm="frozen_batch")
    for level, ours in zip(
        ("C3", "C4", "C5"), features(variables, architecture, images()), strict=True
    ):
        ours, expected = np.asarray(ours, np.float64), golden[level]
        np.testing.assert_allclose(np.sqrt((ours**2).mean()), expected["rms"], rtol=1e-5)
        # float32 against float64; another epsilon or place of the stride is out by 1e-2 and more.
        values = ours.ravel()[7 :: ours.size // 8 + 1]
        np.testing.assert_allclose(values, expected["values"], atol=2e-5 * expected["rms"])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PUBLISHED)
def test_the_features_equal_those_of_torchvision_where_it_is_installed(state_dict, architecture):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision").models
    arrays = state_dict(architecture)
    model = models.get_model(architecture).eval()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()}, strict=True)
    x = torch.from_numpy(images().transpose(0, 3, 1, 2))
    expected = []
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
            expected.append(x.numpy().transpose(0, 2, 3, 1))
    variables = backbone(arrays, architecture=architecture, norm="frozen_batch")
    actual = features(variables, architecture, images())
    for ours, reference in zip(actual, expected[1:], strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())


def test_the_names_are_those_of_torchvision_s_detectors(test_data):
    with np.load(test_data / "parity" / "torchvision_v2_128x160.npz") as golden:
        listed = zip(golden["sd_names"], golden["sd_shapes"], strict=True)
        reference = {
            str(name): tuple(map(int, filter(None, str(shape).split("x"))))
            for name, shape in listed
            if name.startswith("backbone.body.")
        }
    ours = TORCHVISION.names("resnet50", "backbone.body.")
    assert set(ours.values()) == {name for name in reference if not is_unused(name)}
    without_prefix = {name.removeprefix("backbone.body."): x for name, x in reference.items()}
    classifier = {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    assert classifier_shapes("resnet50") == without_prefix | classifier


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
def test_reading_the_variables_by_the_same_names_returns_the_same_bits(arrays, norm):
    variables = backbone(arrays, architecture="resnet18", norm=norm)
    back = {}
    for (*modules, leaf), name in TORCHVISION.names("resnet18").items():
        holders = [variables[collection] for collection in ("params", "batch_stats")]
        for module in modules:
            holders = [holder.get(module, {}) for holder in holders]
        (value,) = [holder[leaf] for holder in holders if leaf in holder]
        back[name] = value.transpose(3, 2, 0, 1) if leaf == "kernel" else value
    assert back.keys() == {name for name in arrays if not is_unused(name)}
    for name, value in back.items():
        np.testing.assert_array_equal(value, arrays[name], strict=True)


def test_a_kernel_s_axes_are_transposed(arrays):
    kernel = backbone(arrays, architecture="resnet18", norm="batch")["params"]["stage3_block0"]
    reference = arrays["layer2.0.conv1.weight"]  # outputs, inputs, height, width
    assert kernel["conv1"]["kernel"][2, 0, 5, 7] == reference[7, 5, 2, 0]


def test_the_classifier_and_the_counters_are_optional(arrays):
    without = {name: x for name, x in arrays.items() if not is_unused(name)}
    assert len(arrays) - len(without) == 2 + 20
    backbone(without, architecture="resnet18", norm="batch")


@pytest.mark.parametrize("actual", PUBLISHED)
def test_the_error_for_another_architecture_names_it(zeros, actual):
    requested = "resnet101" if actual != "resnet101" else "resnet18"
    message = (
        rf"these are torchvision weights of {actual}, but config\.model\.backbone is {requested}; "
        f"change it to {actual}, or give another file"
    )
    with pytest.raises(ValueError, match=message):
        backbone(zeros(actual), architecture=requested, norm="batch")


def test_missing_unexpected_misshapen_and_infinite_arrays_are_listed_in_one_line(arrays):
    wrong = dict(arrays)
    del wrong["layer1.0.conv1.weight"], wrong["bn1.running_var"]
    wrong["layer5.0.conv1.weight"] = np.zeros(1)
    wrong["conv1.weight"] = wrong["conv1.weight"].transpose(2, 3, 1, 0)
    wrong["layer2.0.downsample.1.bias"] = np.full(128, np.inf)
    wrong["layer2.0.bn1.weight"] = np.array(["text"] * 128)
    with pytest.raises(ValueError, match="not torchvision weights of resnet18: ") as caught:
        backbone(wrong, architecture="resnet18", norm="frozen_batch")
    message = str(caught.value)
    assert "missing: bn1.running_var, layer1.0.conv1.weight;" in message
    assert "unexpected: layer5.0.conv1.weight;" in message
    assert "of another shape: conv1.weight;" in message
    assert "not finite: layer2.0.bn1.weight, layer2.0.downsample.1.bias;" in message
    assert "\n" not in message


def test_of_many_wrong_arrays_the_first_ones_are_listed():
    with pytest.raises(
        ValueError, match=r"missing: bn1\.bias, .*, and 95 more; unexpected: a; give"
    ):
        backbone({"a": np.zeros(1)}, architecture="resnet18", norm="batch")


def test_the_error_for_an_unknown_architecture_lists_the_known_ones(arrays):
    with pytest.raises(ValueError, match="backbone='resnet19' is unknown; use one of resnet18, "):
        backbone(arrays, architecture="resnet19", norm="batch")


def test_a_norm_without_running_statistics_is_an_error(arrays):
    with pytest.raises(ValueError, match="norm='group' has no batch norm statistics"):
        backbone(arrays, architecture="resnet18", norm="group")


def test_the_input_is_rgb_with_imagenet_s_statistics():
    assert TORCHVISION_INPUT["order"] == "rgb"
    np.testing.assert_allclose(np.divide(TORCHVISION_INPUT["mean"], 255), [0.485, 0.456, 0.406])
    np.testing.assert_allclose(np.divide(TORCHVISION_INPUT["std"], 255), [0.229, 0.224, 0.225])


def test_a_basic_block_s_first_stage_has_no_shortcut_convolution():
    shortcuts = [
        (layer.stage, layer.block) for layer in resnet.layers("resnet34") if not layer.index
    ]
    assert shortcuts == [(3, 0), (4, 0), (5, 0)]
