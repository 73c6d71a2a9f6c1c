"""The report fails on no dataset that can be opened, and its lines are bounded."""

import contextlib
import io
import json

import numpy as np
import pytest
from absl import logging
from PIL import Image

from retinanet_jax.configs import r50_fpn
from retinanet_jax.data_report.report import make_report

MAX_LINE = 460  # characters of a line without flags
NAMES = ("cat", "$a_{$", "mèche 猫", "x" * 300, "\ud800", "<b>&amp;", "e\u0301", "%s{}", "a\nb")


def write_dataset(path, images, boxes, num_categories=1):
    """Write a COCO dataset and return the fields of config.data that read it.

    Args:
        path: The folder to write.
        images: (file name, height, width) of each image.
        boxes: (index of the image, index of the category, xywh, iscrowd) of each box.
        num_categories: The number of categories.
    """
    (path / "images").mkdir(parents=True)
    rng = np.random.default_rng(len(images))
    for name, height, width in images:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path / "images" / name)
    content = {
        "images": [
            {"id": index, "file_name": name, "height": height, "width": width}
            for index, (name, height, width) in enumerate(images)
        ],
        "annotations": [
            {"id": 2**63 + k, "image_id": i, "category_id": c, "bbox": box, "iscrowd": crowd}
            for k, (i, c, box, crowd) in enumerate(boxes)
        ],
        "categories": [
            {"id": k, "name": NAMES[k] if k < len(NAMES) else f"{NAMES[3]}{k}"}
            for k in range(num_categories)
        ],
    }
    (path / "a.json").write_text(json.dumps(content))
    return {"source": "coco", "annotations": str(path / "a.json"), "images": str(path / "images")}


def report(tmp_path, train, evaluation=None, max_images=0, **fields):
    """Return the findings by subject, after checks of all that the report prints and writes."""
    config = r50_fpn.get_config("tiny").unlock()
    config.data.train.update(train)
    config.data.eval.update(evaluation or {"annotations": "", "images": ""})
    config.data.update(loader="numpy", batch_size=2, buckets=((96, 96), (64, 320), (320, 64)))
    config.data.update(short_sides=(64,), eval_short_side=64, long_side=96)
    config.update_from_flattened_dict(fields)
    logging.set_verbosity(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        findings = make_report(config, tmp_path / "out", max_images)
    text = printed.getvalue()
    assert text.encode() == (text.encode(errors="replace"))
    assert "was not written" not in text, text[-300:]
    lines = [line for line in text.splitlines() if "--config" not in line]
    assert max(map(len, lines)) < MAX_LINE
    assert len(lines) < 300

    def refuse(constant):
        raise AssertionError(f"{constant} in report.json")

    json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=refuse)
    return {finding.subject: finding for finding in findings}


def test_a_sample_without_a_box(tmp_path):
    """Of 30 images, a single one has a box; a sample of 5 does not include it."""
    images = [(f"{index}.png", 64, 64) for index in range(30)]
    train = write_dataset(tmp_path / "data", images, [(0, 0, [3, 3, 40, 40], 0)])
    findings = report(tmp_path, train, max_images=5)
    assert findings["coverage"].severity == "warning"
    assert "none of the 5 sampled images has a box" in findings["coverage"].message
    assert "max_images" in findings["coverage"].advice
    assert "foreground" not in findings


def test_crops_that_leave_out_all_boxes(tmp_path):
    train = write_dataset(tmp_path / "data", [("i.png", 96, 96)], [(0, 0, [0, 0, 96, 96], 0)])
    fields = {"data.crop_size": (32, 32), "data.min_visible": 1.0}
    findings = report(tmp_path, train, **fields)
    assert "leave out all boxes" in findings["coverage"].message
    assert findings["crops"].severity == "warning"
    assert findings["crops"].message.startswith("crops leave out 1 of 1 boxes (100.0%)")


def test_a_thousand_categories_with_any_names_and_long_names_of_files(tmp_path):
    images = [("n" * 240 + f"{index}.png", 96, 128) for index in range(3)]
    rng = np.random.default_rng(0)
    boxes = []
    for k in range(0, 1000, 4):
        (x, y), side = rng.uniform(0, 80, 2), rng.uniform(1, 5)
        boxes.append((k % 8 // 4, k, [x, y, side, side], 0))
    train = write_dataset(tmp_path / "data", images, boxes, num_categories=1000)
    findings = report(tmp_path, train)
    assert findings["coverage"].severity == "error"
    assert findings["train: dense images"].severity == "warning"


def random_dataset(path, rng):
    """Write a dataset of few images and of any number of boxes, of which many are odd."""
    sizes = rng.choice([1, 5, 33, 96, 128, 300], (int(rng.choice([1, 2, 3, 9])), 2)).tolist()
    images = [(f"im $x_ é{k}.png", height, width) for k, (height, width) in enumerate(sizes)]
    density, crowds = rng.choice([0, 0.1, 1, 3, 150]), rng.choice([0, 0.3, 1])
    num_categories = int(rng.choice([1, 2, 11]))
    boxes = []
    for index, (height, width) in enumerate(sizes):
        for _ in range(rng.poisson(density)):
            box = rng.uniform(-0.1, 1.1, 4) * (width, height, width, height)
            odd = [box, [0, 0, width, height], [*box[:2], 1e-3, 1e-3], [0, 0, width, 1e-20]]
            chosen = np.asarray(odd[rng.integers(len(odd))], float)
            chosen[2:] = np.maximum(chosen[2:], 0)
            category, crowd = int(rng.integers(num_categories)), int(rng.random() < crowds)
            boxes.append((index, category, chosen.tolist(), crowd))
    return write_dataset(path, images, boxes, num_categories)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_datasets(tmp_path, seed):
    rng = np.random.default_rng(seed)
    train = random_dataset(tmp_path / "train", rng)
    evaluation = random_dataset(tmp_path / "eval", rng) if rng.random() < 0.5 else None
    fields = {
        "data.rot90": bool(rng.random() < 0.3),
        "anchors.max_level": int(rng.choice([5, 7])),
        "anchors.rounding": str(rng.choice(["exact", "torchvision"])),
        "matching.low_quality": bool(rng.random() < 0.7),
    }
    if rng.random() < 0.4:
        fields |= {"data.crop_size": (32, 32), "data.scale_jitter": (0.5, 3.0)}
        fields["data.min_visible"] = float(rng.choice([0, 0.5, 1]))
    report(tmp_path, train, evaluation, int(rng.choice([0, 1, 5])), **fields)
