"""The training loop: a jitted, sharded step, with logging, evaluations and checkpoints."""

import collections
import contextlib
import pathlib

import jax
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from retinanet_jax import datasets, input_pipeline, sharding
from retinanet_jax.checkpoint import CheckpointManager, newest_step
from retinanet_jax.compilation import CompiledByShape, black_batch, start_compiler
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.evaluation import coco_metrics, records
from retinanet_jax.evaluation.evaluator import Evaluator
from retinanet_jax.modeling import build_model
from retinanet_jax.training.evaluations import TrainingEvaluations
from retinanet_jax.training.initialization import restore_or_initialize
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.training.objective import normalizer_shape
from retinanet_jax.training.optimizer import make_optimizer, scaled_learning_rate
from retinanet_jax.training.step import TrainState, make_train_step

MAX_STEPS_AHEAD = 2  # the devices compute one step while the next one waits


def train(config: ConfigDict, workdir: pathlib.Path, *, evaluates: bool) -> None:
    """Train to config.total_steps, from the newest checkpoint in `workdir` if there is one.

    Args:
        config: The run's config.
        workdir: The run's working directory, for checkpoints, metrics and evaluations.
        evaluates: Whether to evaluate on config.data.eval every config.evaluate_every steps.

    Raises:
        ValueError: If the config, the datasets, the devices or the checkpoint do not fit together.
        FloatingPointError: If the loss or its gradient is not finite.
    """
    check_intervals(config)
    # A run that ended before its last AP was known is not done: it computes the AP first.
    if not (evaluates and records.steps_without_ap(workdir)):
        check_steps_left(config, workdir)
    optimizer = make_optimizer(config)
    normalizer_shape(config)  # raises now if the batch cannot be split into groups
    if evaluates:
        coco_metrics.coco_api(config.evaluator)  # raises now if it is not installed
    mesh = sharding.make_mesh(config.space)
    sharding.check_batch_size("data.batch_size", config.data.batch_size, mesh)
    sharding.check_heights(config.data.buckets, config.anchors.max_level, mesh)
    train_data, eval_data = open_data(config, workdir, evaluates)
    plan = input_pipeline.train_plan(config, train_data)
    model = build_model(config, len(train_data.categories))
    shardings = sharding.batch_shardings(mesh)
    train_step = jax.jit(
        make_train_step(model, optimizer, config),
        in_shardings=(sharding.replicated(mesh), shardings),
        out_shardings=sharding.replicated(mesh),
        donate_argnums=0,
    )
    with (
        CheckpointManager(workdir, config, train_data.categories) as checkpoints,
        start_compiler() as compiler,
    ):
        state = restore_or_initialize(config, train_data.categories, optimizer, checkpoints, mesh)
        start, total = int(state.step), config.total_steps
        print_summary(config, train_data, eval_data, plan, state, mesh)
        compiled_step = CompiledByShape("training", train_step, compiler)
        evaluator = Evaluator(config, model, eval_data, mesh, compiler) if eval_data else None
        steps = range(start, total)
        state = run_largest_shapes(compiled_step, evaluator, state, train_data, plan, steps, mesh)
        host_batches = input_pipeline.host_batches(config, train_data, plan, steps)
        running: collections.deque[Array] = collections.deque()
        with (
            MetricWriter(
                workdir,
                start_step=start,
                total_steps=total,
                evaluate_every=config.evaluate_every if evaluates else None,
                writes=jax.process_index() == 0,
            ) as writer,
            TrainingEvaluations(config, evaluator, workdir, checkpoints, writer)
            if evaluator
            else contextlib.nullcontext() as evaluations,
        ):
            for step, host_batch in enumerate(writer.measure_idle_time(host_batches), start + 1):
                state, metrics = compiled_step(state, sharding.put_batch(host_batch, shardings))
                writer.watch_step(metrics["loss"])
                wait_for_earlier_steps(running, metrics["loss"])
                if is_due(step, config.log_every, total):
                    log_step(step, metrics, config, writer)
                is_evaluated = evaluates and is_due(step, config.evaluate_every, total)
                if is_evaluated or is_due(step, config.checkpoint_every, total):
                    finite_metrics(step, metrics, config)  # a diverged state must not be resumed
                    if evaluations and is_evaluated:
                        with writer.measure_evaluation():
                            evaluations.evaluate(state.variables, step)
                    else:
                        records.remove_evaluation(workdir, step)
                    checkpoints.save(step, state.variables, state.training, awaits_ap=is_evaluated)
                if evaluations:
                    evaluations.report()


def open_data(
    config: ConfigDict, workdir: pathlib.Path, evaluates: bool
) -> tuple[Source, Source | None]:
    """Open and check the training data and, if the run evaluates, the evaluation data.

    Args:
        config: The run's config.
        workdir: The folder for generated datasets.
        evaluates: Whether the run evaluates.

    Raises:
        ValueError: If a dataset is invalid, or the categories of both differ.
        OSError: If a file cannot be read.
    """
    if evaluates:
        train_data, eval_data = datasets.open_sources(config, workdir)
        datasets.check_images(eval_data)
        datasets.check_evaluation_data(eval_data, max_detections=config.detections.max_detections)
    else:
        train_data, eval_data = datasets.open_training(config, workdir), None
    datasets.check_training_data(train_data)
    return train_data, eval_data


