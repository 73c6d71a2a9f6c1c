"""The diagnosis of a step that is not finite: which numbers, of which arrays and images, and why.

Everything that a step reads and computes is counted, in the order of cause and effect: the first
part with numbers that are not finite is the cause, and all later ones are effects of it.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import DictKey, GetAttrKey, KeyPath
from ml_collections import ConfigDict

from retinanet_jax import sharding
from retinanet_jax.data.batch import Batch
from retinanet_jax.models import Outputs, RetinaNet
from retinanet_jax.training.objective import batch_loss, image_losses
from retinanet_jax.training.step import TrainState, make_update
from retinanet_jax.utils.progress import join_first

MAX_NAME = 80  # characters of an image's or an array's name in a message
# In the backward pass, from the loss to the stem.
BACKWARD = (
    *("classification_head", "box_head", "fpn", "backbone/stage5", "backbone/stage4"),
    *("backbone/stage3", "backbone/stage2", "backbone/stem"),
)
# The parts of a step, in the order of cause and effect, and what an error message calls each.
PARTS = {
    "batch": "the batch",
    "parameters": "parameters before the step",
    "batch statistics": "batch statistics before the step",
    "optimizer": "optimizer state before the step",
    "normalizer": "moving averages of the loss before the step",
    "average": "average of the variables before the step",
    "outputs": "outputs of the network",
    "losses": "losses of images",
    "gradients of outputs": "gradients of outputs",
    "gradients": "gradients of parameters",
    "batch statistics after": "batch statistics after the step",
    "optimizer after": "optimizer state after the step",
    "parameters after": "parameters after the step",
    "normalizer after": "moving averages of the loss after the step",
    "average after": "average of the variables after the step",
}
STATE_PARTS = ("parameters", "batch statistics", "optimizer", "normalizer", "average")


class ImageName(NamedTuple):
    """The id and the file name of an image in its dataset."""

    image_id: int
    file_name: str

    def __str__(self) -> str:
        return f"image {self.image_id} ({shorten(self.file_name)})"


class NonfiniteArray(NamedTuple):
    """An array with numbers that are not finite."""

    part: str  # a key of PARTS
    name: str
    count: int  # of such numbers
    images: tuple[ImageName, ...]  # that they belong to; () in an array that has no axis of images


class Diagnosis(NamedTuple):
    """What is known of a step that is not finite."""

    step: int  # number of steps done after it
    metrics: dict[str, float]
    arrays: tuple[NonfiniteArray, ...]  # in the order of PARTS
    num_images: int  # of the batch
    remedies: tuple[str, ...]  # of a training that diverges

    def summary(self) -> str:
        """Return one line with the step, the cause and what to do."""
        loss, norm = self.metrics["loss"], self.metrics["gradient_norm"]
        return (
            f"step {self.step} is not finite (loss {loss:g}, gradient norm {norm:g}); "
            f"{self._cause()}; {self._advice()}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return all that is known, as JSON represents it."""
        arrays: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for part, name, count, images in self.arrays:
            arrays[part][name] = {"nonfinite": count} | (
                {"images": [image._asdict() for image in images]} if images else {}
            )
        return {
            "step": self.step,
            "summary": self.summary(),
            "metrics": {
                name: x if math.isfinite(x) else str(x) for name, x in self.metrics.items()
            },
            "arrays": {part: named for part, named in arrays.items() if named},
        }

    @property
    def causes(self) -> tuple[NonfiniteArray, ...]:
        """The arrays of the first part, or of all that the step reads."""
        inputs = ("batch", *STATE_PARTS)
        read = tuple(array for array in self.arrays if array.part in inputs)
        return read or tuple(x for x in self.arrays if x.part == self.arrays[0].part)

    @property
    def images(self) -> list[ImageName]:
        """The images that the causes belong to."""
        return list(dict.fromkeys(image for array in self.causes for image in array.images))

    def _cause(self) -> str:
        if not self.arrays:
            if math.isfinite(self.metrics["loss"]):
                return "the norm of the gradient overflows, each of its numbers is finite"
            return "computed again, all numbers are finite"
        return "cause: " + " and ".join(
            f"{PARTS[part]}: {self._listed([x for x in self.causes if x.part == part])}"
            for part in dict.fromkeys(array.part for array in self.causes)
        )

    def _listed(self, arrays: Sequence[NonfiniteArray]) -> str:
        """Return the names of the first arrays of one part, and of the first images in them."""
        images = list(dict.fromkeys(image for array in arrays for image in array.images))
        names = join_first([shorten(array.name) for array in arrays])
        if len(images) == self.num_images > 1:
            return f"{names} of all {self.num_images} images"
        return f"{names} of {join_first(list(map(str, images)))}" if images else names

    def _advice(self) -> str:
        parts = {array.part for array in self.causes} if self.arrays else set()
        if "batch" in parts:
            return "correct these images or their annotations, or leave them out"
        if parts & set(STATE_PARTS):
            return (
                "start from other weights (--weights, config.init), or resume from an earlier "
                "checkpoint"
            )
        if not parts and not math.isfinite(self.metrics["loss"]):
            return "the device may be defective; repeat the step with --replay"
        return f"the training diverges: try {' or '.join(self.remedies)}"


