"""Compiles the training step, or the detection, of a config for devices that are not here."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import sharding
from retinanet_jax.compilation import compile_measured
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.transforms import PIXEL_TYPES
from retinanet_jax.modeling import build_model, detect, initialize
from retinanet_jax.planning.costs import Costs, program_costs
from retinanet_jax.training.initialization import random_train_state
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.step import jit_train_step

BATCH_FIELDS = {"train": "batch_size", "predict": "eval_batch_size"}  # of config.data
NUM_CROWD = 8  # crowd regions of an image; they cost next to nothing


class Program(NamedTuple):
    """A program that was compiled, or that the compiler rejected because of its memory."""

    bucket: tuple[int, int]  # height and width of the images
    batch_size: int  # images over all devices
    seconds: float  # of compiling
    needed: int  # bytes on each device; at least this much if the compiler rejected the program
    memory: dict[str, int] | None  # bytes by use; None if the compiler rejected the program
    costs: Costs | None  # None if the compiler rejected the program

    def fits(self, limit: int) -> bool:
        """Return whether the program needs at most `limit` bytes on each device."""
        return self.memory is not None and self.needed <= limit


class Workload(NamedTuple):
    """What is compiled for which devices.

    Attributes:
        config: A run's config.
        mode: "train" for the training step, "predict" for the detection of evaluation and
            prediction.
        mesh: The devices, with axes `data` and `space`.
        num_classes: The number of classes that the network scores.
        num_boxes: The number of boxes that each image is padded to.
        compiler_options: Of XLA.
    """

    config: ConfigDict
    mode: str
    mesh: jax.sharding.Mesh
    num_classes: int
    num_boxes: int
    compiler_options: dict[str, Any]

    @property
    def batch_size(self) -> int:
        """The batch size in the config."""
        return self.config.data[BATCH_FIELDS[self.mode]]

    @property
    def num_parts(self) -> int:
        """The number of parts of a batch, of which one at a time is in memory."""
        return self.config.optimizer.accumulate if self.mode == "train" else 1

    def compile(self, bucket: tuple[int, int], batch_size: int) -> Program:
        """Compile the program for a shape of the images; this takes minutes for a real network.

        Args:
            bucket: Height and width of the images, in pixels.
            batch_size: The number of images over all devices.
        """
        lowered = self.lower(bucket, batch_size)
        start = time.monotonic()
        program, needed, memory = compile_measured(lowered, self.compiler_options)
        seconds = time.monotonic() - start
        costs = program_costs(program.as_text()) if program else None
        return Program(bucket, batch_size, seconds, needed, memory, costs)

    def lower(self, bucket: tuple[int, int], batch_size: int) -> Any:
        """Return the program before XLA compiles it, as `lower` of a jitted function does.

        Args:
            bucket: Height and width of the images, in pixels.
            batch_size: The number of images over all devices.
        """
        config = self.config.copy_and_resolve_references().unlock()
        config.data[BATCH_FIELDS[self.mode]] = batch_size
        platform = self.mesh.devices.flat[0].platform  # not that of this process
        model = build_model(config, self.num_classes, platform=platform)
        batch = batch_shapes(config, bucket, batch_size, self.num_boxes)
        if self.mode == "train":
            optimizer = make_optimizer(config)
            step = jit_train_step(model, optimizer, config, self.mesh)
            return step.lower(train_state_shapes(config, self.num_classes), batch)
        detect_batch = jax.jit(
            functools.partial(detect, model=model, config=config),
            in_shardings=(
                sharding.replicated(self.mesh),
                sharding.batch_shardings(self.mesh),
            ),
            out_shardings=sharding.replicated(self.mesh),
        )
        variables = jax.eval_shape(lambda: initialize(config, self.num_classes, config.seed))
        return detect_batch.lower(variables, batch)


def train_state_shapes(config: ConfigDict, num_classes: int) -> Any:
    """Return the shapes and types of the state of training, a `TrainState`.

    Args:
        config: A run's config.
        num_classes: The number of classes that the network scores.
    """
    optimizer = make_optimizer(config)
    return jax.eval_shape(lambda: random_train_state(config, num_classes, optimizer))


def batch_shapes(
    config: ConfigDict, bucket: tuple[int, int], batch_size: int, num_boxes: int
) -> Batch:
    """Return the shapes and types of a batch.

    Args:
        config: A run's config.
        bucket: Height and width of the images, in pixels.
        batch_size: The number of images.
        num_boxes: The number of boxes per image.
    """
    dtype = PIXEL_TYPES[config.data.resize]

    def batch() -> Batch:
        return Batch.of_images(
            jnp.zeros((batch_size, *bucket, 3), dtype),
            sizes=jnp.zeros((batch_size, 2), jnp.float32),
            scales=jnp.zeros((batch_size, 2), jnp.float32),
            num_boxes=num_boxes,
            num_crowd=NUM_CROWD,
        )

    return jax.eval_shape(batch)


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all arrays of a tree of shapes."""
    return sum(x.size * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
