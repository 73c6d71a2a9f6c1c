"""With masked padding a batch's loss, gradient and detections depend only on its images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batches import NUM_CLASSES, make_batch

from retinanet_jax import modeling
from retinanet_jax.training.objective import batch_loss

SIZES = np.float32([[60, 50], [41, 64], [64, 33]])
CANVASES = ((64, 64), (96, 128))


def on_canvas(canvas: tuple[int, int], num_fillers: int = 0):
    """Return three images of different sizes, padded to a canvas, and then some fillers."""
    batch = make_batch(3)
    colors = np.tile(np.float32([1, 1, 1, 0]), (3, 1))
    batch = batch._replace(sizes=SIZES, colors=colors, crowd_mask=np.zeros((3, 1), bool))
    height, width = batch.images.shape[1:3]
    padding = ((0, 0), (0, canvas[0] - height), (0, canvas[1] - width), (0, 0))
    batch = batch._replace(images=np.pad(batch.images, padding))
    for example, (height, width) in enumerate(SIZES.astype(int)):
        batch.images[example, height:] = 0
        batch.images[example, :, width:] = 0
        limits = np.tile([height, width], 2)
        batch.boxes[example] = np.minimum(batch.boxes[example], limits)
    fillers = [jax.tree.map(lambda x: x[-1:], batch)._replace(weights=np.zeros(1, np.float32))]
    parts = [batch, *fillers * num_fillers]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


@pytest.fixture
def masked_config(toy_config):
    toy_config.dtype = "float64"
    toy_config.model.update(head_norm="group", norm="batch", frozen_stages=0, head_depth=2)
    toy_config.anchors.scales = (1.0,)
    toy_config.detections.score_threshold = 0.3
    return toy_config


def random_variables(config):
    """Return float64 variables, sampled here because compiling the initialization takes longer."""
    rng = np.random.default_rng(1)
    model = modeling.build_model(config, NUM_CLASSES)
    image = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    return model, jax.tree_util.tree_map_with_path(
        lambda path, x: (
            rng.uniform(0.5, 1.5, x.shape)
            if path[-1].key in ("scale", "var")
            else rng.normal(0, 0.05, x.shape)
        ),
        shapes,
    )


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param("batch", marks=pytest.mark.slow),
        pytest.param("frozen_batch", marks=[pytest.mark.slow, pytest.mark.exhaustive]),
        pytest.param("group", marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_loss_and_gradient_depend_only_on_the_images(masked_config, norm):
    masked_config.model.norm = norm
    with jax.enable_x64(True):
        model, variables = random_variables(masked_config)

        def loss(params, batch):
            outputs, updated = model.apply(
                {**variables, "params": params},
                modeling.network_input(batch, masked_config, train=True),
                train=True,
                sizes=modeling.valid_sizes(batch),
                mutable=["batch_stats"],
            )
            terms = batch_loss(outputs, batch, jnp.float64(100), masked_config)
            return terms.total, (terms, updated)

        compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
        expected = compute(variables["params"], on_canvas(CANVASES[0]))
        terms = expected[0][1][0]
        assert terms.num_foreground > 5
        assert terms.box > 0.1
        actual = compute(variables["params"], on_canvas(CANVASES[1], num_fillers=1))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), actual, expected
        )


def test_detections_depend_only_on_the_image(masked_config):
    with jax.enable_x64(True):
        model, variables = random_variables(masked_config)

        @jax.jit
        def detect(batch):
            return modeling.detect(variables, batch, model, masked_config)

        expected = detect(on_canvas(CANVASES[0]))
        assert expected.mask.sum() > 20
        actual = detect(on_canvas(CANVASES[1], num_fillers=1))
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_allclose(x[:3], y, rtol=0, atol=1e-10)
