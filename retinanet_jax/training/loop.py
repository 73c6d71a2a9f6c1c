"""The training loop: a jitted, sharded step, with logging, evaluations and checkpoints."""

import contextlib
import functools
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from retinanet_jax import datasets, hosts, input_pipeline, sharding
from retinanet_jax.checkpoint import CheckpointManager, newest_config, newest_step, recover
from retinanet_jax.compilation import CompiledByShape, black_batch, start_compiler
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.plan import TrainPlan
from retinanet_jax.data.sources.base import Source
from retinanet_jax.evaluation import coco_metrics, records
from retinanet_jax.evaluation.evaluator import Evaluator
from retinanet_jax.hosts.comparison import check_hosts_agree
from retinanet_jax.modeling import build_model
from retinanet_jax.stopping import Stopping
from retinanet_jax.training.automatic import INTERVALS, is_automatic, set_automatic_fields
from retinanet_jax.training.evaluations import TrainingEvaluations
from retinanet_jax.training.initialization import restore_or_initialize
from retinanet_jax.training.loggers import check_loggers, open_loggers
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.training.normalizers import normalizer_shape
from retinanet_jax.training.observation import Observation
from retinanet_jax.training.optimizer import make_optimizer
from retinanet_jax.training.patience import check_patience_left
from retinanet_jax.training.profiling import Profiler, check_profile
from retinanet_jax.training.step import TrainState, jit_train_step
from retinanet_jax.training.steps import StepLoop
from retinanet_jax.training.summary import print_summary
from retinanet_jax.training.tripwire import Examiner, Tripwire


def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    evaluates: bool,
    profile: range | None = None,
    age: float = 0.0,
) -> int:
    """Train to config.total_steps, from the newest checkpoint in `workdir` if there is one.

    Args:
        config: The run's config.
        workdir: The run's working directory, for checkpoints, metrics and evaluations.
        evaluates: Whether to evaluate on config.data.eval every config.evaluate_every steps.
        profile: The steps to profile, numbered as in the log; None for none.
        age: The seconds that have passed since the program was started.

    Returns:
        The signal that stopped the run; 0 if all steps are done.

    Raises:
        ValueError: If the config, the datasets, the devices or the checkpoint do not fit together,
            or all checkpoints are damaged.
        FloatingPointError: If the loss or its gradient is not finite.
    """
    observation = Observation(Profiler(workdir, profile), age)
    check_intervals(config)
    recover(workdir)
    mesh = sharding.make_mesh(config.space)
    check_settings(config, mesh, evaluates=evaluates)
    if not is_automatic(config):
        check_run(config, workdir, mesh, evaluates=evaluates, profile=profile)
    train_data, eval_data = open_data(config, workdir, evaluates)
    if is_automatic(config):
        config = set_automatic_fields(config, newest_config(workdir), train_data, mesh)
        check_run(config, workdir, mesh, evaluates=evaluates, profile=profile)
    optimizer = make_optimizer(config)
    plan = input_pipeline.train_plan(config, train_data)
    model = build_model(config, len(train_data.categories))
    with (
        observation,
        Stopping(hosts.joined()) as stopping,
        CheckpointManager(workdir, config, train_data.categories) as checkpoints,
        start_compiler() as compiler,
    ):
        datasets_by_name = {"data.train": train_data, "data.eval": eval_data}
        check_hosts_agree(config, datasets_by_name, checkpoints.latest_step() or 0, plan)
        if eval_data and not records.has_work_left(workdir):
            check_patience_left(config, workdir, eval_data)
        state = restore_or_initialize(config, train_data.categories, optimizer, checkpoints, mesh)
        start, total = int(state.step), config.total_steps
        print_summary(config, workdir, train_data, eval_data, plan, state, mesh)
        train_step = jit_train_step(model, optimizer, config, mesh)
        compiled_step = CompiledByShape("training", train_step, compiler, stopping)
        evaluator = None
        if eval_data:
            evaluator = Evaluator(config, model, eval_data, mesh, compiler, stopping)
        steps = range(start, total)
        with MetricWriter(
            workdir,
            observation,
            start_step=start,
            total_steps=total,
            evaluate_every=config.evaluate_every if evaluates else None,
            open_loggers=functools.partial(open_loggers, config, workdir),
            writes=jax.process_index() == 0,
        ) as writer:
            state = run_largest_shapes(
                compiled_step, evaluator, state, train_data, plan, steps, mesh
            )
            with (
                TrainingEvaluations(config, evaluator, workdir, checkpoints, writer, stopping)
                if evaluator
                else contextlib.nullcontext()
            ) as evaluations:
                tripwire = Tripwire(
                    Examiner(config, train_data, workdir, mesh, start),
                    lambda step: stopping.check_void(compiled_step.name, step - start),
                )
                loop = StepLoop(
                    config,
                    compiled_step,
                    mesh,
                    checkpoints,
                    observation,
                    writer,
                    evaluations,
                    tripwire,
                    stopping,
                    functools.partial(input_pipeline.void_batches, train_data, plan),
                )
                batches = input_pipeline.host_batches(config, train_data, plan, steps, stopping)
                with contextlib.closing(batches):
                    loop.run(state, batches)
    return stopping.signal if stopping.leaves_work else 0


