"""Every format end to end: in its own runtime it has the detections of `predict` and evaluation.

The detector has group norm; its statistics would depend on the padding if it were not masked. The
images of odd sizes are in three buckets, all of them smaller than the input of the artifacts.
"""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from export_examples import CATEGORIES, write_checkpoint
from PIL import Image

from retinanet_jax import Detector, checkpoint
from retinanet_jax.data.sources.synthetic import generate_image
from retinanet_jax.evaluation.evaluator import evaluate
from retinanet_jax.export import model_card, savedmodel, verification
from retinanet_jax.export.artifact import FORMATS, export_detector, load_servables
from retinanet_jax.export.comparison import DetectionArrays, compare_detections
from retinanet_jax.export.servable import INPUTS, OUTPUTS, ArtifactOutputs
from retinanet_jax.inference.predictions import input_files, predict_images

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "export.md"
SIZES = [(50, 70), (97, 41), (61, 61), (33, 97), (130, 121)]  # height and width of each image
LIMITS = {"iou_threshold": 0.4, "class_agnostic": True}  # not those of the config


def write_images(folder, config) -> list[pathlib.Path]:
    """Writes images of SIZES, and makes them the evaluation dataset, which has no boxes."""
    entries, files = [], []
    for index, (height, width) in enumerate(SIZES):
        files.append(folder / f"{index}.jpg")
        pixels = np.asarray(generate_image(5, index, 130)[0])[:height, :width]
        Image.fromarray(pixels).save(files[-1], quality=95)
        name = files[-1].name
        entries.append({"id": index, "file_name": name, "height": height, "width": width})
    categories = [category._asdict() for category in CATEGORIES]
    dataset = {"images": entries, "annotations": [], "categories": categories}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    config.data.eval.update(
        source="coco", annotations=str(folder / "dataset.json"), images=str(folder)
    )
    return files


def detections_by(key, results) -> dict[str, DetectionArrays]:
    """The detections of each image in results of COCO's format, in pixels of the original image."""
    images = {}
    for result in results:
        x, y, width, height = result["bbox"]
        detection = ([x, y, x + width, y + height], result["score"], result["category_id"])
        images.setdefault(result[key], []).append(detection)
    return {k: DetectionArrays(*map(np.array, zip(*v, strict=True))) for k, v in images.items()}


def in_original_pixels(detections: DetectionArrays, original_size, size) -> DetectionArrays:
    """The detections of an artifact, scaled as documented."""
    scale = np.divide(original_size, size)
    return detections._replace(boxes=detections.boxes * scale[[1, 0, 1, 0]])


def check_equal(expected, actual, config):
    """There are detections, and they are equal up to rounding."""
    difference = compare_detections(expected, actual, config)
    assert difference.num_detections > 5
    assert difference.box < 0.01
    assert difference.score < 1e-5
    assert difference.num_unmatched == 0


