"""LiteRT: builtin operators only, verified by its interpreter, and convolutions in int8."""

import collections
import importlib
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from export_examples import write_checkpoint
from PIL import Image

from retinanet_jax import Detector, checkpoint
from retinanet_jax.data.sources.synthetic import generate_image
from retinanet_jax.export import artifact, quantization, raw_verification, tflite
from retinanet_jax.export.artifact import check_precision, export_detector, load_servables
from retinanet_jax.export.model_card import changes_since_evaluation
from retinanet_jax.export.raw import RawOutputs, RawServable
from retinanet_jax.export.raw_verification import TOLERANCES, RawVerification, raw_difference

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "export.md"
BUILTIN = {
    *("ADD", "BROADCAST_TO", "CAST", "CEIL", "CONCATENATION", "CONV_2D", "DIV", "EXP", "LESS"),
    *("LOGICAL_AND", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MINIMUM", "MUL", "PAD", "RELU"),
    *("RESHAPE", "REVERSE_V2", "RSQRT", "SELECT_V2", "SLICE", "STRIDED_SLICE", "SUB", "SUM"),
    *("TRANSPOSE", "SQRT", "PADV2", "DELEGATE", "QUANTIZE", "DEQUANTIZE", "SPLIT", "UNPACK"),
    *("PACK", "SQUARE", "GREATER_EQUAL", "MEAN", "EXPAND_DIMS"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file")  # the documented code is short
def test_each_precision_has_the_outputs_of_the_checkpoint(
    toy_config, tmp_path, one_device, monkeypatch
):
    for package in ("litert_quantizer", *reversed(tflite.PACKAGES)):  # TensorFlow last: it is slow
        pytest.importorskip(package)
    toy_config.model.update(head_norm="group", padding="masked", head_depth=1)
    write_checkpoint(tmp_path / "run", toy_config)
    images = tmp_path / "images"
    images.mkdir()
    for index, width in enumerate((64, 40)):
        pixels = np.asarray(generate_image(5, index, 64)[0])[:, :width]
        Image.fromarray(pixels).save(images / f"{index}.png")
    servables = load_servables(str(tmp_path / "run"), image_sizes=[], batch_size=1, raw=True)
    sizes = {}
    for precision in TOLERANCES:
        folder = tmp_path / precision
        (outcome,) = export_detector("tflite", servables, folder, images, precision).values()
        assert isinstance(outcome, RawVerification)
        assert outcome.num_images == 2
        assert outcome.num_boxes > 0
        assert json.loads((folder / "card.json").read_text())["precision"] == precision
        assert f"tflite in {precision}" in (folder / "README.md").read_text()
        operators = operators_of(folder / tflite.FILE)
        assert set(operators) <= BUILTIN
        # Stem, four blocks of two, three shortcuts, the pyramid's 8, and the heads of 5 levels.
        assert operators["CONV_2D"] == 1 + 4 * 2 + 3 + 8 + 5 * 2 * 2
        sizes[precision] = (folder / tflite.FILE).stat().st_size
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]
    check_documented_client(tmp_path / "float32", images / "1.png", tmp_path / "run", monkeypatch)


def check_documented_client(artifact, image, run, monkeypatch):
    """The code of docs/export.md has the detections of `predict` in the original image's pixels."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    code = "".join(b for b in blocks if "import prepare" in b or "import Interpreter" in b)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "client", raising=False)
    variables: dict = {}
    exec(code.replace("ARTIFACT", str(artifact)).replace("IMAGE", str(image)), variables)
    monkeypatch.delitem(sys.modules, "client", raising=False)
    expected = Detector.load(run)(str(image))
    assert len(expected.scores) > 5
    np.testing.assert_allclose(variables["boxes"], expected.boxes, atol=1e-3)
    np.testing.assert_allclose(variables["scores"], expected.scores, atol=1e-5)
    assert variables["names"] == list(expected.class_names)


def operators_of(file) -> collections.Counter:
    """The operators of a LiteRT file, and how often each occurs."""
    interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(str(file))
    return collections.Counter(details["op_name"] for details in interpreter._get_ops_details())


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({}, "float32", "batch_size must be fixed for tflite; try --batch_size=1"),
        ({"batch_size": 1, "image_size": None}, "float32", "image_size must be fixed for tflite"),
        ({"batch_size": 1}, "bfloat16", "load the checkpoint with dtype='float32'"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(servable, changes, dtype, message):
    servable.config.dtype = dtype
    raw = RawServable(*servable._replace(**changes))
    with pytest.raises(ValueError, match=message) as error:
        tflite.check_supported(raw)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"export tflite without it \(--raw\)"):
        tflite.check_supported(servable)


def test_a_detector_trained_in_bfloat16_can_compute_in_float32(servable, monkeypatch):
    trained = servable.checkpoint._replace(config=servable.config.copy_and_resolve_references())
    trained.config.dtype = "bfloat16"
    monkeypatch.setattr(checkpoint, "load", lambda path: trained)
    (raw,) = load_servables("run", image_sizes=[], batch_size=1, raw=True, dtype="float32")
    assert raw.config.dtype == "float32"
    assert changes_since_evaluation(raw) == ["config.dtype is float32 instead of bfloat16"]


@pytest.mark.parametrize(
    ("format_name", "precision", "message"),
    [
        ("onnx", "float16", "precision='float16' is only available for the format tflite"),
        ("tflite", "int8", "precision='int8' requires --images=FOLDER"),
        ("tflite", "int4", "precision='int4'"),
    ],
)
def test_a_precision_that_cannot_be_made_is_refused_in_one_line(format_name, precision, message):
    with pytest.raises(ValueError, match=message) as error:
        check_precision(format_name, precision, images=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format=tflite", "--precision=int8"), "precision='int8' requires --images=FOLDER"),
        (("--format=onnx", "--precision=int8"), "only available for the format tflite"),
        (("--format=tflite", "--batch_size=dynamic"), "try --batch_size=1."),
        (("--format=tflite", "--image_size=dynamic"), "try --image_size=320,320."),
        (("--format=onnx", "--image_size=130,0"), r"image_size=\(130, 0\) must be .* \(160, 32\)."),
        (("--format=onnx", "--batch_size=0"), "batch_size=0 must be at least 1; try 1."),
        (("--format=stablehlo",), "exists; give another folder."),
    ],
)
def test_an_impossible_request_is_refused_before_the_checkpoint_is_loaded(
    error_line, tmp_path, monkeypatch, flags, message
):
    monkeypatch.setattr(artifact, "check_packages", lambda *_: None)  # as if all were installed
    line = error_line("export", "--weights=/no/checkpoint", f"--output={tmp_path}", *flags)
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [
        (1, "quantizing to int8, by 1 of 1 image; about 100 images are better"),
        (20, "quantizing to int8, by 20 of 20 images"),
        (201, "quantizing to int8, by 67 of 201 images"),
    ],
)
def test_int8_is_represented_by_all_parts_of_the_images(
    servable, tmp_path, monkeypatch, capsys, num_images, expected
):
    """At most 100 images, at equal distances; a line suggests more if they are few."""
    chosen = []
    monkeypatch.setattr(quantization, "quantize", lambda file, precision, x: chosen.extend(x))
    monkeypatch.setattr(artifact.verification, "read_examples", lambda _, images: images)
    artifact._quantize(servable, tmp_path, np.arange(num_images), "int8")
    assert capsys.readouterr().out == f"{expected}\n"
    assert len(np.unique(np.diff(chosen))) <= 1
    assert chosen[0] == 0


def test_the_means_are_those_of_all_compared_boxes():
    """Two images: the coordinates of its only compared box differ by 4, 0, 0, 0; then three."""
    boxes = np.zeros((1, 3, 4), np.float32)
    scores = np.array([[[0.5, 0.0], [0.0, 0.0], [0.0, 0.1]]], np.float32)
    offsets = np.array([[4, 0, 0, 0], [9, 9, 9, 9], [0, 0, 0, 0]])
    first = raw_difference(
        RawOutputs(boxes, scores),
        RawOutputs(boxes + offsets, scores + 0.2),
        0.3,
    )
    np.testing.assert_allclose(first, (1, 1, 4.0, 0.2, 1.0, 0.2), rtol=1e-6)
    second = RawVerification(1, 3, 1.0, 0.6, 0.2, 0.6)
    np.testing.assert_allclose(first.including(second), (2, 4, 4.0, 0.6, 0.4, 0.5), rtol=1e-6)


def test_float16_limits_the_largest_difference_and_int8_the_mean():
    large = RawVerification(1, 100, box=20.0, score=0.4, mean_box=0.7, mean_score=0.007)
    scores = "scores by up to 0.4 (at most 0.0001 is allowed)"
    excess = f"boxes by up to 20 pixels (at most 0.05 is allowed), {scores}"
    assert large.excess(TOLERANCES["float32"]) == excess
    assert large.excess(TOLERANCES["float16"])
    assert large.excess(TOLERANCES["int8"]) == ""
    assert large._replace(mean_box=4.0).excess(TOLERANCES["int8"]).startswith("boxes on average by")
    assert large._replace(mean_score=float("nan")).excess(TOLERANCES["int8"])


def test_an_artifact_that_differs_too_much_is_refused(servable, monkeypatch):
    """The artifact's scores are 0.1 too large on average, at each compared anchor."""
    raw = RawServable(*servable._replace(batch_size=1))
    outputs = RawOutputs(np.zeros((1, 3, 4), np.float32), np.full((1, 3, 2), 0.5, np.float32))
    monkeypatch.setattr(RawServable, "__call__", lambda self, images, sizes: outputs)
    monkeypatch.setattr(jax, "jit", lambda function: function)
    monkeypatch.setattr(raw_verification, "compiled_off_the_clock", lambda function: function)

    def artifact(images, sizes):
        return outputs.boxes, outputs.scores + np.float32(0.1)

    images = [np.zeros((64, 96, 3), np.uint8)]
    with pytest.raises(
        ValueError, match=r"input: scores on average by 0.1 \(at most 0.03 is allowed\); on 1 image"
    ):
        raw_verification.verify(raw, artifact, images, TOLERANCES["int8"])