def check_run(
    config: ConfigDict,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    *,
    evaluates: bool,
    profile: range | None,
) -> None:
    """Check the length, the batch size and the optimizer, which a run may set itself.

    Args:
        config: The run's config.
        workdir: As in `train`.
        mesh: The devices.
        evaluates: As in `train`.
        profile: As in `train`.

    Raises:
        ValueError: If a field has no possible value, or no steps are left.
    """
    # A run that ended before its last AP was known is not done.
    if not (evaluates and records.has_work_left(workdir)):
        check_steps_left(config, workdir)
    check_profile(profile, newest_step(workdir), config.total_steps)
    make_optimizer(config)
    normalizer_shape(config)
    sharding.check_batch_size(
        "data.batch_size", config.data.batch_size, mesh, config.optimizer.accumulate
    )


def check_settings(config: ConfigDict, mesh: jax.sharding.Mesh, *, evaluates: bool) -> None:
    """Check what depends neither on the data nor on what a run sets itself.

    Args:
        config: The run's config.
        mesh: The devices.
        evaluates: As in `train`.

    Raises:
        ValueError: If a field has no possible value, or a package is not installed.
    """
    if evaluates:
        coco_metrics.coco_api(config.evaluator)
    check_loggers(config.loggers)
    sharding.check_heights(config.data.buckets, config.anchors.max_level, mesh)


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
    host_part = jax.tree.map(lambda x: x[: len(x) // jax.process_count()], largest)
    device_batch = sharding.put_batch(host_part, sharding.batch_shardings(mesh))
    # A step changes nothing in a state that has stopped.
    stopped = state._replace(is_finite=sharding.put_replicated(np.False_, mesh))
    unchanged, _ = jax.block_until_ready(compiled_step(stopped, device_batch))
    return unchanged._replace(is_finite=sharding.put_replicated(np.True_, mesh))


def check_intervals(config: ConfigDict) -> None:
    """Raise ValueError if the run or one of its intervals has too few steps."""
    least = {"total_steps": 1, "log_every": 1, "epochs": 0, **dict.fromkeys(INTERVALS, 0)}
    for name, number in least.items():
        if config[name] < number:
            raise ValueError(f"config.{name}={config[name]} must be at least {number}.")


def check_steps_left(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raise ValueError if the newest checkpoint in `workdir` already has all steps of the run."""
    step = newest_step(workdir)
    if config.total_steps <= step:
        raise ValueError(
            f"already done; the newest checkpoint in {workdir} is that of step {step}, and "
            f"config.total_steps={config.total_steps}. Give a larger --config.total_steps to train "
            "on, --mode=evaluate to evaluate, or another --workdir."
        )
