"""ResNets have the published number of parameters, the configured stride and frozen stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from retinanet_jax.models import ARCHITECTURES, ResNet, is_frozen
from retinanet_jax.models.resnet import Block

KEY = jax.random.key(0)

# torchvision's totals (timm's for resnext101_32x4d) without the classifier: 1000 x 512 or 2048, and
# its bias.
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
    "resnext50_32x4d": 25_028_904 - 2_049_000,
    "resnext101_32x4d": 44_177_704 - 2_049_000,
    "resnext101_32x8d": 88_791_336 - 2_049_000,
    "resnext101_64x4d": 83_455_272 - 2_049_000,
}
TINY = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False, "width": 8, "norm": "batch"}


def shapes(model, size=(64, 96)):
    """Return the shapes of (C3, C4, C5) and of the variables, without computing."""
    images = jnp.zeros((2, *size, 3))
    return jax.eval_shape(lambda: model.init_with_output(KEY, images, train=False))


def test_every_architecture_has_a_published_size():
    assert set(ARCHITECTURES) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name):
    _, variables = shapes(ResNet(**ARCHITECTURES[name], norm="batch"))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "widths"), [("resnet18", (16, 32, 64)), ("resnet50", (64, 128, 256))]
)
def test_maps_have_strides_8_16_32(name, widths):
    maps, _ = shapes(ResNet(**ARCHITECTURES[name], width=8))
    sizes = [(8, 12), (4, 6), (2, 3)]
    assert [x.shape for x in maps] == [(2, *s, w) for s, w in zip(sizes, widths, strict=True)]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_with_frozen_batch_norm_the_only_parameters_are_kernels(bottleneck):
    model = ResNet(**TINY | {"norm": "frozen_batch", "bottleneck": bottleneck})
    _, variables = shapes(model)
    names = {path[-1] for path in traverse_util.flatten_dict(variables["params"])}
    assert names == {"kernel"}


@pytest.mark.parametrize("norm", ["frozen_batch", "batch", "group"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_variables(norm):
    maps, variables = shapes(ResNet(**TINY | {"norm": norm}, dtype=jnp.bfloat16))
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("norm", ["frozen_batch", "batch", "group"])
def test_float64_variables_compute_in_float64(norm):
    model = ResNet(**TINY | {"norm": norm})
    _, variables = shapes(model)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), variables)
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float64)
        maps, updated = jax.eval_shape(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), double, images
        )
    assert {x.dtype for x in jax.tree.leaves((maps, updated))} == {jnp.dtype("float64")}


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_the_stride_is_in_the_configured_convolution(stride_in_1x1):
    block = Block(
        features=16,
        inner=4,
        stride=2,
        bottleneck=True,
        groups=1,
        stride_in_1x1=stride_in_1x1,
        norm="frozen_batch",
        norm_epsilon=1e-5,
        dtype=None,
    )
    x = jax.random.normal(KEY, (1, 8, 8, 4))
    odd_rows_changed = x.at[:, 1::2].add(1.0)  # a strided 1x1 convolution skips odd rows
    y, variables = block.init_with_output(KEY, x, train=False)
    assert y.shape == (1, 4, 4, 16)
    assert np.array_equal(y, block.apply(variables, odd_rows_changed, train=False)) == stride_in_1x1


def test_a_new_block_with_trained_norm_returns_relu_of_its_input():
    block = Block(
        features=4,
        inner=4,
        stride=1,
        bottleneck=False,
        groups=1,
        stride_in_1x1=False,
        norm="batch",
        norm_epsilon=1e-5,
        dtype=None,
    )
    x = jax.random.normal(KEY, (1, 4, 4, 4))
    y, _ = block.init_with_output(KEY, x, train=False)
    np.testing.assert_array_equal(y, jax.nn.relu(x))


def test_kernels_start_he_normal():
    block = Block(
        features=64,
        inner=64,
        stride=1,
        bottleneck=False,
        groups=1,
        stride_in_1x1=False,
        norm="batch",
        norm_epsilon=1e-5,
        dtype=None,
    )
    kernel = block.init(KEY, jnp.ones((1, 4, 4, 32)), train=False)["params"]["conv1"]["kernel"]
    # 18,432 samples: the standard error of their deviation is 0.5 %. The distribution is not
    # truncated: some samples lie beyond 3 sigma.
    sigma = (2 / (3 * 3 * 64)) ** 0.5
    np.testing.assert_allclose(np.std(kernel), sigma, rtol=0.02)
    assert np.abs(kernel).max() > 3 * sigma


@pytest.mark.parametrize("frozen_stages", [0, 2])
def test_frozen_stages_have_no_gradient_and_constant_statistics(frozen_stages):
    model = ResNet(**TINY, frozen_stages=frozen_stages)
    images = jax.random.normal(KEY, (2, 64, 64, 3))
    params, stats = training_variables(model, images)

    @jax.jit
    def gradient(params):
        def objective(params):
            maps, updated = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return sum(jnp.sum(jnp.sin(x)) for x in maps), updated["batch_stats"]

        return jax.grad(objective, has_aux=True)(params)

    gradients, updated = gradient(params)
    for path, value in traverse_util.flatten_dict(gradients).items():
        assert np.any(value) != is_frozen(("backbone", *path), frozen_stages), path
    changed = jax.tree.map(lambda a, b: np.any(a != b), updated, stats)
    for path, value in traverse_util.flatten_dict(changed).items():
        assert value != is_frozen(("backbone", *path), frozen_stages), path


def training_variables(model, images):
    """Return random variables without zero scales, which would hide the gradients below them."""
    _, variables = jax.eval_shape(lambda: model.init_with_output(KEY, images, train=False))
    rng = np.random.default_rng(0)
    filled = jax.tree.map(lambda x: rng.uniform(0.1, 0.3, x.shape).astype(x.dtype), variables)
    # Kernels of both signs: otherwise all activations after ReLU are alike.
    params = jax.tree.map(lambda x: x - 0.2 if x.ndim == 4 else x, filled["params"])
    return params, filled["batch_stats"]


def test_is_frozen_counts_from_the_stem():
    paths = [
        ("backbone", name, "kernel") for name in ("stem_conv", "stage2_block0", "stage5_block1")
    ]
    frozen = [[is_frozen(path, n) for path in paths] for n in (0, 1, 2, 5)]
    assert frozen == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert not is_frozen(("fpn", "lateral3", "kernel"), 5)


def test_a_width_that_the_groups_do_not_divide_is_refused():
    with pytest.raises(
        ValueError, match=r"width=8 .* 16 channels, which groups=32 does not divide"
    ):
        shapes(ResNet(**ARCHITECTURES["resnext50_32x4d"], width=8))
