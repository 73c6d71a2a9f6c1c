"""The mesh: its checks, and one step with equal results on any number of devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from retinanet_jax import modeling, sharding
from retinanet_jax.data.batch import Batch
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, make_train_step

NUM_CLASSES = 3


@pytest.mark.parametrize(("space", "shape"), [(1, (8, 1)), (2, (4, 2)), (8, (1, 8))])
def test_all_devices_are_in_the_mesh(space, shape):
    mesh = sharding.make_mesh(space)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "space")
    assert set(mesh.devices.ravel().tolist()) == set(jax.devices())


@pytest.mark.parametrize("space", [0, -1, 3, 16])
def test_space_must_divide_the_devices(space):
    with pytest.raises(ValueError, match=rf"space={space} must divide .* \(8\); try space=1"):
        sharding.make_mesh(space)


@pytest.mark.parametrize(("num_hosts", "num_local"), [(2, 1), (2, 3), (4, 1)])
def test_an_image_is_split_only_within_a_host(num_hosts, num_local):
    """Otherwise the images of two hosts would become one, stacked vertically."""
    devices = [
        types.SimpleNamespace(process_index=i // num_local) for i in range(num_hosts * num_local)
    ]
    message = rf"space=2 must divide .* host \({num_local}\); try space=1"
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(2, devices=devices)


def test_a_batch_must_be_split_evenly():
    mesh = sharding.make_mesh(2)
    sharding.check_batch_size("data.batch_size", 8, mesh)
    with pytest.raises(
        ValueError, match=r"data\.batch_size=6 must be a multiple of the 4 .* try 8"
    ):
        sharding.check_batch_size("data.batch_size", 6, mesh)


def test_every_device_needs_a_row_of_every_level():
    mesh = sharding.make_mesh(4)
    sharding.check_heights(((512, 64), (800, 64)), 7, mesh)  # 4 rows, and 7 as 2 + 2 + 2 + 1
    sharding.check_heights(((64, 64),), 7, sharding.make_mesh(1))
    message = r"space=4 .* height 128: level 7 has 1 rows.* try space=1, or .* at least 512\."
    with pytest.raises(ValueError, match=message):
        sharding.check_heights(((800, 64), (128, 64)), 7, mesh)
    with pytest.raises(ValueError, match="has 5 rows"):  # 2 + 2 + 1 + 0
        sharding.check_heights(((640, 64),), 7, mesh)


def test_images_must_be_split_evenly():
    mesh = sharding.make_mesh(3, devices=jax.devices()[:6])
    sharding.check_heights(((960, 64), (1344, 64)), 7, mesh)
    with pytest.raises(ValueError, match=r"space=3 .* height 1024 evenly; .* multiples of 3"):
        sharding.check_heights(((960, 64), (1024, 64)), 7, mesh)


def make_batch() -> Batch:
    """8 different images with boxes and crowds, with 4 rows on level 7; the last is a filler."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (8, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 60, (8, 3, 2))], axis=-1)
    batch = Batch.of_images(
        rng.integers(0, 256, (8, 512, 64, 3), np.uint8),
        sizes=np.stack([rng.integers(70, 129, 8), rng.integers(40, 65, 8)], 1).astype(np.float32),
        scales=np.ones((8, 2), np.float32),
    )
    return batch._replace(
        boxes=boxes.astype(np.float32),
        classes=rng.integers(0, NUM_CLASSES, (8, 3), np.int32),
        mask=rng.random((8, 3)) < 0.6,
        crowd_boxes=np.tile(np.float32([60, 0, 120, 40]), (8, 1, 1)),
        crowd_mask=rng.random((8, 1)) < 0.5,
        weights=np.float32([1] * 7 + [0]),
        colors=rng.uniform([0.6, 0.6, 0.6, -0.1], [1.4, 1.4, 1.4, 0.1], (8, 4)).astype(np.float32),
    )


def test_a_batch_is_split_over_data_and_heights_over_space():
    mesh = sharding.make_mesh(2)
    batch = make_batch()
    global_batch = sharding.put_batch(batch, sharding.batch_shardings(mesh))
    for name, host, device in zip(Batch._fields, batch, global_batch, strict=True):
        np.testing.assert_array_equal(device, host)
        assert device.sharding.spec == (P("data", "space") if name == "images" else P("data"))
    assert global_batch.images.addressable_shards[0].data.shape == (2, 256, 64, 3)
    assert global_batch.boxes.addressable_shards[0].data.shape == (2, 3, 4)


def floats_to_64(tree):
    return jax.tree.map(
        lambda x: x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


@pytest.fixture
def double_step(toy_config):
    """`(devices, space) -> (state, metrics)` after one step in float64."""
    toy_config.dtype = "float64"
    toy_config.model.update(head_norm="group", norm="batch")
    toy_config.matching.crowd_ioa = 0.5
    toy_config.anchors.update(scales=(1.0,))
    toy_config.data.color_jitter.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    model = modeling.build_model(toy_config, NUM_CLASSES)
    optimizer = make_optimizer(toy_config)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
        )
    rng = np.random.default_rng(1)
    # Sampled here, because compiling the network's own initialization takes longer than the step.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            rng.uniform(0.5, 1.5, x.shape)
            if path[-1].key in ("scale", "var")
            else rng.normal(0, 0.1, x.shape)
        ),
        shapes,
    )

    def step(devices, space):
        mesh = sharding.make_mesh(space, devices=jax.devices()[:devices])
        shardings = sharding.batch_shardings(mesh)
        params, batch_stats = variables["params"], variables["batch_stats"]
        opt_state = floats_to_64(optimizer.init(params))
        state = TrainState(np.int32(5), params, batch_stats, opt_state, np.float64(100))
        run = jax.jit(
            make_train_step(model, optimizer, toy_config),
            in_shardings=(sharding.replicated(mesh), shardings),
            out_shardings=sharding.replicated(mesh),
        )
        return jax.device_get(
            run(
                sharding.put_replicated(state, mesh),
                sharding.put_batch(floats_to_64(make_batch()), shardings),
            )
        )

    with jax.enable_x64(True):
        yield step


@pytest.mark.slow
def test_a_step_on_8_devices_equals_one_on_1_device(double_step):
    """All parameters, statistics, moments and metrics; in float64 no rounding flips a decision."""
    state, metrics = double_step(1, 1)
    assert metrics["num_foreground"] > 5
    assert metrics["gradient_norm"] > 1e-3
    assert {x.dtype for x in jax.tree.leaves((state.params, metrics["loss"]))} == {np.dtype(float)}
    for space in (1, 2, 4):
        for single, split in zip(
            *map(jax.tree.leaves, ((state, metrics), double_step(8, space))), strict=True
        ):
            assert split.dtype == single.dtype
            np.testing.assert_allclose(split, single, rtol=1e-10, atol=1e-10)
