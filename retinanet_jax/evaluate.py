"""Evaluation: detections of a whole data set, and their COCO average precision."""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from retinanet_jax import checkpoint, core, datasets, sharding, visualize
from retinanet_jax.compilation import Compiler, Programs, start_compiler
from retinanet_jax.data.batch import Batch
from retinanet_jax.data.pipeline import batch_shapes
from retinanet_jax.data.sources import Category, Source
from retinanet_jax.detector import build_model, choose, detect
from retinanet_jax.models import RetinaNet
from retinanet_jax.report import Report, teller, write_json

# pycocotools' twelve numbers, in its order.
METRICS = (
    ("AP", "AP50", "AP75", "APs", "APm", "APl")
    + ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
)  # fmt: skip
# What AP of boxes is computed from. Packages that read polygons are spared them, and what else
# people write into their files.
SECTIONS = {
    "images": ("id",),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
}


REFERENCE = "pycocotools"  # whose numbers those of any other evaluator must be


class CocoApi(NamedTuple):
    """pycocotools' two classes, or another package's that do the same."""

    COCO: Any
    COCOeval: Any


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
        self._plan = datasets.eval_plan(
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
        self._detect = Programs("evaluation", detect_everywhere, compiler)

    def run(self, variables: dict[str, Any], step: int) -> list[dict[str, Any]]:
        """Detections of every picture of the source, as COCO results."""
        results: list[dict[str, Any]] = []
        done, tell = 0, teller(f"evaluating step {step}", len(self._source))
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
        host_batches = datasets.host_batches(self._config, self._source, self._plan, steps)
        running = None
        for host_batch in host_batches:
            detected = self._detect(variables, sharding.to_devices(host_batch, shardings))
            if running is not None:
                yield jax.device_get(running)
            running = detected
        if running is not None:
            yield jax.device_get(running)


def coco_results(
    detections: core.Detections, image_id: int, categories: Sequence[Category]
) -> list[dict[str, Any]]:
    """One picture's detections in COCO's results format: original category ids, xywh boxes."""
    boxes, scores, classes, mask = (np.asarray(field) for field in detections)
    # In numpy: the device is busy with the next batch, and jax would queue behind it.
    found = core.yxyx_to_xywh(boxes[mask])
    return [
        {
            "image_id": image_id,
            "category_id": categories[number].id,
            "bbox": box,
            "score": score,
        }
        for number, box, score in zip(
            classes[mask].tolist(), found.tolist(), scores[mask].tolist(), strict=True
        )
    ]


def coco_api(evaluator: str) -> CocoApi:
    """The package that computes AP, by its name in config.evaluator; both give the same numbers.

    Raises ValueError where there is none of this name or it is not installed.
    """

    def pycocotools() -> CocoApi:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return CocoApi(COCO, COCOeval)

    def hotcoco() -> CocoApi:
        try:
            from hotcoco import COCO, COCOeval
        except ImportError as error:
            raise ValueError(
                f"evaluator='hotcoco' cannot be imported here ({error}); pip install hotcoco, or "
                "do without it: --config.evaluator=pycocotools."
            ) from None
        return CocoApi(COCO, COCOeval)

    return choose("evaluator", evaluator, {"pycocotools": pycocotools, "hotcoco": hotcoco})()


def coco_metrics(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], evaluator: str = REFERENCE
) -> tuple[dict[str, Any], str]:
    """pycocotools' numbers over all images, and its table.

    Args:
        ground_truth: a COCO instances dict.
        results: detections in COCO's results format.
        evaluator: who computes them, as config.evaluator names it.

    Returns:
        The twelve METRICS and "AP_by_category" (name -> AP; None where a number is undefined,
        for want of ground truth), and the printed table.
    """
    api = coco_api(evaluator)
    ground_truth = essentials(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = api.COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        # loadRes writes into what it is given, and refuses an empty list, the right answer of an
        # untrained model.
        found = truth.loadRes([dict(result) for result in results]) if results else api.COCO()
        evaluation = api.COCOeval(truth, found, "bbox")
        evaluation.params.imgIds = sorted(truth.getImgIds())
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    numbers, table = summarized(curves)
    metrics: dict[str, Any] = dict(zip(METRICS, map(defined, numbers), strict=True))
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    # precision: T iou thresholds, R recalls, K categories, area ranges, detection limits
    precision = curves["precision"][:, :, :, 0, -1]  # T R K
    metrics["AP_by_category"] = {
        names[category]: defined(np.mean(precision[:, :, k]))
        for k, category in enumerate(evaluation.params.catIds)
    }
    return metrics, table


def summarized(curves: dict[str, Any]) -> tuple[Float[np.ndarray, " 12"], str]:
    """The numbers of METRICS and the table that pycocotools makes of precision and recall.

    Its own words, whoever computed the curves.
    """
    from pycocotools.cocoeval import COCOeval

    summary = COCOeval(iouType="bbox")
    summary.eval = curves
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        summary.summarize()
    return np.asarray(summary.stats), printed.getvalue().rstrip()


def essentials(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """A copy of what SECTIONS names, annotations numbered from 1.

    pycocotools takes a match with annotation 0 for none.
    """
    content = {
        section: [{name: one[name] for name in names} for one in ground_truth[section]]
        for section, names in SECTIONS.items()
    }
    for number, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = number
    return content


def defined(value: float) -> float | None:
    """pycocotools says -1 where a number is undefined; JSON says null."""
    return None if value < 0 else float(value)


def write(
    results: list[dict[str, Any]],
    source: Source,
    step: int,
    workdir: pathlib.Path,
    evaluator: str,
    report: Report | None,
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
            report.picture(step, "ground_truth_and_detections", np.asarray(pictures))
    return -1.0 if metrics["AP"] is None else metrics["AP"]


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Evaluates the checkpoint in `workdir` (its best by AP, else its newest) on data.eval."""
    coco_api(config.evaluator)  # it is told now if that is not installed
    trained = checkpoint.load(workdir)
    source = datasets.open_evaluation(config, workdir)
    checkpoint.check_categories(trained.folder, trained.categories, source.categories)
    checkpoint.check_model(trained.folder, trained.config, config)
    mesh = sharding.make_mesh(config.space)
    model = build_model(config, len(source.categories))
    variables = sharding.put_replicated(trained.variables, mesh)
    with start_compiler() as compiler:
        results = Evaluator(config, model, source, mesh, compiler).run(variables, trained.step)
    write(results, source, trained.step, workdir, config.evaluator, report=None)
