"""The report names what was unusual in the files, and images that are nearly in both parts."""

import io
import json

import numpy as np
import pytest
from absl import logging
from PIL import Image

from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data_report.image_checks import check_near_duplicates, take_fingerprints
from retinanet_jax.data_report.reading import check_reading, collect_warnings, open_parts


def smooth(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)


def write(folder, images):
    """Write a COCO dataset of images, each with one box, and open it."""
    (folder / "images").mkdir(parents=True)
    entries, boxes = [], []
    for k, (image, quality) in enumerate(images, 1):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        (folder / "images" / f"{k}.jpg").write_bytes(file.getvalue())
        entries.append({"id": k, "file_name": f"{k}.jpg", "height": 60, "width": 80})
        boxes.append({"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 0})
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (folder / "x.json").write_text(json.dumps(content))
    return CocoSource(folder / "x.json", folder / "images")


@pytest.fixture
def near_duplicates(tmp_path):
    def check(train, evaluation):
        sources = [write(tmp_path / "t", train), write(tmp_path / "e", evaluation)]
        fingerprints = {
            part: take_fingerprints(source, decoded=(), progress=lambda count: None)
            for part, source in zip(("train", "eval"), sources, strict=True)
        }
        return check_near_duplicates(*sources, fingerprints)

    return check


def test_copies_in_another_quality_are_an_error_and_are_named(near_duplicates):
    images = [(smooth(k), 90) for k in range(4)]
    finding = near_duplicates(images, [(smooth(2), 40), (smooth(9), 90), (smooth(0), 50)])
    assert finding.severity == "error"
    assert finding.message.startswith("2 of 3 images of eval are nearly identical")
    assert set(finding.examples) == {"3.jpg = 1.jpg", "1.jpg = 3.jpg"}


def test_equal_bytes_are_left_to_the_other_finding(near_duplicates):
    finding = near_duplicates([(smooth(1), 90), (smooth(2), 90)], [(smooth(1), 90)])
    assert finding.severity == "info"


def test_warnings_of_reading_are_findings_and_are_not_printed(config, tmp_path, capfd):
    write(tmp_path / "t", [(smooth(k), 90) for k in range(3)])
    config.data.train.update(
        annotations=str(tmp_path / "t/x.json"), images=str(tmp_path / "t/images")
    )
    config.data.eval.update(annotations="", images="", source="coco")
    verbosity = logging.get_verbosity()
    parts, findings = open_parts(config, tmp_path)
    assert list(parts) == ["train"]
    assert [(finding.severity, finding.subject) for finding in findings] == [("warning", "reading")]
    assert "3 annotations have an `area` of 0 or less" in findings[0].message
    assert logging.get_verbosity() == verbosity
    assert capfd.readouterr().err == ""


def test_each_warning_is_one_finding():
    with collect_warnings() as messages:
        for _ in range(2):
            logging.warning("a\nb")
        logging.error("not a warning")
    assert messages == ["a b", "a b"]
    assert len(check_reading(messages)) == 1
