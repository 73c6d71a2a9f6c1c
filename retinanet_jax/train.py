"""Training: one jitted, sharded step, and the loop around it."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from retinanet_jax import checkpoint, datasets, download, evaluate, sharding, transfer, weights
from retinanet_jax.checkpoint import Checkpoints, Trained, check_shapes
from retinanet_jax.compilation import Programs, start_compiler
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources import Category, Source
from retinanet_jax.detector import batch_loss, build_model, choose, initialize, network_input
from retinanet_jax.models import RetinaNet, is_frozen
from retinanet_jax.report import Report


class TrainState(NamedTuple):
    """All that one step passes to the next."""

    step: Int[Array, ""]  # steps done
    params: dict[str, Any]
    batch_stats: dict[str, Any]  # statistics of batch norms; all of frozen norms
    opt_state: optax.OptState
    normalizer: Float[Array, ""]  # moving count of foreground anchors, for loss.normalizer="ema"

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def training(self) -> dict[str, Any]:
        """What resuming needs beside the variables."""
        return {"step": self.step, "opt_state": self.opt_state, "normalizer": self.normalizer}


def is_due(step: int, every: int, total: int) -> bool:
    """Whether something done every `every` steps, and after the last, is due after `step`."""
    return step % every == 0 or step == total


def scaled_learning_rate(config: ConfigDict) -> float:
    """The peak learning rate: linear in the batch (Goyal et al. 2017)."""
    optimizer = config.optimizer
    return optimizer.learning_rate * config.data.batch_size / optimizer.reference_batch_size


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Steps done -> learning rate: linear warm-up, then drops or a cosine to zero."""
    optimizer, total = config.optimizer, config.total_steps
    peak = scaled_learning_rate(config)
    after_warmup = choose(
        "optimizer.schedule",
        optimizer.schedule,
        {
            "step": optax.piecewise_constant_schedule(
                peak, {round(share * total): optimizer.drop_factor for share in optimizer.drops}
            ),
            "cosine": optax.cosine_decay_schedule(peak, total),
        },
    )

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        progress = jnp.minimum((step + 1) / max(optimizer.warmup_steps, 1), 1.0)
        warmup = optimizer.warmup_factor + (1 - optimizer.warmup_factor) * progress
        return after_warmup(step) * warmup

    return schedule


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clipping, then SGD with momentum or AdamW; frozen stages have no state and never move."""
    optimizer, schedule = config.optimizer, make_schedule(config)

    def kernels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    def labels(params: Any) -> Any:
        def label(path, _):
            names = tuple(key.key for key in path)
            return "frozen" if is_frozen(names, config.model.frozen_stages) else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    decay = optimizer.weight_decay
    update = choose(
        "optimizer.name",
        optimizer.name,
        {
            "sgd": optax.chain(
                optax.add_decayed_weights(decay, mask=kernels),
                optax.sgd(schedule, momentum=optimizer.momentum),
            ),
            "adamw": optax.adamw(schedule, weight_decay=decay, mask=kernels),
        },
    )
    clip = (
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    )
    return optax.multi_transform(
        {"trained": optax.chain(clip, update), "frozen": optax.set_to_zero()}, labels
    )


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
) -> Trained:
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


def make_train_step(
    model: RetinaNet, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A pure `(state, batch) -> (state, metrics)`; the caller jits and shards it."""
    schedule = make_schedule(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        def objective(params):
            outputs, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                network_input(batch, config, train=True),
                train=True,
                mutable=["batch_stats"],
            )
            terms = batch_loss(outputs, batch, state.normalizer, config)
            return terms.total, (terms, updated.get("batch_stats", {}))

        gradients, (terms, batch_stats) = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            "loss": terms.total,
            "loss/classification": terms.classification,
            "loss/box": terms.box,
            "learning_rate": jnp.asarray(schedule(state.step)),
            "num_foreground": terms.num_foreground,
            "dropped_boxes": jnp.sum(batch.weights * batch.dropped),
            "gradient_norm": optax.global_norm(gradients),
        }
        params = optax.apply_updates(state.params, updates)
        done = TrainState(state.step + 1, params, batch_stats, opt_state, terms.normalizer)
        return done, metrics

    return train_step