def shorten(name: str) -> str:
    """Return the end of a name, of at most MAX_NAME characters, in one line."""
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else f"...{name[3 - MAX_NAME :]}"


def make_diagnose(
    model: RetinaNet,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
) -> Callable[..., Diagnosis]:
    """Return a function that finds the numbers of a step that are not finite.

    Args:
        model: The network that `modeling.build_model` returns for `config`.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
        config: A run's config.
        mesh: The devices.

    Returns:
        A function of (state before the step, batch, number of the step, its metrics, names of the
        batch's images), which computes the step again; all hosts must call it. It is compiled once
        for each shape.
    """
    update = make_update(model, optimizer, config)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def count(state: TrainState, batch: Batch) -> dict[str, Any]:
        computed = update(state, batch)

        def loss(outputs: Outputs) -> Any:
            return batch_loss(outputs, batch, state.normalizer, config).total

        losses = image_losses(computed.outputs, batch, config)[:2]
        gradients, fields = jax.grad(loss)(computed.outputs), batch._asdict()
        by_image = {
            "batch": {"pixels": fields.pop("images"), **fields},
            "outputs": by_level(computed.outputs, config.anchors.min_level),
            "losses": dict(zip(("classification", "box"), losses, strict=True)),
            "gradients of outputs": by_level(gradients, config.anchors.min_level),
        }
        whole = {
            **parts_of_state(state, ""),
            "gradients": computed.gradients,
            **parts_of_state(computed.state, " after"),
        }
        return count_nonfinite(by_image, first_axis=1) | count_nonfinite(whole, first_axis=0)

    def diagnose(
        state: TrainState,
        batch: Batch,
        step: int,
        metrics: Mapping[str, Any],
        images: Sequence[ImageName],
    ) -> Diagnosis:
        counts = jax.device_get(count(state, batch))
        values = {name: float(x) for name, x in metrics.items() if name != "is_finite"}
        arrays = tuple(nonfinite_arrays(counts, images))
        return Diagnosis(step, values, arrays, len(images), tuple(remedies(config)))

    return diagnose


def by_level(outputs: Outputs, min_level: int) -> dict[str, Any]:
    """Return outputs of the network, or gradients of them, with the name of each."""
    return {
        f"{name} of level {level}": x
        for name, levels in outputs._asdict().items()
        for level, x in enumerate(levels, start=min_level)
    }


def parts_of_state(state: TrainState, suffix: str) -> dict[str, Any]:
    """Return the arrays of a state by the part that they are; names of parts end with `suffix`."""
    arrays = (state.params, state.batch_stats, state.opt_state, state.normalizer, state.average)
    return {f"{name}{suffix}": tree for name, tree in zip(STATE_PARTS, arrays, strict=True)}


def count_nonfinite(tree: Any, *, first_axis: int) -> Any:
    """Return the number of numbers that are not finite, in each array of a tree.

    Args:
        tree: Arrays.
        first_axis: The first axis that is counted over: 1 to count for each image of a batch.
    """
    return jax.tree.map(
        lambda x: jnp.sum(~jnp.isfinite(x), axis=tuple(range(first_axis, x.ndim))), tree
    )


def nonfinite_arrays(
    counts: Mapping[str, Any], images: Sequence[ImageName]
) -> Iterator[NonfiniteArray]:
    """Yield the arrays with numbers that are not finite, in the order of cause and effect.

    Args:
        counts: For each of PARTS, a tree of the counts that `count_nonfinite` returns.
        images: The names of the batch's images.
    """
    for part in PARTS:
        leaves = jax.tree_util.tree_leaves_with_path(counts[part])
        named = {array_name(path): np.asarray(x) for path, x in leaves if np.any(x)}
        order = sorted(named, key=backward_order) if part == "gradients" else named
        for name in order:
            indices = np.flatnonzero(named[name]).tolist() if named[name].ndim else []
            affected = dict.fromkeys(images[index] for index in indices)
            yield NonfiniteArray(part, name, int(named[name].sum()), tuple(affected))


def array_name(path: KeyPath) -> str:
    """Return the name of an array: that of a parameter, after that of an optimizer's slot."""
    slot = max((i for i, key in enumerate(path) if isinstance(key, GetAttrKey)), default=None)
    names = [str(key.key) for key in path[slot or 0 :] if isinstance(key, DictKey)]
    name = "/".join(names)
    return name if slot is None else f"{path[slot].name} of {name}"


def backward_order(name: str) -> int:
    """Return the position of a parameter in the backward pass."""
    return next((i for i, module in enumerate(BACKWARD) if name.startswith(module)), len(BACKWARD))


def remedies(config: ConfigDict) -> Iterator[str]:
    """Yield what may make a training converge that diverges."""
    optimizer = config.optimizer
    yield f"a lower --config.optimizer.learning_rate than {optimizer.learning_rate:g}"
    yield f"a larger --config.optimizer.warmup_steps than {optimizer.warmup_steps}"
    if not optimizer.clip_norm:
        yield "--config.optimizer.clip_norm=10"
    if config.dtype == "bfloat16":
        yield "--config.dtype=float32"
