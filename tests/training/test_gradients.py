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


def small(config, **loss):
    """Return the config with one anchor per cell, in float64; OHEM has few examples."""
    config.dtype = "float64"
    config.data.batch_size = BATCH_SIZE
    config.anchors.update(max_level=5, scales=(1.0,), ratios=(1.0,))
    config.loss.ohem.update(num_candidates=16, num_examples=8)
    config.loss.update(loss)
    return config


def gradient(config, batch, accumulate):
    """Return the gradient of a batch in that many parts."""
    config.optimizer.accumulate = accumulate
    rng = np.random.default_rng(3)
    params = {
        "logits": rng.normal(0, 0.1, (3, NUM_CLASSES)),
        "deltas": rng.normal(0, 0.01, (3, 4)),
    }
    arguments = params, {"colors": np.float64(0)}, np.full(normalizer_shape(config), 20.0), batch
    return jax.tree.map(np.asarray, jax.jit(make_gradient(LinearModel(), config))(*arguments))


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
        whole, parts = gradient(config, batch, 1), gradient(config, batch, 4)
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(whole.gradients))
    assert whole.terms.num_foreground > 20
    for x, y in zip(*map(jax.tree.leaves, (parts[:3], whole[:3])), strict=True):
        assert x.dtype == np.float64
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)
    # Statistics are those of each part: the mean of each was added.
    np.testing.assert_allclose(parts.batch_stats["colors"], 4 * whole.batch_stats["colors"])


def test_each_device_has_examples_of_every_part():
    examples = np.arange(8)
    assert split(examples, 4).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    np.testing.assert_array_equal(join(split(examples, 4)), examples)
