"""The state that a run starts from."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from retinanet_jax import checkpoint, sharding, weights
from retinanet_jax.checkpoint import Checkpoint, CheckpointManager, check_shapes
from retinanet_jax.data.sources.base import Category
from retinanet_jax.modeling import initialize
from retinanet_jax.training import transfer
from retinanet_jax.training.step import TrainState
from retinanet_jax.weights import download


def random_state(
    config: ConfigDict, num_classes: int, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step, with a random network."""
    return state_of(initialize(config, num_classes, config.seed), config, optimizer)


def state_of(
    variables: dict[str, Any], config: ConfigDict, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step, with the network's `variables`."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        normalizer=jnp.asarray(config.loss.ema_start, jnp.float32),
    )


def initial_state(
    config: ConfigDict, categories: Sequence[Category], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step: random, but for the weights that config.init names.

    Those are a backbone's, or with init.source="checkpoint" a whole detector's.
    """
    if not config.init.source:
        return random_state(config, len(categories), optimizer)
    # The file comes first: where it is missing, nobody waits for the compiler to hear of it.
    if config.init.source == "checkpoint":
        trained = load_detector(config, categories, optimizer)
        variables = initialize(config, len(categories), config.seed)
        variables = transfer.transferred(trained, variables, categories)
    else:
        imported = load_backbone(config)
        variables = random_around_backbone(config, len(categories))
        variables = with_backbone(variables, imported, config.init.path)
    return state_of(variables, config, optimizer)


def load_detector(
    config: ConfigDict, categories: Sequence[Category], optimizer: optax.GradientTransformation
) -> Checkpoint:
    """The checkpoint that config.init names, after telling what of it is taken.

    Raises ValueError where more than the classification output differs, or the weights mean
    something else.
    """
    trained = checkpoint.load(config.init.path)
    shapes = jax.eval_shape(lambda: random_state(config, len(categories), optimizer))
    fitted = transfer.fit(trained, shapes.variables, categories)
    print(transfer.table(fitted, trained, categories), flush=True)
    transfer.check(fitted, trained, config)
    return trained


def load_backbone(config: ConfigDict) -> dict[str, Any]:
    """The backbone's variables from the file that config.init names; a published one is fetched."""
    init, model = config.init, config.model
    path = init.path
    if pathlib.Path(path).name in download.KNOWN:
        path = download.locate(path)
    return weights.load_backbone(init.source, path, architecture=model.backbone, norm=model.norm)


def random_around_backbone(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Random variables, of the backbone their shapes alone.

    It has most of the kernels, and drawing each is code to be compiled.
    """

    def drawn() -> dict[str, Any]:
        return initialize(config, num_classes, config.seed)

    def around() -> dict[str, Any]:
        return {
            name: {part: x for part, x in tree.items() if part != "backbone"}
            for name, tree in drawn().items()
        }

    rest = jax.jit(around)()
    return {name: {**tree, **rest[name]} for name, tree in jax.eval_shape(drawn).items()}


def with_backbone(variables: dict[str, Any], imported: dict[str, Any], path: str) -> dict[str, Any]:
    """`variables` with the backbone's replaced by those `imported` from `path`."""
    initial = {name: tree.get("backbone", {}) for name, tree in variables.items()}
    check_shapes(path, imported, initial, what="weights of another backbone")
    return {name: {**tree, "backbone": imported[name]} for name, tree in variables.items()}


def first_state(
    config: ConfigDict,
    categories: Sequence[Category],
    optimizer: optax.GradientTransformation,
    checkpoints: CheckpointManager,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """The newest checkpoint's state; the initial one where there is no checkpoint yet."""
    step = checkpoints.latest_step()
    if step is None:
        return sharding.put_replicated(initial_state(config, categories, optimizer), mesh)
    # Shapes are all that restoring needs: no random network is compiled, no weights file read.
    shapes = jax.eval_shape(lambda: random_state(config, len(categories), optimizer))
    target = sharding.replicated_shapes(shapes, mesh)
    variables, training = checkpoints.restore(step, target.variables, target.training)
    return TrainState(**variables, **training)
