"""The state that training starts from.

A run that is resumed starts from its newest checkpoint. A new run starts from random variables,
except for the weights that `config.init` names: those of a backbone or of a whole detector.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from retinanet_jax import sharding, weights
from retinanet_jax.checkpoint import Checkpoint, CheckpointManager, check_shapes
from retinanet_jax.data.sources.base import Category
from retinanet_jax.modeling import initialize
from retinanet_jax.stored_config import differences, flag_of, network_differences
from retinanet_jax.training import transfer
from retinanet_jax.training.normalizers import normalizer_shape
from retinanet_jax.training.optimizer import print_rate_change
from retinanet_jax.training.step import TrainState, state_shardings
from retinanet_jax.weights import cached, download, named
from retinanet_jax.weights.resnet import join_names

RATE_FIELDS = ("optimizer.learning_rate", "optimizer.reference_batch_size")
# Fields of `data` that change neither the images of a run nor how they are evaluated.
SAME_IMAGES = {f"data.{name}" for name in ("loader", "prefetch", "threads", "eval_batch_size")}


def restore_or_initialize(
    config: ConfigDict,
    categories: Sequence[Category],
    optimizer: optax.GradientTransformation,
    checkpoints: CheckpointManager,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """Return the newest checkpoint's state, or the initial one if there is no checkpoint yet.

    Args:
        config: A run's config.
        categories: The dataset's categories, in the order of their classes.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
        checkpoints: The checkpoints of the run's working directory.
        mesh: The devices.
    """
    step = checkpoints.latest_step()
    if step is None:
        state = initial_train_state(config, categories, optimizer)
        return jax.device_put(state, state_shardings(state.opt_state, config, mesh))
    # Restoring needs only shapes: no random network is compiled, no weights file is read.
    shapes = jax.eval_shape(lambda: random_train_state(config, len(categories), optimizer))
    saved = checkpoints.saved_config(step)
    shapes = shapes._replace(average=shapes.latest if saved.optimizer.ema_decay else None)
    target = sharding.with_shardings(shapes, state_shardings(shapes.opt_state, config, mesh))
    state = TrainState.of_checkpoint(*checkpoints.restore(step, target.variables, target.training))
    print_image_change(saved, config, step)
    print_rate_change(saved, config, step)
    return with_average_of(config, state)


def print_image_change(saved: ConfigDict, config: ConfigDict, step: int) -> None:
    """Print in one line if a resumed run prepares images in another way than before.

    Args:
        saved: The config of the checkpoint that the run resumes from.
        config: The config of the resumed run.
        step: Number of steps done.
    """
    before = {name: value for name, value, _ in differences(saved, config)}
    names = [
        name
        for name in before
        if name.startswith("data.")
        if name not in SAME_IMAGES and not name.startswith(("data.train.", "data.eval."))
    ]
    if "data.batch_size" in names:  # the learning rate is meant for a batch
        names += [name for name in RATE_FIELDS if name in before]
    if names:
        flags = (flag_of(name, before[name]) for name in names)
        print(
            f"images are prepared in another way from step {step + 1} on; to keep that of the "
            f"checkpoint's config, give {' '.join(flags)}",
            flush=True,
        )


def with_average_of(config: ConfigDict, state: TrainState) -> TrainState:
    """Return a restored state with or without an average of the variables; print a change.

    Args:
        config: The config of the resumed run.
        state: The state, with an average if the run that saved it kept one.
    """
    step, decay = int(state.step), config.optimizer.ema_decay
    if decay and state.average is None:
        print(f"the average of the variables starts with those of step {step}", flush=True)
        return state._replace(average=first_average(state.latest))
    if state.average is not None and not decay:
        print(
            f"the average of the variables ends with step {step}: training continues with the "
            "latest variables, and these are evaluated",
            flush=True,
        )
        return state._replace(average=None)
    return state


def first_average(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the average of the variables before the first step that it covers: a copy.

    A step reuses the memory of its state, in which each array must therefore be another one.

    Args:
        variables: Those that the step changes.
    """
    return jax.tree.map(jnp.copy, variables)


