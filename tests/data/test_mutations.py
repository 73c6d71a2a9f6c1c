"""Changed datasets are read right, or refused in one line: never a traceback, never two readings.

Each changed dataset is opened, checked, reported and evaluated. What training, report and AP read
must be the same boxes; a change that keeps the meaning must change none of them.
"""

import json
import pathlib
import random
import shutil
import warnings

import numpy as np
import pytest
from mutations import (
    change_files,
    change_json_file,
    change_text_file,
    rewrite_csv,
    rewrite_json,
    rewrite_text,
)
from nine_formats import FORMATS, Box, Content

from retinanet_jax import datasets
from retinanet_jax.config import default_config
from retinanet_jax.data_report import annotation_checks
from retinanet_jax.evaluation.coco_metrics import coco_metrics

# The first and the number of the changes of each type and format.
COUNTS = [(0, 20), pytest.param((20, 120), marks=pytest.mark.slow)]
MAX_LINE = 1200  # characters of a message, of which the path of the temporary folder is a part
CONTENT = Content(
    sizes={"küche 1.jpg": (60, 80), "b.jpg": (70, 50), "c.jpg": (40, 40)},
    names=("cat", "dog"),
    boxes=[
        Box("küche 1.jpg", "cat", (10, 5, 30, 35)),
        Box("küche 1.jpg", "dog", (40, 15, 75, 45)),
        Box("b.jpg", "dog", (0, 0, 50, 70)),
        Box("b.jpg", "cat", (20, 30, 25, 41)),
    ],
)
# The format, and the files that are changed.
CHANGED = {"coco": "*.json", "voc": "*.xml", "csv": "*.csv", "yolo": "*.txt"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    return {name: FORMATS[name](root / name, CONTENT) for name in CHANGED}


def open_changed(folder, workdir):
    """Open the data of a folder; return None if it is refused, in one line."""
    config = default_config()
    try:
        datasets.use_dataset(config, folder, given=())
        source = datasets.open_source(config, "train", workdir)
        datasets.check_training_data(source)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert len(message) < MAX_LINE
        return None
    return source


def check_one_reading(source) -> None:
    """Check that training, report and AP read the same boxes, and that nothing fails."""
    boxes = annotation_checks.read_boxes(source)
    pairs = annotation_checks.duplicate_pairs(boxes)
    for check in (
        annotation_checks.check_content,
        annotation_checks.check_categories,
        annotation_checks.check_empty_images,
        annotation_checks.check_boxes_without_area,
        annotation_checks.check_boxes_outside,
    ):
        assert "\n" not in check(source, boxes).message
    annotation_checks.check_duplicate_boxes(source, boxes, pairs)
    truth = source.ground_truth()
    json.dumps(truth, allow_nan=False)
    has_area = ~boxes.empty_mask
    trained = [source.annotations(index) for index in range(len(source))]
    np.testing.assert_array_equal(np.concatenate([a.boxes for a in trained]), boxes.boxes[has_area])
    crowd = [bool(x["iscrowd"]) for x in truth["annotations"]]
    assert crowd == boxes.crowd_mask.tolist()
    assert (
        np.concatenate([a.crowd for a in trained]).tolist() == boxes.crowd_mask[has_area].tolist()
    )
    # Detections that equal the objects are all right, except at boxes that only AP counts.
    results = [
        {
            "image_id": source.image_ids[index],
            "category_id": source.categories[k].id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": 0.5,
        }
        for index, annotations in enumerate(trained)
        for (y1, x1, y2, x2), k, is_crowd in zip(
            annotations.boxes.tolist(), annotations.classes.tolist(), annotations.crowd, strict=True
        )
        if not is_crowd
    ]
    inside = not boxes.outside.any() and has_area.all()
    ap = coco_metrics(truth, results)[0]["AP"]
    if inside and results:
        assert ap == pytest.approx(1)


def readings(source):
    """Return all boxes by image and category, by name."""
    return sorted(
        (pathlib.PurePath(source.file_name(index)).name, source.categories[k].name, box)
        for index in range(len(source))
        for box, k in zip(*(x.tolist() for x in source.annotations(index)[:2]), strict=True)
    )


def changed_copy(original, folder):
    """Return a fresh copy of a dataset."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    return folder


@pytest.mark.parametrize("seeds", COUNTS, ids=["few", "many"])
@pytest.mark.parametrize("name", CHANGED)
def test_any_change_is_read_in_one_way_or_refused_in_one_line(originals, tmp_path, name, seeds):
    accepted = 0
    for seed in range(*seeds):
        rng = random.Random(f"{name} {seed}")
        folder = changed_copy(originals[name], tmp_path / name)
        if rng.random() < 0.2:
            change_files(folder, rng)
        else:
            path = rng.choice(sorted(folder.rglob(CHANGED[name])))
            change = change_json_file if name == "coco" else change_text_file
            change(path, rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                source = open_changed(folder, tmp_path)
                if source is not None:
                    check_one_reading(source)
                    accepted += 1
        except Exception as error:
            error.add_note(f"{name}, seed {seed}: {folder}")
            raise
    assert 0 < accepted < len(range(*seeds))


REWRITTEN = {
    "coco": ("boxes.json", "json"),
    "csv": ("boxes.csv", "csv"),
    "voc": ("*.xml", "text"),
    "yolo": ("labels/train/*.txt", "text"),
}


@pytest.mark.parametrize("seeds", COUNTS, ids=["few", "many"])
@pytest.mark.parametrize("name", REWRITTEN)
def test_a_change_that_keeps_the_meaning_changes_no_box(originals, tmp_path, name, seeds):
    expected = readings(open_changed(originals[name], tmp_path))
    pattern, file_type = REWRITTEN[name]
    for seed in range(*seeds):
        rng = random.Random(f"{name} {seed}")
        folder = changed_copy(originals[name], tmp_path / name)
        for path in sorted(folder.glob(pattern)):
            text = path.read_text()
            if file_type == "json":
                tree = json.loads(text)
                for _ in range(rng.randrange(1, 6)):
                    rewrite_json(tree, rng)
                text = json.dumps(tree)
            else:
                text = (rewrite_csv if file_type == "csv" else rewrite_text)(text, rng)
            path.write_text(text, newline="")
        source = open_changed(folder, tmp_path)
        assert source is not None, f"{name}, seed {seed}: {folder}"
        assert readings(source) == expected, f"{name}, seed {seed}: {folder}"


def test_hidden_files_change_nothing(originals, tmp_path):
    for name in CHANGED:
        folder = changed_copy(originals[name], tmp_path / name)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
        assert readings(open_changed(folder, tmp_path)) == readings(
            open_changed(originals[name], tmp_path)
        )
