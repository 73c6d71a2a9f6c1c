"""A gradient computed in parts of the batch equals that of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batches import NUM_CLASSES, make_batch

from retinanet_jax.models import Outputs
from retinanet_jax.training.gradients import join, make_gradient, split
from retinanet_jax.training.normalizers import normalizer_shape

BATCH_SIZE = 8
STRIDES = (8, 16, 32)


class LinearModel:
    """Stands for the network: outputs linear in the mean color of each cell.

    Like batch norm, it adds the mean of its input to its statistics.
    """

    def apply(self, variables, images, *, train, sizes, mutable):
        def level(stride, name):
            batch, height, width, channels = images.shape
            cells = images.reshape(batch, height // stride, stride, width // stride, stride, -1)
            means = cells.mean(axis=(2, 4)).reshape(batch, -1, channels)
            return means @ variables["params"][name] + jnp.log(stride) - 4

        outputs = Outputs(*(tuple(level(s, name) for s in STRIDES) for name in Outputs._fields))
        colors = variables["batch_stats"]["colors"] + images.mean()
        return outputs, {"batch_stats": {"colors": colors}}


class CenteringModel(LinearModel):
    """Subtracts the mean of its input as a batch norm does, and adds it to its statistics."""

    def apply(self, variables, images, *, train, sizes, mutable):
        is_image = sizes[:, :1, None, None] > 0
        mean = jnp.sum(images * is_image) / jnp.sum(is_image)
        outputs, _ = super().apply(
            variables, images - mean, train=train, sizes=sizes, mutable=mutable
        )
        return outputs, {"batch_stats": {"colors": variables["batch_stats"]["colors"] + mean}}


def small(config, **loss):
    """Return the config with one anchor per cell, in float64; OHEM has few examples."""
    config.dtype = "float64"
    config.data.batch_size = BATCH_SIZE
    config.anchors.update(max_level=5, scales=(1.0,), ratios=(1.0,))
    config.loss.ohem.update(num_candidates=16, num_examples=8)
    config.loss.update(loss)
    return config


def gradients(config, batches, accumulate, model):
    """Return the gradients of batches in that many parts."""
    config.optimizer.accumulate = accumulate
    rng = np.random.default_rng(3)
    params = {
        "logits": rng.normal(0, 0.1, (3, NUM_CLASSES)),
        "deltas": rng.normal(0, 0.01, (3, 4)),
    }
    state = params, {"colors": np.float64(0)}, np.full(normalizer_shape(config), 20.0)
    compute = jax.jit(make_gradient(model, config))
    return [jax.tree.map(np.asarray, compute(*state, batch)) for batch in batches]


@pytest.fixture
def batch():
    """Return 8 images with different numbers of boxes; the last is a filler."""
    batch = make_batch(BATCH_SIZE)
    batch.mask[:2] = False
    batch = batch._replace(weights=np.array([1] * 7 + [0], np.float32))
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, batch)


LOSSES = (
    ({"normalizer": "batch"}, ()),
    ({"normalizer": "ema", "classification": "ohem", "ema_images": 4}, pytest.mark.slow),
    # The same law, with other factors.
    ({"normalizer": "image", "box": "giou"}, pytest.mark.exhaustive),
    ({"normalizer": "ema", "classification": "focal_star"}, pytest.mark.exhaustive),
    ({"normalizer": "ema", "ema_images": 2}, pytest.mark.exhaustive),
    ({"normalizer": "batch", "classification": "ohem"}, pytest.mark.exhaustive),
)


@pytest.mark.parametrize(
    "loss",
    [pytest.param(loss, id=" ".join(map(str, loss.values())), marks=m) for loss, m in LOSSES],
)
def test_parts_add_up_to_the_batch(config, batch, loss):
    """The gradients, the outputs, the loss and its normalizer, whatever the losses."""
    small(config, **loss)
    with jax.enable_x64(True):
        whole, parts = (gradients(config, [batch], n, LinearModel())[0] for n in (1, 4))
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(whole.gradients))
    assert whole.terms.num_foreground > 20
    for x, y in zip(*map(jax.tree.leaves, (parts[:3], whole[:3])), strict=True):
        assert x.dtype == np.float64
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)
    # Statistics are those of each part: the mean of each was added.
    np.testing.assert_allclose(parts.batch_stats["colors"], 4 * whole.batch_stats["colors"])


def test_a_part_that_has_only_fillers_changes_nothing(config, batch):
    """Examples 3 and 7 are a part; a batch norm has no statistics of it."""
    small(config)
    batch = batch._replace(weights=np.array([1, 1, 1, 0] * 2))
    noise = np.random.default_rng(4).uniform(0, 255, batch.images.shape)
    is_filler = batch.weights[:, None, None, None] == 0
    other = batch._replace(images=np.where(is_filler, noise, batch.images))
    with jax.enable_x64(True):
        first, second = gradients(config, [batch, other], 4, CenteringModel())
    for x, y in ((first[i], second[i]) for i in (0, 2, 3)):  # all but the outputs
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(x))
        jax.tree.map(np.testing.assert_array_equal, x, y)


def test_each_device_has_examples_of_every_part():
    examples = np.arange(8)
    assert split(examples, 4).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    np.testing.assert_array_equal(join(split(examples, 4)), examples)
