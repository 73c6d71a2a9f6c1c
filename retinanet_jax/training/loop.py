"""Training: one jitted, sharded step, and the loop around it."""

import pathlib

import jax
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from retinanet_jax import input_pipeline, sharding
from retinanet_jax.checkpoint import CheckpointManager
from retinanet_jax.compilation import CompiledByShape, start_compiler
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.evaluation import coco_metrics
from retinanet_jax.modeling import build_model
from retinanet_jax.training.initialization import first_state
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.training.optimizer import make_optimizer, scaled_learning_rate
from retinanet_jax.training.step import TrainState, make_train_step


def is_due(step: int, every: int, total: int) -> bool:
    """Whether something done every `every` steps, and after the last, is due after `step`."""
    return step % every == 0 or step == total


def train(config: ConfigDict, workdir: pathlib.Path, *, evaluates: bool) -> None:
    """Trains to config.total_steps, from the newest checkpoint in `workdir` if there is one."""
    check_cadence(config)
    if evaluates:
        coco_metrics.coco_api(config.evaluator)  # it is told now if that is not installed
    mesh = sharding.make_mesh(config.space)
    sharding.check_batch_size("data.batch_size", config.data.batch_size, mesh)
    sharding.check_heights(config.data.buckets, config.anchors.max_level, mesh)
    if evaluates:
        train_data, eval_data = input_pipeline.open_sources(config, workdir)
        input_pipeline.check_images(eval_data)
    else:
        train_data, eval_data = input_pipeline.open_training(config, workdir), None
    input_pipeline.check_training_data(train_data)
    plan = input_pipeline.train_plan(config, train_data)
    model = build_model(config, len(train_data.categories))
    optimizer = make_optimizer(config)
    with (
        CheckpointManager(workdir, config, train_data.categories) as checkpoints,
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
        step_fn = CompiledByShape("training", train_step, compiler)
        evaluator = None
        if eval_data:
            evaluator = evaluator.Evaluator(config, model, eval_data, mesh, compiler)
        steps = range(start, config.total_steps)
        # What an epoch uses; the odd shape that comes later is compiled then.
        step_fn.prepare(state, batch_shapes(train_data, plan, steps[: plan.steps_per_epoch]))
        host_batches = input_pipeline.host_batches(config, train_data, plan, steps)
        with MetricWriter(
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
                    ap = evaluator.write(
                        results, eval_data, step, workdir, config.evaluator, report
                    )
                    report.restart_clock(step)
                if ap is not None or is_due(step, config.checkpoint_every, config.total_steps):
                    finite_metrics(step, metrics, config)  # a diverged state must not be resumed
                    checkpoints.save(step, state.variables, state.training, ap)


def check_cadence(config: ConfigDict) -> None:
    """Raises ValueError where something is to be done every 0 steps."""
    for name in ("total_steps", "log_every", "checkpoint_every", "evaluate_every"):
        if config[name] < 1:
            raise ValueError(f"config.{name}={config[name]} must be at least 1.")


def log_step(
    step: int, metrics: dict[str, Array], config: ConfigDict, report: MetricWriter
) -> None:
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
    warn_of_long_warmup(config)


def warn_of_long_warmup(config: ConfigDict) -> None:
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