def initial_train_state(
    config: ConfigDict, categories: Sequence[Category], optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step, with the weights that `config.init` names.

    These are the weights of a backbone or, with init.source="checkpoint", of a whole detector. All
    other variables are random.

    Args:
        config: A run's config.
        categories: The dataset's categories, in the order of their classes.
        optimizer: The optimizer that `make_optimizer` returns for `config`.

    Raises:
        FileNotFoundError: If there are no weights at init.path.
        ValueError: If the weights do not fit the network.
    """
    if not config.init.source:
        return random_train_state(config, len(categories), optimizer)
    # Read the weights first: an error in them should not come after minutes of compiling.
    if config.init.source == "checkpoint":
        source = load_init_checkpoint(config, categories, optimizer)
        variables = initialize(config, len(categories), config.seed)
        variables = transfer.transfer_variables(source, variables, categories)
    else:
        backbone = load_init_backbone(config)
        variables = random_variables_except_backbone(config, len(categories))
        variables = replace_backbone(variables, backbone, config.init.path)
    return train_state_from_variables(variables, config, optimizer)


def random_train_state(
    config: ConfigDict, num_classes: int, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step, with only random variables.

    Args:
        config: A run's config; its seed determines the variables.
        num_classes: Number of classes that the network detects.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
    """
    variables = initialize(config, num_classes, config.seed)
    return train_state_from_variables(variables, config, optimizer)


def train_state_from_variables(
    variables: Mapping[str, Any], config: ConfigDict, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step, with the given variables.

    Args:
        variables: The network's variables, {"params": ..., "batch_stats": ...}.
        config: A run's config.
        optimizer: The optimizer that `make_optimizer` returns for `config`.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=jax.jit(optimizer.init)(variables["params"]),  # else a program for each shape
        normalizer=jnp.full(normalizer_shape(config), config.loss.ema_start, jnp.float32),
        average=first_average(dict(variables)) if config.optimizer.ema_decay else None,
    )


def start_from(config: ConfigDict, weights: str) -> None:
    """Let a run start from weights, and check that its network is the one that they require.

    A path's network is checked when the weights are read.

    Args:
        config: The run's config; its `init` is changed.
        weights: A name or a path, as `cached.checkpoint_folder` accepts it or of a backbone.

    Raises:
        ValueError: If weights of this name require other values of config fields.
    """
    name = cached.name_of(weights)
    backbone = named.BACKBONES.get(name or "")
    config.init.update(source=backbone.source if backbone else "checkpoint", path=weights)
    if name is None:
        return
    required = config.copy_and_resolve_references().unlock()
    for section, fields in named.network_of(name).items():
        required[section].update(fields)
    wrong = [
        f"config.{field}={value} (this run has {current})"
        for field, value, current in network_differences(required, config)
        if field not in transfer.PADDING_FIELDS
    ]
    if wrong:
        raise ValueError(
            f"the weights {name} require {join_names(wrong)}; give these values, or "
            f"--config=configs/finetune.py --weights={name}."
        )


@contextlib.contextmanager
def weights_without_a_network() -> Iterator[None]:
    """Add to the error of a download how to start without one."""
    try:
        yield
    except download.DownloadError as error:
        raise download.DownloadError(
            f"{error} Without a network, --weights=DIR_OR_FILE starts from weights that are here."
        ) from None


def load_init_checkpoint(
    config: ConfigDict, categories: Sequence[Category], optimizer: optax.GradientTransformation
) -> Checkpoint:
    """Load the checkpoint that `config.init` names, and print which of its weights are used.

    Args:
        config: A run's config.
        categories: The dataset's categories, in the order of their classes.
        optimizer: The optimizer that `make_optimizer` returns for `config`.

    Raises:
        FileNotFoundError: If there is no checkpoint at init.path.
        ValueError: If arrays other than those of the classification output differ in shape, or if
            the same arrays mean something else in this run's network.
    """
    with weights_without_a_network():
        source = cached.load(config.init.path)
    shapes = jax.eval_shape(lambda: random_train_state(config, len(categories), optimizer))
    plan = transfer.plan_transfer(source, shapes.variables, categories)
    print(transfer.format_table(plan, source, categories), flush=True)
    transfer.check_transfer(plan, source, config)
    return source


def load_init_backbone(config: ConfigDict) -> dict[str, Any]:
    """Load the backbone that `config.init` names; published weights are downloaded if missing.

    Returns:
        The backbone's variables, {"params": ..., "batch_stats": ...}.
    """
    init, model = config.init, config.model
    with weights_without_a_network():
        path = named.locate(init.path)
    return weights.load_backbone(init.source, path, architecture=model.backbone, norm=model.norm)


def random_variables_except_backbone(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Return random variables of the network, with only shapes for those of the backbone.

    The backbone has most of the kernels, and sampling each of them is code to compile.
    """

    def random_variables() -> dict[str, Any]:
        return initialize(config, num_classes, config.seed)

    def without_backbone() -> dict[str, Any]:
        return {
            collection: {name: x for name, x in tree.items() if name != "backbone"}
            for collection, tree in random_variables().items()
        }

    others = jax.jit(without_backbone)()
    shapes = jax.eval_shape(random_variables)
    return {collection: {**tree, **others[collection]} for collection, tree in shapes.items()}


def replace_backbone(
    variables: Mapping[str, Any], backbone: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """Return `variables` with those of the backbone replaced.

    Args:
        variables: The network's variables; shapes are enough for those of the backbone.
        backbone: The backbone's variables, {"params": ..., "batch_stats": ...}.
        path: The file that they come from, for the error message.

    Raises:
        ValueError: If the arrays differ in name or shape.
    """
    current = {collection: tree.get("backbone", {}) for collection, tree in variables.items()}
    check_shapes(path, backbone, current, "weights of another backbone")
    return {
        collection: {**tree, "backbone": backbone[collection]}
        for collection, tree in variables.items()
    }
