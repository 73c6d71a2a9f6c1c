"""With masked padding the network's outputs depend only on the image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_options import REQUIRED

from retinanet_jax.models import RetinaNet, level_masks
from retinanet_jax.models.resnet import ARCHITECTURES

IMAGE_SIZE = (70, 45)  # no multiple of a stride
CANVASES = ((96, 64), (128, 160))
NETWORKS = {
    "frozen batch norm, P6 from C5": {},
    "P6 from P5": {"p6_from": "p5"},
    "group norm": {"norm": "group", "head_norm": "group"},
    "batch norm": {"norm": "batch", "head_norm": "group"},
    "bottlenecks": {"backbone": "bottlenecks", "head_norm": "group"},
    "stride in 1x1": {"backbone": "bottlenecks", "stride_in_1x1": True},
    "ResNeXt": {"backbone": "resnext", "backbone_width": 64, "norm": "batch"},
    "up to P5": {"max_level": 5, "head_norm": "group"},
}


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    stages = {"stage_sizes": (1, 1, 1, 1)}
    small = {
        "blocks": stages | {"bottleneck": False},
        "bottlenecks": stages | {"bottleneck": True},
        "resnext": stages | {"bottleneck": True, "groups": 32, "width_per_group": 4},
    }
    for name, architecture in small.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture)


def network(**options) -> RetinaNet:
    defaults = REQUIRED | {
        "num_classes": 2,
        "num_anchors": 3,
        "padding": "masked",
        "backbone": "blocks",
        "backbone_width": 8,
        "fpn_channels": 64,
        "head_depth": 2,
    }
    return RetinaNet(**defaults | options)


def random_variables(model: RetinaNet, dtype) -> dict:
    """Return random variables with biases and statistics that make the padding nonzero."""
    rng = np.random.default_rng(0)
    image = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    def random(path, spec):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, spec.shape), dtype)
        fan_in = max(1, np.prod(spec.shape[:-1]))
        return jnp.asarray(rng.normal(size=spec.shape) * 1.4 / np.sqrt(fan_in), dtype)

    return jax.tree_util.tree_map_with_path(random, shapes)


def random_image(dtype, size=IMAGE_SIZE, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*size, 3)).astype(dtype)


def padded(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    height, width, _ = image.shape
    return np.pad(image, ((0, canvas[0] - height), (0, canvas[1] - width), (0, 0)))


def valid_outputs(outputs, canvas: tuple[int, int], size: tuple[int, int], example=0) -> list:
    """Return the outputs of an example at the valid cells of each level."""
    valid = []
    for level, (logits, deltas) in enumerate(zip(*outputs, strict=True), start=3):
        for values in (logits, deltas):
            height, width = (-(-side // 2**level) for side in canvas)
            rows, columns = (-(-side // 2**level) for side in size)
            cells = np.asarray(values[example]).reshape(height, width, -1)
            valid.append(cells[:rows, :columns])
    return valid


@functools.lru_cache
def apply(model: RetinaNet, train: bool):
    return jax.jit(
        lambda variables, images, sizes: model.apply(
            variables, images, train=train, sizes=sizes, mutable=["batch_stats"]
        )
    )


def assert_equal_outputs(options, dtype, tolerance):
    model = network(**options)
    variables, image = random_variables(model, dtype), random_image(dtype)
    unpadded, _ = apply(model, train=False)(variables, image[None], None)
    expected = valid_outputs(unpadded, IMAGE_SIZE, IMAGE_SIZE)
    scale = max(np.abs(values).max() for values in expected)
    assert scale > 0.1
    other = random_image(dtype, size=(50, 60), seed=2)
    for canvas in CANVASES:
        images = np.stack([padded(image, canvas), padded(other, canvas)])
        sizes = np.array([IMAGE_SIZE, other.shape[:2]], np.float32)
        outputs, _ = apply(model, train=False)(variables, images, sizes)
        for actual, values in zip(
            valid_outputs(outputs, canvas, IMAGE_SIZE), expected, strict=True
        ):
            np.testing.assert_allclose(actual, values, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_image_without_padding_in_float64(name):
    with jax.enable_x64(True):
        assert_equal_outputs(NETWORKS[name], np.float64, 1e-10)


@pytest.mark.parametrize("name", ["P6 from P5", "group norm"])
def test_outputs_are_those_of_the_image_without_padding_in_float32(name):
    assert_equal_outputs(NETWORKS[name], np.float32, 1e-4)


def test_plain_padding_changes_outputs():
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equal_outputs({"padding": "plain", "head_norm": "group"}, np.float32, 1e-4)


def test_batch_norms_take_statistics_of_real_pixels():
    """Neither the canvas nor a filler changes outputs or running statistics in training."""
    with jax.enable_x64(True):
        model = network(norm="batch", head_norm="group")
        variables = random_variables(model, np.float64)
        images = [random_image(np.float64), random_image(np.float64, (50, 60), seed=2)]
        sizes = np.array([image.shape[:2] for image in images], np.float64)
        results = []
        for canvas in CANVASES:
            batch = np.stack([padded(image, canvas) for image in images])
            results.append((canvas, *apply(model, train=True)(variables, batch, sizes)))
        with_filler = np.concatenate([batch, 7 * batch[-1:]])
        sizes = np.concatenate([sizes, np.zeros((1, 2))])
        results.append((canvas, *apply(model, train=True)(variables, with_filler, sizes)))
    _, _, expected_statistics = results[0]
    assert not np.allclose(
        jax.tree.leaves(expected_statistics)[0], jax.tree.leaves(variables["batch_stats"])[0]
    )
    for canvas, outputs, statistics in results[1:]:
        for example, image in enumerate(images):
            args = image.shape[:2], example
            expected = valid_outputs(results[0][1], CANVASES[0], *args)
            for actual, values in zip(valid_outputs(outputs, canvas, *args), expected, strict=True):
                np.testing.assert_allclose(actual, values, rtol=0, atol=1e-10)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10),
            statistics,
            expected_statistics,
        )


def test_a_map_of_stride_s_has_size_over_s_valid_rows_and_columns_rounded_up():
    sizes = np.array([[65, 32], [0, 0]])
    masks = jax.device_get(jax.jit(lambda sizes: level_masks(sizes, (96, 64), 7))(sizes))
    assert set(masks) == {
        *((96, 64), (48, 32), (24, 16), (12, 8), (6, 4), (3, 2), (2, 1), (1, 1)),
    }
    counts = {size: (int(m[0].any(1).sum()), int(m[0].any(0).sum())) for size, m in masks.items()}
    assert counts[96, 64] == (65, 32)
    assert counts[48, 32] == (33, 16)
    assert counts[12, 8] == (9, 4)
    assert counts[3, 2] == (3, 1)
    assert counts[1, 1] == (1, 1)
    assert not any(mask[1].any() for mask in masks.values())


def test_an_unknown_padding_is_an_error():
    with pytest.raises(ValueError, match="padding='reflect' is unknown"):
        jax.eval_shape(
            lambda: network(padding="reflect").init(
                jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False
            )
        )
