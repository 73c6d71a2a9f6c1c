"""The mesh: its checks, and one step with equal results on any number of devices."""

import functools
import itertools
import pathlib
import re
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec as P
from sharded_steps import TOY, CompiledStep, make_batch

from retinanet_jax import sharding
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import resnet

ROOT = pathlib.Path(__file__).parent.parent


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
    sharding.check_batch_size("data.batch_size", 8, mesh, 2)
    message = r"12 must be a multiple of optimizer\.accumulate=2 times the 4 devices .* try 16"
    with pytest.raises(ValueError, match=message):
        sharding.check_batch_size("data.batch_size", 12, mesh, 2)


@pytest.mark.parametrize(
    ("batch_size", "num_parts", "platform", "warning"),
    [
        (32, 1, "tpu", ""),
        (64, 2, "tpu", ""),
        (16, 1, "cuda", ""),
        (16, 1, "tpu", "4 images a chip is no multiple of 8: .* --config.data.batch_size=32,"),
        (48, 1, "tpu", "12 images a chip is no multiple of 8: .* --config.data.batch_size=64,"),
        (32, 2, "tpu", "4 images a chip is no multiple of 8: .* --config.data.batch_size=64,"),
    ],
)
def test_a_tpu_has_multiples_of_eight_images_or_a_warning(batch_size, num_parts, platform, warning):
    mesh = sharding.make_mesh(2)  # 4 x 2 devices
    text = sharding.images_warning("data.batch_size", batch_size, mesh, num_parts, platform)
    assert re.match(warning, text)
    assert bool(text) == bool(warning)


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


def test_a_batch_is_split_over_data_and_heights_over_space():
    mesh = sharding.make_mesh(2)
    batch = make_batch()
    global_batch = sharding.put_batch(batch, sharding.batch_shardings(mesh))
    for name, host, device in zip(Batch._fields, batch, global_batch, strict=True):
        np.testing.assert_array_equal(device, host)
        assert device.sharding.spec == (P("data", "space") if name == "images" else P("data"))
    assert global_batch.images.addressable_shards[0].data.shape == (2, 128, 64, 3)
    assert global_batch.boxes.addressable_shards[0].data.shape == (2, 3, 4)


def test_an_optimizer_state_is_split_along_its_largest_axis():
    mesh = sharding.make_mesh(2)  # 4 devices along data
    shapes = {
        "kernel": (3, 3, 256, 256),  # of equal axes the first
        "projection": (1, 1, 64, 256),
        "odd": (64, 999),  # 4 does not divide the larger axis
        "indivisible": (99, 99),
        "small": (4, 512),
        "count": (),
    }
    arrays = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    assert {name: x.spec for name, x in sharding.split_over_data(arrays, mesh).items()} == {
        "kernel": P(None, None, "data"),
        "projection": P(None, None, None, "data"),
        "odd": P("data"),
        "indivisible": P(),
        "small": P(),
        "count": P(),
    }


def test_a_checkpoint_is_restored_with_other_shardings_and_devices(tmp_path):
    """Bit by bit: split over 8 devices and then over 2, or not at all; and the reverse."""
    state = np.random.default_rng(0).normal(size=(8, 4096)).astype(np.float32)
    meshes = [sharding.make_mesh(1), sharding.make_mesh(2, devices=jax.devices()[:4])]
    split = [sharding.split_over_data(state, mesh) for mesh in meshes]
    assert [x.shard_shape(state.shape) for x in split] == [(8, 512), (8, 2048)]
    shardings = [*split, *map(sharding.replicated, meshes)]
    handler = ocp.StandardCheckpointer()
    for index, saved in enumerate(shardings):
        handler.save(tmp_path / str(index), {"a": jax.device_put(state, saved)})
    handler.wait_until_finished()
    for index, sharding_after in itertools.product(range(4), shardings):
        target = sharding.with_shardings({"a": state}, sharding_after)
        restored = handler.restore(tmp_path / str(index), target)["a"]
        assert restored.sharding == sharding_after
        np.testing.assert_array_equal(restored, state)


