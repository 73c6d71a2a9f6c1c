"""Artifacts: they are kept only if verified, and their model card describes them."""

import hashlib
import importlib.util
import json
import types

import numpy as np
import pytest
from export_examples import EXPECTED, padded_outputs

from retinanet_jax import detector
from retinanet_jax.export import artifact, model_card, verification
from retinanet_jax.export.artifact import export_detector, load_servable
from retinanet_jax.export.servable import ArtifactOutputs
from retinanet_jax.export.verification import DetectionArrays


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_size": (64, 65)},
            r"image_size=\(64, 65\) must be \(height, width\), each a multiple of 32",
        ),
        ({"image_size": (64,)}, r"image_size=\(64,\) must be \(height, width\)"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"score_threshold": 1.5}, "score_threshold=1.5"),
        ({"max_detections": 0}, "max_detections=0"),
    ],
)
def test_invalid_sizes_and_limits_raise_an_error_of_one_line(
    servable, monkeypatch, arguments, message
):
    monkeypatch.setattr(detector, "load_checkpoint", lambda path: servable.checkpoint)
    defaults = dict.fromkeys(("image_size", "batch_size", "score_threshold", "max_detections"))
    with pytest.raises(ValueError, match=message) as error:
        load_servable("run", **{**defaults, **arguments})
    assert "\n" not in str(error.value)


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
        )
        monkeypatch.setitem(artifact.FORMATS, "stablehlo", module)
        monkeypatch.setattr(
            verification, "make_reference", lambda servable: lambda images, sizes: [expected] * 2
        )

    return fake_format


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"boxes": EXPECTED.boxes + 0.0625}, r"boxes differ by 0\.062 pixels"),
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
        export_detector("stablehlo", servable, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_expected_detections_nothing_is_called_verified(fake_format, servable, tmp_path):
    nothing = DetectionArrays(*(x[:0] for x in EXPECTED))
    fake_format(padded_outputs(*nothing), expected=nothing)
    difference = export_detector("stablehlo", servable, tmp_path / "out")
    message = "not verified: the checkpoint has no detections on the 4 images; verify on"
    assert verification.summary(difference).startswith(message)
    assert message.capitalize() in (tmp_path / "out" / model_card.README).read_text()


def test_values_after_the_last_detection_must_be_zero(fake_format, servable, tmp_path):
    outputs = padded_outputs(*EXPECTED)
    outputs.scores[0, 2] = 0.1
    fake_format(outputs)
    with pytest.raises(ValueError, match="returns values after its 2 detections"):
        export_detector("stablehlo", servable, tmp_path / "out")


def test_the_card_describes_the_checkpoint_and_the_artifact(fake_format, servable, tmp_path):
    servable.config.detections.update(score_threshold=0.25, max_detections=3)
    evaluation = servable.checkpoint.folder.parent.parent / "eval"
    evaluation.mkdir(parents=True)
    (evaluation / "12.json").write_text(json.dumps({"AP": 0.5, "AP50": 0.75}))
    fake_format(padded_outputs(*EXPECTED))
    difference = export_detector("stablehlo", servable, tmp_path / "out")
    summary = verification.summary(difference)
    assert "8 detections on 4 images, boxes within 0 pixels" in summary
    card = json.loads((tmp_path / "out" / model_card.FILE).read_text())
    assert card["checkpoint"]["step"] == 12
    assert card["checkpoint"]["metrics"]["AP"] == 0.5
    assert card["checkpoint"]["config"]["model"]["backbone"] == "toy"
    assert card["categories"] == [{"id": 3, "name": "egg"}, {"id": 7, "name": "hen"}]
    assert (card["image_size"], card["score_threshold"]) == ([64, 96], 0.25)
    assert list(card["verified"].values()) == [4, 8, 0, 0, 0]
    assert card["sha256"] == {"artifact": hashlib.sha256(b"a").hexdigest()}
    page = (tmp_path / "out" / model_card.README).read_text()
    assert "step 12: AP 0.500, AP50 0.750" in page
    assert "| images | uint8 | any x 64 x 96 x 3 |" in page
    assert "3 egg, 7 hen" in page
    assert summary.removeprefix("verified") in page


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch, servable, tmp_path
):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else object()
    )
    message = (
        "The format onnx requires packages that are not installed: onnx; run "
        r"`pip install onnx` or `pip install 'retinanet_jax\[onnx\]'`"
    )
    with pytest.raises(ValueError, match=message):
        export_detector("onnx", servable, tmp_path / "out")


def test_an_existing_folder_is_not_overwritten(servable, tmp_path):
    pytest.importorskip("flatbuffers")
    with pytest.raises(FileExistsError, match="exists already; choose another"):
        export_detector("stablehlo", servable, tmp_path)


def test_a_folder_without_images_is_an_error(servable, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image \(\.jpg, .*\) in /.*; give image"):
        artifact.verification_images(servable, tmp_path)
