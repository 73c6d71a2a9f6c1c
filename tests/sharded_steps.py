"""A step in float64 on any devices: the same network, state and batch in every process.

`python tests/sharded_steps.py INDEX PORT OUTPUT` is one of two processes of a step.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from ml_collections import ConfigDict

from retinanet_jax import modeling, sharding
from retinanet_jax.config import load_config
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import resnet
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import TrainState, jit_train_step, state_shardings

TOY = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False}
NUM_CLASSES = 3
SIZE = (256, 64)  # 8 rows on level 5


def make_batch() -> Batch:
    """Return 8 different images with boxes and crowds; the last is a filler."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (8, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 60, (8, 3, 2))], axis=-1)
    batch = Batch.of_images(
        rng.integers(0, 256, (8, *SIZE, 3), np.uint8),
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


def step_config(norm: str, padding: str, space: int) -> ConfigDict:
    """Return the config of a small network; a step in float64 does all that one may do.

    Args:
        norm: The norm of the backbone; that of the heads is group norm.
        padding: "masked" or "plain".
        space: The number of devices that split an image.
    """
    config = load_config("configs/r50_fpn.py:tiny").unlock()
    config.update(dtype="float64", space=space)
    config.model.update(backbone="toy", fpn_channels=16)
    config.model.update(norm=norm, head_norm="group", padding=padding)
    config.anchors.update(scales=(1.0,), max_level=5)
    config.matching.crowd_ioa = 0.5
    config.data.color_jitter.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    config.data.batch_size = 8
    config.optimizer.update(clip_norm=0.1, weight_decay=0.1)
    return config


def to_float64(tree):
    """Return a tree of arrays with all floating-point numbers in float64."""
    return jax.tree.map(
        lambda x: x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def random_state(config: ConfigDict) -> TrainState:
    """Return a state in float64, as of a run of five steps."""
    model, rng = modeling.build_model(config, NUM_CLASSES), np.random.default_rng(1)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    )
    # Sampled here, because compiling the network's own initialization takes longer than the step.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            rng.uniform(0.5, 1.5, x.shape)
            if path[-1].key in ("scale", "var")
            else rng.normal(0, 0.1, x.shape)
        ),
        shapes,
    )
    opt_state = jax.eval_shape(make_optimizer(config).init, variables["params"])
    opt_state = jax.tree.map(
        lambda x: rng.uniform(0, 0.1, x.shape) if x.shape else np.full((), 5, x.dtype), opt_state
    )
    state = TrainState(
        np.int32(5),
        variables["params"],
        variables.get("batch_stats", {}),
        opt_state,
        np.float64(100),
        np.bool_(True),
    )
    if config.optimizer.ema_decay:
        average = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape), state.latest)
        state = state._replace(average=average)
    return state


class CompiledStep:
    """The step of a small network, compiled for some of the devices, with a state to start from.

    Args:
        norm: The norm of the backbone; that of the heads is group norm.
        padding: "masked" or "plain".
        num_devices: The number of devices, of all processes.
        space: The number of devices that split an image.
        **fields: Values of config fields.
    """

    def __init__(
        self, norm: str, padding: str, *, num_devices: int = 1, space: int = 1, **fields: Any
    ) -> None:
        config = step_config(norm, padding, space)
        config.update_from_flattened_dict(fields)
        mesh = sharding.make_mesh(space, devices=jax.devices()[:num_devices])
        self.state = random_state(config)
        self._shardings = state_shardings(self.state.opt_state, config, mesh)
        self._batch_shardings = sharding.batch_shardings(mesh)
        model, optimizer = modeling.build_model(config, NUM_CLASSES), make_optimizer(config)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            (self.state, to_float64(make_batch())),
        )
        lowered = jit_train_step(model, optimizer, config, mesh).lower(*shapes)
        self._program = lowered.compile()

    def __call__(self, batch: Batch, **fields: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """Return the state and the metrics after one step.

        Args:
            batch: This process's part of the batch.
            **fields: Fields of the state before the step that are not those of `random_state`.
        """
        state = jax.device_put(self.state._replace(**fields), self._shardings)
        return self._program(state, sharding.put_batch(to_float64(batch), self._batch_shardings))


def main(index: str, port: str, output: str) -> None:
    """Do a step as one of two processes; the first writes the state and the metrics."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    resnet.ARCHITECTURES["toy"] = TOY
    with jax.enable_x64(True):
        step = CompiledStep("batch", "masked", num_devices=8, space=2, shard_optimizer=True)
        part = slice(4 * int(index), 4 * int(index) + 4)
        result = step(jax.tree.map(lambda x: x[part], make_batch()))
        assert not jax.tree.leaves(result[0].opt_state)[-1].is_fully_addressable
        arrays = process_allgather(result, tiled=True)
    if index == "0":
        np.savez(output, *jax.tree.leaves(arrays))


if __name__ == "__main__":
    main(*sys.argv[1:])
