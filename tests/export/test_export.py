"""Every format end to end: in its own runtime it has the detections of the checkpoint."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from export_examples import CATEGORIES
from PIL import Image

from retinanet_jax import modeling
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.sources.synthetic import generate_image
from retinanet_jax.data.transforms import pad, resize
from retinanet_jax.export import model_card, savedmodel, verification
from retinanet_jax.export.artifact import FORMATS, export_detector
from retinanet_jax.export.servable import INPUTS, OUTPUTS, ArtifactOutputs, Servable

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def trained_toy():
    """Builds the toy detector of `toy_config` with random weights that detect something."""

    def build(config) -> Checkpoint:
        config.detections.score_threshold = 0.3
        config.model.prior_probability = 0.3
        variables = jax.device_get(modeling.initialize(config, 2, seed=0))
        predict = variables["params"]["classification_head"]["predict"]
        predict["kernel"] = predict["kernel"] * 30
        return Checkpoint(variables, config, CATEGORIES, 12, pathlib.Path("run/checkpoints/12"))

    return build


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
def test_the_documented_code_has_the_detections_of_the_checkpoint(
    format_name, trained_toy, toy_config, tmp_path
):
    """On a file with another aspect ratio than the input, without importing the package."""
    for package in FORMATS[format_name].PACKAGES:
        pytest.importorskip(package)
    text, packages, toy_config.data.resize = RUNTIMES[format_name]
    batch_size = 1 if format_name == "onnx" else None
    servable = Servable(trained_toy(toy_config), (64, 64), batch_size)
    artifact, file = tmp_path / "artifact", tmp_path / "image.jpg"
    export_detector(format_name, servable, artifact)
    Image.fromarray(np.asarray(generate_image(5, 1, 128)[0])[:90]).save(file)

    arrays = ", ".join(f"{name}={name}" for name in (*INPUTS, *OUTPUTS))
    run_without(
        packages,
        f"{documented_code('def resize')}{documented_code(text)}np.savez('RESULT', {arrays})",
        ARTIFACT=artifact,
        IMAGE=file,
        RESULT=tmp_path / "result.npz",
    )
    with np.load(tmp_path / "result.npz") as result:
        pixels = np.asarray(Image.open(file))
        size = servable.resized_size(90, 128)
        image = pad(resize(pixels, *size, method=toy_config.data.resize), 64, 64)
        np.testing.assert_array_equal(result["sizes"], [size])
        np.testing.assert_array_equal(result["images"], [image])
        # A batch of two, as for the verification, is compiled already.
        twice = [np.repeat(result[name], 2, axis=0) for name in INPUTS]
        expected = verification.make_reference(servable)(*twice)[0]
        outputs = ArtifactOutputs(*(result[name] for name in OUTPUTS))
        (actual,) = verification.split_outputs(outputs)
    difference = verification.compare_detections(expected, actual, certain_score=0.3 + 1e-4)
    assert difference.num_detections > 5
    assert difference.box < 0.01
    assert difference.score < 1e-5
    assert difference.num_unmatched == 0

    if format_name == "onnx":
        check_triton_repository(artifact)
    else:
        run = FORMATS[format_name].load(artifact)
        check_any_batch_size(run, expected=actual, image=image, size=size)
    if format_name == "savedmodel":
        check_jpeg_signature(artifact, file, expected, np.array(size) / (90, 128))


def check_any_batch_size(run, expected, image, size):
    """The detections of an image do not depend on the other images of its batch."""
    images, sizes = np.zeros((2, *image.shape), image.dtype), np.full((2, 2), 64, np.int32)
    images[1], sizes[1] = image, size
    detections = verification.split_outputs(run(images, sizes))[1]
    for actual, desired in zip(detections, expected, strict=True):
        np.testing.assert_allclose(actual, desired, atol=1e-4)


def check_jpeg_signature(artifact, file, expected, scale):
    """The documented code takes the bytes of a file and returns boxes in pixels of its image."""
    import tensorflow as tf

    names = {"tf": tf, "model": tf.saved_model.load(str(artifact / savedmodel.FOLDER))}
    exec(documented_code(savedmodel.JPEG_SIGNATURE).replace("IMAGE", str(file)), names)
    outputs = ArtifactOutputs(*(names["outputs"][name].numpy() for name in OUTPUTS))
    (actual,) = verification.split_outputs(outputs)
    in_file = expected._replace(boxes=expected.boxes / np.tile(scale[::-1], 2))
    difference = verification.compare_detections(in_file, actual, certain_score=0.3 + 1e-4)
    assert difference.box < 0.01
    assert difference.num_unmatched == 0


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
    assert card["verified"]["detections"] > 0
    assert 0 <= card["checkpoint"]["metrics"]["AP"] <= 1

    status, _, stderr = program.run("export", *arguments)
    assert status == 1
    assert stderr.strip().endswith("exists already; choose another.")
