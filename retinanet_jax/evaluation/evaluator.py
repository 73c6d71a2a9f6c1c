"""Evaluation: detections of a whole data set, and their COCO average precision."""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from retinanet_jax import checkpoint, core, input_pipeline, sharding, visualize
from retinanet_jax.compilation import CompiledByShape, Compiler, start_compiler
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.sources.base import Source
from retinanet_jax.evaluation.coco_metrics import METRICS, coco_api, coco_metrics, coco_results
from retinanet_jax.modeling import build_model, detect
from retinanet_jax.models import RetinaNet
from retinanet_jax.training.metrics import MetricWriter
from retinanet_jax.utils.files import write_json
from retinanet_jax.utils.progress import make_progress


class Detected(NamedTuple):
    """One batch's detections, and which pictures its rows are.

    Those go through the devices too: on a pod the mesh may order the hosts' rows unlike the plan.
    """

    index: Int[Array, " B"]  # row of the source
    weights: Float[Array, " B"]  # 0: a filler
    detections: core.Detections  # with a B axis


class Evaluator:
    """A compiled detector and the data it is judged on; run it at any step's variables."""

    def __init__(
        self,
        config: ConfigDict,
        model: RetinaNet,
        source: Source,
        mesh: jax.sharding.Mesh,
        compiler: Compiler,
    ) -> None:
        sharding.check_batch_size("data.eval_batch_size", config.data.eval_batch_size, mesh)
        self._config, self._source, self._mesh = config, source, mesh
        self._plan = input_pipeline.eval_plan(
            config, source.sizes, batch_size=config.data.eval_batch_size
        )
        # The plan's own: with data.eval_shapes="own" they are not those of the config.
        sharding.check_heights(self._plan.buckets.tolist(), config.anchors.max_level, mesh)

        def detect_rows(variables: dict[str, Any], batch: Batch) -> Detected:
            return Detected(batch.index, batch.weights, detect(variables, batch, model, config))

        # Every host gets every picture's detections: they are few.
        detect_everywhere = jax.jit(
            detect_rows,
            in_shardings=(sharding.replicated(mesh), sharding.batch_shardings(mesh)),
            out_shardings=sharding.replicated(mesh),
        )
        self._detect = CompiledByShape("evaluation", detect_everywhere, compiler)

    def run(self, variables: dict[str, Any], step: int) -> list[dict[str, Any]]:
        """Detections of every picture of the source, as COCO results."""
        results: list[dict[str, Any]] = []
        done, tell = 0, make_progress(f"evaluating step {step}", len(self._source))
        for detected in self._detections(variables):
            for row in np.flatnonzero(detected.weights):
                index = int(detected.index[row])
                one = jax.tree.map(lambda x, r=row: x[r], detected.detections)
                image_id = self._source.image_ids[index]
                results += coco_results(one, int(image_id), self._source.categories)
                done += 1
            tell(done)
        return results

    def _detections(self, variables: dict[str, Any]) -> Iterator[Detected]:
        """What each batch came to, on the host; the next batch runs while one is read."""
        shardings = sharding.batch_shardings(self._mesh)
        steps = range(self._plan.num_batches)
        self._detect.prepare(variables, batch_shapes(self._source, self._plan, steps))
        host_batches = input_pipeline.host_batches(self._config, self._source, self._plan, steps)
        running = None
        for host_batch in host_batches:
            detected = self._detect(variables, sharding.to_devices(host_batch, shardings))
            if running is not None:
                yield jax.device_get(running)
            running = detected
        if running is not None:
            yield jax.device_get(running)


def write(
    results: list[dict[str, Any]],
    source: Source,
    step: int,
    workdir: pathlib.Path,
    evaluator: str,
    report: MetricWriter | None,
) -> float:
    """Prints the table, writes WORKDIR/eval/STEP*.json and pictures; returns AP (-1: undefined)."""
    print(f"computing AP of {len(results)} detections", flush=True)
    metrics, table = coco_metrics(source.ground_truth(), results, evaluator)
    if jax.process_index() == 0:
        print(f"{source.name}: {len(source)} images after step {step}\n{table}", flush=True)
        folder = workdir / "eval"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{step}_detections.json", results)
        write_json(folder / f"{step}.json", metrics)
        pictures = visualize.compare(source, results)
        pictures.save(folder / f"{step}.jpg", quality=90)
        if report is not None:
            report.scalars(step, {f"eval/{name}": metrics[name] or 0.0 for name in METRICS})
            report.image(step, "ground_truth_and_detections", np.asarray(pictures))
    return -1.0 if metrics["AP"] is None else metrics["AP"]


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Evaluates the checkpoint in `workdir` (its best by AP, else its newest) on data.eval."""
    coco_api(config.evaluator)  # it is told now if that is not installed
    trained = checkpoint.load(workdir)
    source = input_pipeline.open_evaluation(config, workdir)
    checkpoint.check_categories(trained.folder, trained.categories, source.categories)
    checkpoint.check_model(trained.folder, trained.config, config)
    mesh = sharding.make_mesh(config.space)
    model = build_model(config, len(source.categories))
    variables = sharding.put_replicated(trained.variables, mesh)
    with start_compiler() as compiler:
        results = Evaluator(config, model, source, mesh, compiler).run(variables, trained.step)
    write(results, source, trained.step, workdir, config.evaluator, report=None)
