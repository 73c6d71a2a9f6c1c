"""The server in docs/serving.md answers with the detections of the Python API."""

import io
import pathlib
import re
import sys

import numpy as np
import pytest
from export_examples import write_checkpoint
from PIL import ExifTags, Image

from retinanet_jax import Detector
from retinanet_jax.data.sources.synthetic import generate_image
from retinanet_jax.export.artifact import export_detector, load_servables

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


def to_jpeg(height, width, orientation) -> bytes:
    """A synthetic image, which is to be rotated by its EXIF orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.asarray(generate_image(5, orientation, 130)[0])[:height, :width]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("image_sizes", [[], pytest.param(None, marks=pytest.mark.exhaustive)])
def test_the_documented_server_has_the_detections_of_the_python_api(
    toy_config, tmp_path, monkeypatch, image_sizes
):
    fastapi = pytest.importorskip("fastapi.testclient")
    for package in ("httpx", "python_multipart", "flatbuffers"):
        pytest.importorskip(package)
    write_checkpoint(tmp_path / "run", toy_config, buckets=((96, 96),))
    servables = load_servables(str(tmp_path / "run"), image_sizes=image_sizes, batch_size=None)
    export_detector("stablehlo", servables, tmp_path / "artifact")

    monkeypatch.syspath_prepend(tmp_path / "artifact")
    monkeypatch.delitem(sys.modules, "client", raising=False)
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    server = {}
    exec(code.replace('"ARTIFACT"', repr(str(tmp_path / "artifact"))), server)
    client = fastapi.TestClient(server["app"])
    detector = Detector.load(tmp_path / "run")
    for content in (to_jpeg(97, 41, 1), to_jpeg(60, 130, 6)):
        expected = detector(io.BytesIO(content))
        answer = client.post("/detect", files={"file": ("a.jpg", content)}).json()
        assert len(answer) == len(expected) > 5
        names = [detection.class_name for detection in expected]
        assert [entry["category"] for entry in answer] == names
        scores = [entry["score"] for entry in answer]
        np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose([e["box"] for e in answer], expected.boxes, atol=0.02)

    answer = client.post("/detect", files={"file": ("a.jpg", b"<html>")})
    assert answer.status_code == 415
    assert answer.json() == {"detail": "a.jpg cannot be read as an image."}