def train(config: ConfigDict, workdir: pathlib.Path, *, evaluates: bool) -> None:
    """Trains to config.total_steps, from the newest checkpoint in `workdir` if there is one."""
    check_cadence(config)
    if evaluates:
        evaluate.coco_api(config.evaluator)  # it is told now if that is not installed
    mesh = sharding.make_mesh(config.space)
    sharding.check_batch_size("data.batch_size", config.data.batch_size, mesh)
    sharding.check_heights(config.data.buckets, config.anchors.max_level, mesh)
    if evaluates:
        train_data, eval_data = datasets.open_sources(config, workdir)
        datasets.check_pictures(eval_data)
    else:
        train_data, eval_data = datasets.open_training(config, workdir), None
    datasets.check_training_data(train_data)
    plan = datasets.train_plan(config, train_data)
    model = build_model(config, len(train_data.categories))
    optimizer = make_optimizer(config)
    with (
        Checkpoints(workdir, config, train_data.categories) as checkpoints,
        start_compiler() as compiler,
    ):
        state = first_state(config, train_data.categories, optimizer, checkpoints, mesh)
        start = int(state.step)
        describe(config, train_data, eval_data, plan, state, mesh)
        shardings = sharding.batch_shardings(mesh)
        train_step = jax.jit(
            make_train_step(model, optimizer, config),
            in_shardings=(sharding.replicated(mesh), shardings),
            out_shardings=sharding.replicated(mesh),
            donate_argnums=0,
        )
        step_fn = Programs("training", train_step, compiler)
        evaluator = None
        if eval_data:
            evaluator = evaluate.Evaluator(config, model, eval_data, mesh, compiler)
        steps = range(start, config.total_steps)
        # What an epoch uses; the odd shape that comes later is compiled then.
        step_fn.prepare(state, batch_shapes(train_data, plan, steps[: plan.steps_per_epoch]))
        host_batches = datasets.host_batches(config, train_data, plan, steps)
        with Report(
            workdir,
            start_step=start,
            total_steps=config.total_steps,
            writes=jax.process_index() == 0,
        ) as report:
            compiled = set()
            for step, host_batch in enumerate(report.arriving(host_batches), start + 1):
                state, metrics = step_fn(state, sharding.to_devices(host_batch, shardings))
                report.running(metrics["loss"])
                if host_batch.images.shape not in compiled:
                    compiled.add(host_batch.images.shape)
                    report.restart_clock(step - 1)  # compiling is done, the step itself runs on
                if is_due(step, config.log_every, config.total_steps):
                    log_step(step, metrics, config, report)
                ap = None
                if evaluator and is_due(step, config.evaluate_every, config.total_steps):
                    results = evaluator.run(state.variables, step)
                    ap = evaluate.write(results, eval_data, step, workdir, config.evaluator, report)
                    report.restart_clock(step)
                if ap is not None or is_due(step, config.checkpoint_every, config.total_steps):
                    finite_metrics(step, metrics, config)  # a diverged state must not be resumed
                    checkpoints.save(step, state.variables, state.training, ap)


def first_state(
    config: ConfigDict,
    categories: Sequence[Category],
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
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


def check_cadence(config: ConfigDict) -> None:
    """Raises ValueError where something is to be done every 0 steps."""
    for name in ("total_steps", "log_every", "checkpoint_every", "evaluate_every"):
        if config[name] < 1:
            raise ValueError(f"config.{name}={config[name]} must be at least 1.")


def log_step(step: int, metrics: dict[str, Array], config: ConfigDict, report: Report) -> None:
    """Fetches and reports one step's metrics; raises as `finite_metrics` does."""
    report.train_step(step, finite_metrics(step, metrics, config), config.data.batch_size)


def finite_metrics(step: int, metrics: dict[str, Array], config: ConfigDict) -> dict[str, float]:
    """The metrics as numbers; FloatingPointError where the loss or its gradient is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    for name in ("loss", "gradient_norm"):
        if not np.isfinite(values[name]):
            raise FloatingPointError(
                f"the {name} became {values[name]} within steps "
                f"{max(step - config.log_every, 0) + 1}..{step} (classification "
                f"{values['loss/classification']}, box {values['loss/box']}); try a lower "
                "--config.optimizer.learning_rate or more --config.optimizer.warmup_steps."
            )
    return values


def describe(
    config: ConfigDict,
    train_data: Source,
    eval_data: Source | None,
    plan: TrainPlan,
    state: TrainState,
    mesh: jax.sharding.Mesh,
) -> None:
    """Prints what a person wants to know before a long run."""
    optimizer, data = config.optimizer, config.data
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{mesh.shape['data']} x {mesh.shape['space']} devices (data x space), "
        f"{jax.devices()[0].device_kind}; {parameters:,} parameters\n"
        f"{len(train_data)} training and {len(eval_data or ())} evaluation images of "
        f"{len(train_data.categories)} categories, {plan.steps_per_epoch} steps an epoch\n"
        f"learning rate {scaled_learning_rate(config):g} = {optimizer.learning_rate:g} at batch "
        f"{optimizer.reference_batch_size}, scaled to batch {data.batch_size}\n"
        f"steps {int(state.step)} to {config.total_steps}, from {beginning(config, state)}",
        flush=True,
    )
    tell_long_warmup(config)


def tell_long_warmup(config: ConfigDict) -> None:
    """Prints a warning where most of the run has less than its learning rate."""
    if config.optimizer.warmup_steps > config.total_steps / 2:
        print(
            f"warning: the learning rate rises for {config.optimizer.warmup_steps} of "
            f"{config.total_steps} steps; lower --config.optimizer.warmup_steps or train longer.",
            flush=True,
        )


def beginning(config: ConfigDict, state: TrainState) -> str:
    """Where the first parameters of this run come from."""
    if state.step:
        return f"checkpoint {int(state.step)}"
    return config.init.path or "random parameters"