def documented_code(text: str) -> str:
    """The Python block of the documentation that contains `text`."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    (block,) = (block for block in blocks if text in block)
    return block


def run_without(packages: tuple[str, ...], code: str, **paths: object) -> None:
    """Runs code in a process that cannot import some packages; names in it stand for paths."""
    hide = "".join(f"sys.modules[{name!r}] = None\n" for name in packages)
    for name, path in paths.items():
        code = code.replace(name, str(path))
    process = subprocess.run(
        [sys.executable, "-c", f"import sys\n{hide}{code}"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


# For each format: text in its documented code, packages that the code does without, and the
# config's method of resizing.
RUNTIMES = {
    "stablehlo": (
        "export.deserialize",
        ("retinanet_jax", "flax", "tensorflow", "onnxruntime"),
        "pillow",
    ),
    "savedmodel": ("serving_default", ("retinanet_jax", "jax", "onnxruntime"), "bilinear"),
    "onnx": ("onnxruntime", ("retinanet_jax", "jax", "tensorflow"), "bilinear_float"),
}


@pytest.mark.slow
@pytest.mark.parametrize("format_name", list(RUNTIMES))
def test_an_artifact_has_the_detections_of_predict_and_of_evaluation(
    format_name, toy_config, tmp_path, one_device
):
    for package in FORMATS[format_name].PACKAGES:
        pytest.importorskip(package)
    config, workdir, folder = toy_config, tmp_path / "run", tmp_path / "images"
    folder.mkdir()
    text, packages, config.data.resize = RUNTIMES[format_name]
    files = write_images(folder, config)
    write_checkpoint(workdir, config)

    detector = Detector.load(workdir, **LIMITS)
    predict_images(detector, input_files(files), tmp_path, draw_threshold=None)
    results = json.loads((tmp_path / "detections.json").read_text())
    predicted = detections_by("file_name", results)
    config.detections.update(LIMITS)
    evaluate(config, workdir)
    (results,) = (workdir / "eval").rglob("0_detections.json")
    evaluated = detections_by("image_id", json.loads(results.read_text()))

    batch_size = 1 if format_name == "onnx" else None
    (servable,) = load_servables(str(workdir), image_sizes=[], batch_size=batch_size, **LIMITS)
    assert servable.image_size == (96, 96)
    artifact = tmp_path / "artifact"
    (outcome,) = export_detector(format_name, [servable], artifact, folder).values()
    assert outcome.from_predict.num_images == len(SIZES)
    run = FORMATS[format_name].load(artifact)
    outputs = verification.artifact_detections(servable, run, files)
    for index, (example, detections) in enumerate(outputs):
        actual = in_original_pixels(detections, example.original_size, example.size)
        check_equal(predicted[str(files[index])], actual, config)
        check_equal(evaluated[index], actual, config)

    check_documented_code(
        documented_code(text), packages, artifact, files[0], predicted[str(files[0])], config
    )
    if format_name == "onnx":
        check_triton_repository(artifact)
    else:
        check_any_batch_size(run, detections, example)
    if format_name == "savedmodel":
        check_jpeg_signature(artifact, files[0], predicted[str(files[0])], config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "format_name",
    ["onnx", *(pytest.param(x, marks=pytest.mark.exhaustive) for x in ("stablehlo", "savedmodel"))],
)
def test_an_artifact_for_any_size_has_the_detections_of_predict_in_every_batch(
    format_name, toy_config, tmp_path, one_device
):
    for package in FORMATS[format_name].PACKAGES:
        pytest.importorskip(package)
    workdir, folder = tmp_path / "run", tmp_path / "images"
    folder.mkdir()
    files = write_images(folder, toy_config)
    toy_config.anchors.max_level = 5  # the inputs are multiples of 32, so they have many sizes
    write_checkpoint(workdir, toy_config)
    (servable,) = load_servables(str(workdir), image_sizes=None, batch_size=None)
    artifact = tmp_path / "artifact"
    (outcome,) = export_detector(format_name, [servable], artifact, folder).values()
    assert outcome.from_predict.num_images == len(SIZES)
    assert outcome.from_predict.num_detections > 50
    card = json.loads((artifact / model_card.FILE).read_text())
    assert card["inputs"]["images"]["shape"] == [None, None, None, 3]
    assert (card["image_size"], card["size_multiple"]) == (None, 32)

    run = FORMATS[format_name].load(artifact)
    singly = verification.artifact_detections(servable._replace(batch_size=1), run, files)
    together = verification.artifact_detections(servable._replace(batch_size=3), run, files)
    shapes = set()
    for (example, expected), (_, actual) in zip(singly, together, strict=True):
        shapes.add(example.pixels.shape)
        check_equal(expected, actual, toy_config)
    assert len(shapes) > 2


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("format_name", ["onnx", "stablehlo", "savedmodel"])
@pytest.mark.parametrize("batch_size", [1, None])
def test_an_artifact_without_nms_has_the_outputs_of_the_checkpoint(
    format_name, batch_size, toy_config, tmp_path
):
    for package in FORMATS[format_name].PACKAGES:
        pytest.importorskip(package)
    workdir, folder = tmp_path / "run", tmp_path / "images"
    folder.mkdir()
    write_images(folder, toy_config)
    toy_config.detections.nms = "soft_linear"  # which ONNX has not, and raw outputs do not need
    write_checkpoint(workdir, toy_config)
    options = {"image_sizes": [(96, 96)] if batch_size else None, "batch_size": batch_size}
    servables = load_servables(str(workdir), raw=True, **options)
    artifact = tmp_path / "artifact"
    (outcome,) = export_detector(format_name, servables, artifact, folder).values()
    assert outcome.num_images == len(SIZES)
    assert outcome.num_boxes > 50
    card = json.loads((artifact / model_card.FILE).read_text())
    assert (card["raw"], card["outputs"]) == (True, ["boxes", "scores"])
    assert "The outputs are raw" in (artifact / model_card.README).read_text()


def store_median_scores(workdir, files) -> tuple[dict[int, float], list[DetectionArrays]]:
    """Stores the median score of each category as its threshold.

    Returns the thresholds by category id, and the detections of each file above them, which are
    filtered by hand.
    """
    detector = Detector.load(workdir, score_threshold=0.3)  # as in its config
    detections = [DetectionArrays(d.boxes, d.scores, d.category_ids) for d in detector.batch(files)]
    scores, ids = (np.concatenate(column) for column in list(zip(*detections, strict=True))[1:])
    thresholds = {c.id: float(np.median(scores[ids == c.id])) for c in CATEGORIES}
    by_name = {c.name: thresholds[c.id] for c in CATEGORIES}
    stored = checkpoint.Thresholds(0.5, by_name)
    checkpoint.store_thresholds(checkpoint.find(workdir), stored)
    above = []
    for boxes, scores, ids in detections:
        keep = scores > [thresholds[k] for k in ids.tolist()]
        above.append(DetectionArrays(boxes[keep], scores[keep], ids[keep]))
    return thresholds, above


@pytest.mark.slow
@pytest.mark.parametrize(
    "format_name",
    ["stablehlo", *(pytest.param(x, marks=pytest.mark.exhaustive) for x in ("savedmodel", "onnx"))],
)
def test_predict_and_artifacts_have_the_stored_thresholds(format_name, toy_config, tmp_path):
    for package in FORMATS[format_name].PACKAGES:
        pytest.importorskip(package)
    workdir, folder = tmp_path / "run", tmp_path / "images"
    folder.mkdir()
    files = write_images(folder, toy_config)
    toy_config.detections.max_detections = 1000  # so that thresholds make no room for others
    write_checkpoint(workdir, toy_config, buckets=((96, 96),))  # as that of the artifact
    thresholds, above = store_median_scores(workdir, files)
    for detections, expected in zip(Detector.load(workdir).batch(files), above, strict=True):
        np.testing.assert_array_equal(detections.scores, expected.scores)
        np.testing.assert_array_equal(detections.category_ids, expected.categories)
        np.testing.assert_array_equal(detections.boxes, expected.boxes)

    options = {"image_sizes": [], "batch_size": 1}
    (servable,) = load_servables(str(workdir), **options)
    artifact = tmp_path / "artifact"
    (outcome,) = export_detector(format_name, [servable], artifact, folder).values()
    assert outcome.from_predict.num_images == len(files)
    run = FORMATS[format_name].load(artifact)
    outputs = verification.artifact_detections(servable, run, files)
    for (example, detections), expected in zip(outputs, above, strict=True):
        actual = in_original_pixels(detections, example.original_size, example.size)
        difference = compare_detections(expected, actual, toy_config, thresholds)
        assert difference.num_detections > 5
        assert not difference.exceeds_rounding
    card = json.loads((artifact / model_card.FILE).read_text())
    assert card["score_thresholds"] == {c.name: thresholds[c.id] for c in CATEGORIES}
    (given,) = load_servables(str(workdir), **options, score_threshold=0.4)
    assert given.checkpoint.score_thresholds is None


@pytest.mark.slow
@pytest.mark.exhaustive
def test_evaluation_has_no_stored_thresholds(toy_config, tmp_path, one_device):
    workdir, folder = tmp_path / "run", tmp_path / "images"
    folder.mkdir()
    files = write_images(folder, toy_config)
    write_checkpoint(workdir, toy_config)
    evaluate(toy_config, workdir)
    (results,) = (workdir / "eval").rglob("0_detections.json")
    before = results.read_bytes()
    results.unlink()
    store_median_scores(workdir, files)
    evaluate(toy_config, workdir)
    assert results.read_bytes() == before


def check_documented_code(code, packages, artifact, file, expected, config):
    """In a process that cannot import the package, the documented code has the same detections."""
    result = artifact.parent / "result.npz"
    arrays = ", ".join(f"{name}={name}" for name in (*INPUTS, *OUTPUTS))
    code = f"{documented_code('from client import prepare')}{code}np.savez('RESULT', {arrays})"
    run_without(packages, code, ARTIFACT=artifact, IMAGE=file, RESULT=result)
    with np.load(result) as arrays:
        outputs = ArtifactOutputs(*(arrays[name] for name in OUTPUTS))
        (actual,) = verification.split_outputs(outputs)
        check_equal(expected, in_original_pixels(actual, SIZES[0], arrays["sizes"][0]), config)


def check_any_batch_size(run, expected, example):
    """The detections of an image do not depend on the other images of its batch."""
    images = np.stack(
        [np.zeros_like(example.pixels), np.zeros_like(example.pixels), example.pixels]
    )
    sizes = np.stack([np.int32([64, 96]), np.int32([96, 64]), example.size])
    detections = verification.split_outputs(run(images, sizes))[2]
    for actual, desired in zip(detections, expected, strict=True):
        np.testing.assert_allclose(actual, desired, atol=1e-4)


def check_jpeg_signature(artifact, file, expected, config):
    """The documented code takes the bytes of a file and returns boxes in pixels of its image."""
    import tensorflow as tf

    names = {"tf": tf, "model": tf.saved_model.load(str(artifact / savedmodel.FOLDER))}
    exec(documented_code(savedmodel.JPEG_SIGNATURE).replace("IMAGE", str(file)), names)
    outputs = ArtifactOutputs(*(names["outputs"][name].numpy() for name in OUTPUTS))
    (actual,) = verification.split_outputs(outputs)
    check_equal(expected, actual, config)


def check_triton_repository(artifact):
    """The folder is laid out as Triton requires, and its config agrees with the model."""
    import onnxruntime

    folder = artifact / "detector"
    assert sorted(p.name for p in folder.iterdir()) == ["1", "config.pbtxt"]
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    text = (folder / "config.pbtxt").read_text()
    types = {"TYPE_UINT8": "uint8", "TYPE_INT32": "int32", "TYPE_FP32": "float"}
    tensors = [
        (name, f"tensor({types[triton_type]})", [int(size) for size in sizes.split(",")])
        for name, triton_type, sizes in re.findall(
            r'name: "(\w+)" data_type: (\w+) dims: \[(.*?)\]', text
        )
    ]
    values = [*session.get_inputs(), *session.get_outputs()]
    assert tensors == [(value.name, value.type, value.shape) for value in values]
    assert "max_batch_size: 0" in text


@pytest.mark.slow
def test_the_command_exports_a_run_with_its_own_limits(program, tiny_run, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    arguments = (
        f"--checkpoint={tiny_run.workdir}",
        "--format=onnx",
        f"--output={tmp_path / 'out'}",
    )
    limits = ("--score_threshold=0.002", "--max_detections=20", "--image_size=64,96")
    status, stdout, stderr = program.run("export", *arguments, *limits)
    assert status == 0, stderr
    assert "verified: " in stdout
    assert f"{tmp_path / 'out'}: onnx for 1 image of 64 x 96" in stdout
    card = json.loads((tmp_path / "out" / model_card.FILE).read_text())
    assert (card["score_threshold"], card["max_detections"]) == (0.002, 20)
    assert card["inputs"]["images"]["shape"] == [1, 64, 96, 3]
    assert card["verified"]["from_predict"]["num_detections"] > 0
    assert 0 <= card["checkpoint"]["metrics"]["AP"] <= 1

    status, _, stderr = program.run("export", *arguments)
    assert status == 1
    assert stderr.strip().endswith("exists; give another folder.")
