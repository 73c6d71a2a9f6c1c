"""Artifacts: they are kept only if verified, and their model card describes them."""

import importlib.util
import json
import types

import numpy as np
import pytest
from export_examples import EXPECTED, padded_outputs
from PIL import Image

from retinanet_jax import checkpoint
from retinanet_jax.cli.export import parse_sizes
from retinanet_jax.export import artifact, model_card, verification
from retinanet_jax.export.artifact import export_detector, load_servables
from retinanet_jax.export.comparison import DetectionArrays
from retinanet_jax.export.servable import ArtifactOutputs


@pytest.fixture
def load(servable, monkeypatch):
    """`load(**arguments)` calls `load_servables` with a checkpoint that is not in a file."""
    monkeypatch.setattr(checkpoint, "load", lambda path: servable.checkpoint)

    def load(**arguments):
        return load_servables("run", **{"image_sizes": [], "batch_size": None, **arguments})

    return load


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_sizes": [(64, 64), (64, 65)]},
            r"image_size=\(64, 65\) must be .*, each a multiple of 32; try \(64, 96\)",
        ),
        ({"image_sizes": [(64,)]}, r"image_size=\(64,\) must be \(height, width\)"),
        ({"image_sizes": [(0, 64)]}, r"image_size=\(0, 64\) must be \(height, width\)"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"score_threshold": 1.5}, "score_threshold=1.5"),
        ({"max_detections": 0}, "max_detections=0"),
        ({"iou_threshold": -0.1}, "iou_threshold=-0.1"),
    ],
)
def test_invalid_sizes_and_limits_raise_an_error_of_one_line(load, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        load(**arguments)
    assert "\n" not in str(error.value)


def test_sizes_are_given_as_a_pair_or_as_a_list():
    assert parse_sizes([]) == []
    assert parse_sizes(["64", "96"]) == [[64, 96]]
    assert parse_sizes(["64x96"]) == [[64, 96]]
    assert parse_sizes(["64x96", "96x64"]) == [[64, 96], [96, 64]]
    for items in (["64", "wide"], ["64x96", "96x"]):
        with pytest.raises(ValueError, match=f"--image_size={','.join(items)} must be HEIGHT,WID"):
            parse_sizes(items)


def test_limits_change_the_artifact_and_not_the_checkpoint(load, servable):
    (limited,) = load(iou_threshold=0.625, class_agnostic=True, score_threshold=None)
    assert limited.image_size == (64, 64)
    assert limited.config.detections.iou_threshold == 0.625
    assert limited.config.detections.class_agnostic is True
    assert servable.checkpoint.config.detections.iou_threshold == 0.5


@pytest.fixture
def fake_format(monkeypatch, servable):
    """`fake_format(outputs, expected)` makes stablehlo a format with artifacts of fixed outputs."""

    def fake_format(outputs: ArtifactOutputs, expected: DetectionArrays = EXPECTED):
        def run(images, sizes):
            return ArtifactOutputs(*(np.repeat(x, 2, 0) for x in outputs))

        module = types.SimpleNamespace(
            PACKAGES=(),
            write=lambda servable, folder: (folder / "artifact").write_text("a"),
            load=lambda folder: run,
            check_supported=lambda servable: None,
        )
        monkeypatch.setitem(artifact.FORMATS, "stablehlo", module)
        for name in ("make_predict", "make_reference"):
            monkeypatch.setattr(verification, name, lambda servable: lambda example: expected)

    return fake_format


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"boxes": EXPECTED.boxes + 0.0625},
            r"those of predict: boxes differ by 0\.062 pixels",
        ),
        ({"scores": EXPECTED.scores - np.float32(2e-4)}, r"scores by 0\.0002 "),
        (
            {"categories": np.array([7, 7])},
            "8 detections have no counterpart; 8 are expected on 4 images",
        ),
    ],
)
def test_an_artifact_with_other_detections_is_removed(
    fake_format, servable, tmp_path, changed, message
):
    fake_format(padded_outputs(**{**EXPECTED._asdict(), **changed}))
    with pytest.raises(ValueError, match=message) as error:
        export_detector("stablehlo", [servable], tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_expected_detections_nothing_is_called_verified(fake_format, servable, tmp_path):
    nothing = DetectionArrays(*(x[:0] for x in EXPECTED))
    fake_format(padded_outputs(*nothing), expected=nothing)
    (outcome,) = export_detector("stablehlo", [servable], tmp_path / "out").values()
    message = "not verified: the checkpoint has no detections on the 4 images; verify on"
    assert outcome.summary().startswith(message)
    assert message.capitalize() in (tmp_path / "out" / model_card.README).read_text()


def test_values_after_the_last_detection_must_be_zero(fake_format, servable, tmp_path):
    outputs = padded_outputs(*EXPECTED)
    outputs.scores[0, 2] = 0.1
    fake_format(outputs)
    with pytest.raises(ValueError, match="returns values after its 2 detections"):
        export_detector("stablehlo", [servable], tmp_path / "out")


def test_several_sizes_are_artifacts_in_folders_of_their_own(fake_format, servable, tmp_path):
    fake_format(padded_outputs(*EXPECTED))
    portrait = servable._replace(image_size=(96, 64))
    outcomes = export_detector("stablehlo", [servable, portrait], tmp_path / "out")
    assert list(outcomes) == [tmp_path / "out" / "64x96", tmp_path / "out" / "96x64"]
    for folder, image_size in zip(outcomes, ([64, 96], [96, 64]), strict=True):
        assert json.loads((folder / model_card.FILE).read_text())["image_size"] == image_size
        assert (folder / "artifact").is_file()


def test_an_export_prints_what_it_does(fake_format, servable, tmp_path, capsys):
    fake_format(padded_outputs(*EXPECTED))
    for k in range(3):
        Image.new("RGB", (64, 60 + k)).save(tmp_path / f"{k}.png")
    export_detector("stablehlo", [servable], tmp_path / "out", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    expected = ["reading: 3/3 images", "writing stablehlo", "loading it", "verifying: 3/3 images"]
    assert [line[: len(text)] for line, text in zip(lines, expected, strict=True)] == expected


def test_an_image_that_cannot_be_read_is_an_error_before_the_export(
    fake_format, servable, tmp_path, capsys
):
    fake_format(padded_outputs(*EXPECTED))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"b\.png: the image is corrupt or truncated"):
        export_detector("stablehlo", [servable], tmp_path / "out", tmp_path)
    assert "writing" not in capsys.readouterr().out


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch, servable, tmp_path
):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else object()
    )
    message = (
        "the format onnx requires onnx, not installed here; run "
        r'`pip install "retinanet-jax\[onnx\]"`\.'
    )
    with pytest.raises(ValueError, match=message):
        export_detector("onnx", [servable], tmp_path / "out")


def test_an_existing_folder_is_not_overwritten(servable, tmp_path):
    pytest.importorskip("flatbuffers")
    with pytest.raises(FileExistsError, match="exists; give another folder"):
        export_detector("stablehlo", [servable], tmp_path)


def test_a_folder_without_images_is_an_error(servable, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image in /.*; give image"):
        artifact.verification_images(servable, tmp_path)