@pytest.fixture(scope="module")
def compiled_step():
    """A function of the arguments of `CompiledStep`, which compiles each program once."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setitem(resnet.ARCHITECTURES, "toy", TOY)
        yield functools.cache(CompiledStep)


NETWORKS = tuple(itertools.product(("frozen_batch", "batch", "group"), ("masked", "plain")))
MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))
OPTIMIZERS = {"frozen_batch": "adamw", "batch": "sgd", "group": "adamw"}


def assert_equal(actual, expected):
    for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


def optimizer_of(norm):
    """Return the fields of the optimizer that the networks of a norm are tested with."""
    decay = 0.9 if norm == "group" else 0.0  # with an average of the variables, and without
    return {"optimizer.name": OPTIMIZERS[norm], "optimizer.ema_decay": decay}


def split_optimizer(norm, padding):
    """Return whether the networks of a norm and padding are tested with a split optimizer."""
    return norm != "batch" or padding == "plain"


# Unless the tests are exhaustive: images that are split or not, and the norms that take statistics.
EXAMPLES = {("group", "masked", 8, 1), ("group", "masked", 2, 4), ("batch", "plain", 2, 4)}


def mesh_cases():
    """Yield the cases of the next test."""
    for norm, padding in NETWORKS:
        for mesh in MESHES if padding == "masked" else MESHES[2:3]:
            case = (norm, padding, *mesh)
            yield pytest.param(*case, marks=() if case in EXAMPLES else pytest.mark.exhaustive)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "padding", "data", "space"), list(mesh_cases()))
def test_a_step_does_not_depend_on_the_devices(compiled_step, norm, padding, data, space):
    """All parameters, statistics, moments and metrics; in float64 no rounding flips a decision."""
    expected = compiled_step(norm, padding, **optimizer_of(norm))(make_batch())
    assert expected[1]["num_foreground"] > 5
    assert expected[1]["gradient_norm"] > 1
    assert expected[1]["loss"].dtype == np.float64
    shard_optimizer = split_optimizer(norm, padding)
    fields = {**optimizer_of(norm), "shard_optimizer": shard_optimizer}
    step = compiled_step(norm, padding, num_devices=8, space=space, **fields)
    actual = step(make_batch())
    assert_equal(actual, expected)
    assert {x.sharding.is_fully_replicated for x in jax.tree.leaves(actual[0].params)} == {True}
    largest = max(jax.tree.leaves(actual[0].opt_state), key=lambda x: x.size)
    num_parts = data if shard_optimizer else 1
    assert largest.addressable_shards[0].data.size * num_parts == largest.size == 9 * 64 * 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "accumulate", "num_devices", "space"),
    [
        ("group", 4, 2, 1),
        # Images that are split, and norms without statistics.
        pytest.param("group", 2, 8, 2, marks=pytest.mark.exhaustive),
        pytest.param("frozen_batch", 8, 1, 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_in_parts_equals_that_of_the_whole_batch(
    compiled_step, norm, accumulate, num_devices, space
):
    """All parameters, statistics, moments and metrics, on any devices."""
    fields = {**optimizer_of(norm), "optimizer.accumulate": accumulate}
    step = compiled_step(norm, "masked", num_devices=num_devices, space=space, **fields)
    assert_equal(
        step(make_batch()), compiled_step(norm, "masked", **optimizer_of(norm))(make_batch())
    )


def network_cases(*, without=()):
    """Yield the networks of the next tests; those that no other test compiles are exhaustive."""
    for network in NETWORKS:
        if network not in without:
            is_compiled = network in {("group", "masked"), ("batch", "plain")}
            yield pytest.param(*network, marks=() if is_compiled else pytest.mark.exhaustive)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "padding"), list(network_cases()))
def test_the_order_of_the_images_changes_nothing(compiled_step, norm, padding):
    step, order = compiled_step(norm, padding, **optimizer_of(norm)), [3, 7, 0, 6, 1, 5, 2, 4]
    permuted = jax.tree.map(lambda x: x[order], make_batch())
    assert_equal(step(permuted), step(make_batch()))


@pytest.mark.slow
@pytest.mark.parametrize(
    # With plain padding the fillers enter the statistics of batch norm (docs/devices.md).
    ("norm", "padding"),
    list(network_cases(without=[("batch", "plain")])),
)
def test_what_a_filler_contains_changes_nothing(compiled_step, norm, padding):
    step, batch = compiled_step(norm, padding, **optimizer_of(norm)), make_batch()
    assert batch.weights.tolist() == [1] * 7 + [0]
    others = jax.tree.map(np.copy, batch)
    rng = np.random.default_rng(2)
    others.images[7] = rng.integers(0, 256, others.images[7].shape)
    others.sizes[7] = [200, 30]
    others.boxes[7] = [[0, 0, 0, 0], [-1e4, 5, 1e4, 20], [10, 10, 30, 30]]
    others.mask[7] = others.crowd_mask[7] = True
    others.crowd_boxes[7] = [0, 0, 256, 64]
    others.dropped[7], others.colors[7] = 9, [5, 5, 5, 0.5]
    assert_equal(step(others), step(batch))


@pytest.mark.slow
def test_a_step_changes_no_bit_of_a_state_that_has_stopped(compiled_step):
    """The largest shape is run in this way before a run begins."""
    step = compiled_step("batch", "masked", **optimizer_of("batch"))
    before = step.state._replace(is_finite=np.bool_(False))
    after, _ = step(make_batch(), is_finite=np.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.slow
def test_a_step_of_two_processes_equals_that_of_one(compiled_step, program, tmp_path):
    """On 4 x 2 devices, of which each process has four, with a split optimizer."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **program.environment(),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    script, output = ROOT / "tests" / "sharded_steps.py", tmp_path / "state.npz"
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(index), str(port), output], env=environment, cwd=ROOT
        )
        for index in range(2)
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    expected = compiled_step("batch", "masked", **optimizer_of("batch"))(make_batch())
    with np.load(output) as arrays:
        assert_equal([arrays[name] for name in arrays.files], expected)
