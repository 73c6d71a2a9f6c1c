"""Evaluation on a dataset: the detections of all its images, and their COCO average precision."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from PIL import Image

from retinanet_jax import checkpoint, core, datasets, input_pipeline, sharding, visualize
from retinanet_jax.compilation import (
    CompiledByShape,
    Compiler,
    black_batch,
    memory_options,
    start_compiler,
)
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.sources.base import Source
from retinanet_jax.evaluation import records
from retinanet_jax.evaluation.category_table import category_table
from retinanet_jax.evaluation.coco_metrics import coco_api, coco_metrics, coco_results
from retinanet_jax.hosts.comparison import check_hosts_agree
from retinanet_jax.modeling import build_model, detect
from retinanet_jax.models import RetinaNet
from retinanet_jax.stopping import Stopping
from retinanet_jax.utils.files import open_atomically, write_json
from retinanet_jax.utils.progress import format_count, make_progress
from retinanet_jax.utils.threads import one_in_flight


class BatchDetections(NamedTuple):
    """The detections of a batch, with the index of each example's image.

    `index` and `weights` pass through the devices together with the images, because on several
    hosts the mesh may order the hosts' examples differently from the plan.
    """

    index: Int[Array, " B"]  # of the image in the source
    weights: Float[Array, " B"]  # 0: the example only fills up the batch
    detections: core.Detections  # with a leading axis B


class Evaluator:
    """A compiled detector and the dataset that it is evaluated on.

    It can be run after any training step, with the variables of that step.

    Args:
        config: The config of the run.
        model: The network of that config.
        source: The dataset.
        mesh: The devices, with axes `data` and `space`.
        compiler: The threads that compile; nothing is compiled before `run`.
        stopping: Ends the evaluation between two batches, after a signal.

    Attributes:
        source: The dataset.

    Raises:
        ValueError: If the batch size or the height of a bucket does not fit the mesh.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: RetinaNet,
        source: Source,
        mesh: jax.sharding.Mesh,
        compiler: Compiler,
        stopping: Stopping | None = None,
    ) -> None:
        sharding.check_batch_size("data.eval_batch_size", config.data.eval_batch_size, mesh)
        self.source = source
        self._config, self._mesh, self._stopping = config, mesh, stopping or Stopping()
        self._num_before = 0  # batches of earlier evaluations, since the run has begun
        self._plan = input_pipeline.eval_plan(
            config, source.sizes, batch_size=config.data.eval_batch_size
        )
        # The plan's own buckets: with data.eval_shapes="own" they are not those of the config.
        sharding.check_heights(self._plan.buckets.tolist(), config.anchors.max_level, mesh)

        def detect_batch(variables: dict[str, Any], batch: Batch) -> BatchDetections:
            detections = detect(variables, batch, model, config)
            return BatchDetections(batch.index, batch.weights, detections)

        # Every host gets the detections of every image: they are small.
        detect_replicated = jax.jit(
            detect_batch,
            in_shardings=(sharding.replicated(mesh), sharding.batch_shardings(mesh)),
            out_shardings=sharding.replicated(mesh),
            compiler_options=memory_options(mesh.devices.flat[0].platform),
        )
        self._detect = CompiledByShape("evaluation", detect_replicated, compiler, self._stopping)

    @functools.cached_property
    def largest_batch(self) -> Batch:
        """A batch of black images of the shape with the most pixels."""
        shapes = batch_shapes(self.source, self._plan, range(self._plan.num_batches))
        largest = max(shapes, key=lambda batch: batch.images.size)
        height, width = largest.images.shape[1:3]
        return black_batch(largest, (height, width))

    def run_largest(self, variables: dict[str, Any]) -> None:
        """Compile and run `largest_batch`, so that too little memory is an error now.

        Args:
            variables: The network's variables, replicated over the mesh.

        Raises:
            ValueError: If the memory of the devices is too small.
        """
        parts = jax.process_count()
        host_batch = jax.tree.map(lambda x: x[: len(x) // parts], self.largest_batch)
        with advice_on_memory():
            jax.block_until_ready(self._start(variables, host_batch))

    def run(self, variables: dict[str, Any], step: int) -> list[dict[str, Any]]:
        """Return the detections of all images of the dataset in COCO's results format.

        Args:
            variables: The network's variables, replicated over the mesh.
            step: The training step of these variables, for the progress lines.

        Raises:
            ValueError: If the memory of the devices is too small.
        """
        with advice_on_memory():
            return self._run(variables, step)

    def _run(self, variables: dict[str, Any], step: int) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        num_done = 0
        print_progress = make_progress(f"evaluating step {step}", len(self.source))
        for batch in map(jax.device_get, one_in_flight(self._batch_detections(variables))):
            for example in np.flatnonzero(batch.weights):
                index = int(batch.index[example])
                detections = jax.tree.map(lambda x, i=example: x[i], batch.detections)
                image_id = int(self.source.image_ids[index])
                results += coco_results(detections, image_id, self.source.categories)
                num_done += 1
            print_progress(num_done)
        name = self._detect.name
        self._stopping.check_void(name, self._stopping.launched[name])
        return results

    def complete_stop(self, variables: dict[str, Any]) -> None:
        """Start the batches that only other hosts have started when all stop, as black images.

        Args:
            variables: As in `run`.
        """
        name = self._detect.name
        first = self._stopping.launched[name] - self._num_before
        missing = range(first, first + self._stopping.num_missing(name))
        for host_batch in input_pipeline.void_batches(self.source, self._plan, missing):
            self._start(variables, host_batch)

    def _batch_detections(self, variables: dict[str, Any]) -> Iterator[BatchDetections]:
        """Start the detection of each batch in turn, and yield its results on the devices."""
        self._num_before = self._stopping.launched[self._detect.name]
        steps = range(self._plan.num_batches)
        self._detect.prepare(variables, batch_shapes(self.source, self._plan, steps))
        host_batches = input_pipeline.host_batches(
            self._config, self.source, self._plan, steps, self._stopping
        )
        with contextlib.closing(host_batches):  # at an error too, and not when it is collected
            for host_batch in host_batches:
                yield self._start(variables, host_batch)

    def _start(self, variables: dict[str, Any], host_batch: Batch) -> BatchDetections:
        """Start the detection of a batch, and return its results on the devices."""
        batch = sharding.put_batch(host_batch, sharding.batch_shardings(self._mesh))
        return self._detect(variables, batch)


@contextlib.contextmanager
def advice_on_memory() -> Iterator[None]:
    """Raise ValueError, with the config field to lower, if the devices' memory is too small."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            "the accelerator's memory is too small for the evaluation; lower "
            "--config.data.eval_batch_size or the image sizes."
        ) from error


class Evaluation(NamedTuple):
    """The outcome of an evaluation."""

    metrics: dict[str, Any]  # see `coco_metrics`
    summary: str  # for people: the dataset, pycocotools' table and that by category
    comparison: Image.Image  # ground truth and detections of some images

    @property
    def ap(self) -> float:
        """AP, or -1 where it is undefined because the dataset has no ground truth."""
        return checkpoint.NOT_MEASURED if self.metrics["AP"] is None else self.metrics["AP"]


def write_evaluation(
    results: list[dict[str, Any]],
    source: Source,
    step: int,
    folder: pathlib.Path,
    config: ConfigDict,
    description: dict[str, Any],
) -> Evaluation:
    """Compute AP, and write STEP.json and STEP.jpg next to the detections in a folder.

    STEP.json has the metrics, also by category, and the dataset and settings, and if AP is
    undefined a note with the reason; STEP.jpg shows some images with their ground truth and
    detections. A thread may do this during training.

    Args:
        results: Detections in COCO's results format.
        source: The dataset.
        step: The training step after which the detections were computed.
        folder: The folder to write to.
        config: The config of the evaluation.
        description: The dataset and settings, from `records.describe`.
    """
    metrics, table = coco_metrics(
        source.ground_truth(),
        results,
        config.evaluator,
        max_detections=config.detections.max_detections,
    )
    notes = {}
    if metrics["AP"] is None:
        notes = {"note": f"AP is undefined, because {datasets.why_no_object(source)}"}
    write_json(folder / f"{step}.json", {**metrics, **notes, **description})
    title = f"{source.name}, step {step}"
    comparison = visualize.comparison_sheet(source, results, title=title)
    with open_atomically(folder / f"{step}.jpg") as file:
        comparison.save(file, "JPEG", quality=90)
    title = f"{source.name}: {len(source)} images after step {step}"
    by_category = category_table(metrics["categories"])
    summary = "\n".join([title, table, *[by_category] * bool(by_category), *notes.values()])
    return Evaluation(metrics, summary, comparison)


def open_checkpoint_and_data(
    config: ConfigDict, workdir: pathlib.Path
) -> tuple[checkpoint.Checkpoint, ConfigDict, Source]:
    """Read a checkpoint, open the dataset that it is evaluated on, and check that they fit.

    Args:
        config: As in `evaluate`.
        workdir: As in `evaluate`.

    Returns:
        The checkpoint; the config, which lists the checkpoint's categories if the dataset lists
        none; and the dataset.

    Raises:
        FileNotFoundError: If there is no checkpoint, or a file of the dataset is missing.
        ValueError: If the network or the categories differ from the checkpoint's.
    """
    trained = checkpoint.load(workdir)
    names = [category.name for category in trained.categories]
    config = datasets.with_missing_categories(config, names)
    try:
        source = datasets.open_evaluation(config, workdir)
    except FileNotFoundError as error:
        if records.dataset_fields(config) != records.dataset_fields(trained.config):
            raise
        raise FileNotFoundError(
            f"{error} The checkpoint's config names this dataset; --data=FOLDER_OR_FILE gives "
            "another place."
        ) from None
    datasets.check_evaluation_data(source, max_detections=config.detections.max_detections)
    checkpoint.check_categories(trained.folder, trained.categories, source.categories)
    checkpoint.check_model(trained.folder, trained.config, config)
    checkpoint.check_split(trained.folder, trained.config, config)
    return trained, config, source


def compute_results(
    trained: checkpoint.Checkpoint, config: ConfigDict, source: Source
) -> list[dict[str, Any]]:
    """Return the detections of a checkpoint on a dataset in COCO's results format.

    All devices of all hosts compute them.

    Args:
        trained: The checkpoint.
        config: The config of the evaluation.
        source: The dataset.
    """
    mesh = sharding.make_mesh(config.space)
    model = build_model(config, len(source.categories))
    variables = sharding.put_replicated(trained.variables, mesh)
    with start_compiler() as compiler:
        return Evaluator(config, model, source, mesh, compiler).run(variables, trained.step)


def evaluate(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    compute: Callable[
        [checkpoint.Checkpoint, ConfigDict, Source], list[dict[str, Any]]
    ] = compute_results,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Evaluate the checkpoint of a working directory on the dataset `config.data.eval`.

    Args:
        config: The config of the evaluation; its network must be that of the checkpoint.
        workdir: The working directory; its checkpoint of the highest AP is evaluated, or the newest
            one if none has been evaluated. The results are written to its folder `eval`; those of
            another dataset than the run's, or with other settings, to a folder in it (`records`).
        compute: Returns the detections, with the arguments of `compute_results`.
        settings: The settings of `compute` that the config does not have, for the results.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the network or the categories differ from the checkpoint's, or the evaluator
            is not installed.
    """
    coco_api(config.evaluator)  # raises an error early if it is not installed
    trained, config, source = open_checkpoint_and_data(config, workdir)
    check_hosts_agree(config, {"data.eval": source}, trained.step)
    results = compute(trained, config, source)
    if jax.process_index() != 0:
        return
    description = records.describe(config, source, settings)
    folder = records.evaluation_folder(workdir, trained, config, description)
    records.write_detections(results, trained.step, folder)
    print(f"computing AP from {format_count(len(results), 'detection')}", flush=True)
    evaluation = write_evaluation(results, source, trained.step, folder, config, description)
    print(evaluation.summary)
    print(f"written to {folder / str(trained.step)}.json", flush=True)