def run_largest_shapes(
    compiled_step: CompiledByShape,
    evaluator: Evaluator | None,
    state: TrainState,
    train_data: Source,
    plan: TrainPlan,
    steps: range,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """Start to compile the training step, and run it on black images of the largest shape.

    Too little memory is then an error now, and not when such images first occur, which may be hours
    later. The evaluation is run, too, if its largest batch has more pixels.

    Args:
        compiled_step: The training step.
        evaluator: The evaluation; None if there is none.
        state: The state that the run starts from. Use the returned one instead: the step reuses the
            memory of this one.
        train_data: The training data.
        plan: The plan of the training batches.
        steps: The steps of this run.
        mesh: The devices.

    Returns:
        The same state.
    """
    # The shapes of the first epoch; a shape that first occurs later is compiled then.
    batches = list(batch_shapes(train_data, plan, steps[: plan.steps_per_epoch]))
    if not batches:
        return state
    largest = black_batch(batches[0], plan.largest_bucket)
    compiled_step.prepare(state, [largest, *batches])
    if evaluator and evaluator.largest_batch.images.size > largest.images.size:
        evaluator.run_largest(state.variables)
    if batches[0].images.shape == largest.images.shape:
        return state  # the first step has this shape
    on_host = jax.tree.map(np.array, jax.device_get(state))
    host_part = jax.tree.map(lambda x: x[: len(x) // jax.process_count()], largest)
    device_batch = sharding.put_batch(host_part, sharding.batch_shardings(mesh))
    jax.block_until_ready(compiled_step(state, device_batch))
    return sharding.put_replicated(on_host, mesh)


def wait_for_earlier_steps(running: collections.deque[Array], result: Array) -> None:
    """Wait until at most MAX_STEPS_AHEAD steps are running or waiting on the devices.

    Each of them has a batch in the devices' memory.

    Args:
        running: Results of the latest steps, to which `result` is added.
        result: A result of the step that was just started.
    """
    running.append(result)
    if len(running) > MAX_STEPS_AHEAD:
        running.popleft().block_until_ready()


def check_intervals(config: ConfigDict) -> None:
    """Raise ValueError if the run or one of its intervals has no steps."""
    for name in ("total_steps", "log_every", "checkpoint_every", "evaluate_every"):
        if config[name] < 1:
            raise ValueError(f"config.{name}={config[name]} must be at least 1.")


def check_steps_left(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raise ValueError if the newest checkpoint in `workdir` already has all steps of the run."""
    step = newest_step(workdir)
    if config.total_steps <= step:
        raise ValueError(
            f"already done; the newest checkpoint in {workdir} is that of step {step}, and "
            f"config.total_steps={config.total_steps}. Give a larger --config.total_steps to train "
            "on, --mode=evaluate to evaluate, or another --workdir."
        )


def is_due(step: int, every: int, total: int) -> bool:
    """Return whether `step` is a multiple of `every` or the last of `total` steps."""
    return step % every == 0 or step == total


def log_step(
    step: int, metrics: dict[str, Array], config: ConfigDict, writer: MetricWriter
) -> None:
    """Fetch and write the metrics of one step.

    Args:
        step: Number of steps done.
        metrics: The metrics that the train step returns.
        config: The run's config.
        writer: The writer of the run's metrics.

    Raises:
        FloatingPointError: If the loss or its gradient is not finite.
    """
    writer.write_step(step, finite_metrics(step, metrics, config), config.data.batch_size)


def finite_metrics(step: int, metrics: dict[str, Array], config: ConfigDict) -> dict[str, float]:
    """Return the metrics of one step as numbers.

    Args:
        step: Number of steps done.
        metrics: The metrics that the train step returns.
        config: The run's config.

    Raises:
        FloatingPointError: If the loss or its gradient is not finite. Only logged steps are
            checked, so the message names all steps since the last logged one.
    """
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


def print_summary(
    config: ConfigDict,
    train_data: Source,
    eval_data: Source | None,
    plan: TrainPlan,
    state: TrainState,
    mesh: jax.sharding.Mesh,
) -> None:
    """Print the devices, parameters, datasets, learning rate and steps of a run.

    Args:
        config: The run's config.
        train_data: The training data.
        eval_data: The evaluation data; None if there is no evaluation.
        plan: The plan of the training batches.
        state: The state that the run starts from.
        mesh: The devices.
    """
    optimizer, data = config.optimizer, config.data
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{mesh.shape['data']} x {mesh.shape['space']} devices (data x space), "
        f"{jax.devices()[0].device_kind}; {num_parameters:,} parameters\n"
        f"{len(train_data)} training and {len(eval_data or ())} evaluation images of "
        f"{len(train_data.categories)} categories, {plan.steps_per_epoch} steps per epoch\n"
        f"learning rate {scaled_learning_rate(config):g} ({optimizer.learning_rate:g} for batch "
        f"size {optimizer.reference_batch_size}, scaled to batch size {data.batch_size})\n"
        f"training from step {int(state.step)} to {config.total_steps}, starting from "
        f"{starting_point(config, state)}",
        flush=True,
    )
    warn_of_long_warmup(config)


def starting_point(config: ConfigDict, state: TrainState) -> str:
    """Return a description of the parameters that this run starts from, for its summary."""
    if state.step:
        return f"checkpoint {int(state.step)}"
    return config.init.path or "random parameters"


def warn_of_long_warmup(config: ConfigDict) -> None:
    """Print a warning if the learning rate is below its peak during most of the run."""
    if config.optimizer.warmup_steps > config.total_steps / 2:
        print(
            f"warning: the learning rate rises for {config.optimizer.warmup_steps} of "
            f"{config.total_steps} steps; lower --config.optimizer.warmup_steps or train longer.",
            flush=True,
        )
