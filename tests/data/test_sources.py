"""Subsets of a dataset are datasets, its split is reproducible, and memory has a box once."""

import json
import time

import numpy as np
import pytest

from retinanet_jax.data.sources import image_headers
from retinanet_jax.data.sources.base import subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.csv_files import CsvSource
from retinanet_jax.data.sources.merged import merge
from retinanet_jax.data.sources.split import split_by_hash
from retinanet_jax.data.sources.voc import VocSource


def names(source) -> list[str]:
    return [source.file_name(index) for index in range(len(source))]


@pytest.fixture
def twelve_images(folder):
    for index in range(12):
        folder.add_image(40 + index, 60)
        folder.add_box(index + 1, [index, 0, 10, 10])
    return folder


def test_a_subset_is_the_source_at_those_indices(twelve_images):
    source = twelve_images.load()
    part = subset(source, [7, 2])
    assert len(part) == 2
    assert list(part.image_ids) == [8, 3]
    assert part.sizes.tolist() == [[47, 60], [42, 60]]
    assert part.read(1) == source.read(2)
    assert part.annotations(0).boxes.tolist() == source.annotations(7).boxes.tolist()
    truth = part.ground_truth()
    assert [image["id"] for image in truth["images"]] == [8, 3]
    assert [annotation["image_id"] for annotation in truth["annotations"]] == [8, 3]
    assert len(truth["categories"]) == 2
    assert names(subset(part, [1])) == ["3.img"]


def test_a_split_has_every_image_in_one_part(twelve_images):
    source = twelve_images.load()
    train, validation = split_by_hash(source, 0.3)
    assert sorted(names(train) + names(validation)) == sorted(names(source))
    assert len(train) > 0
    assert len(validation) > 0


def test_an_image_stays_in_its_part_when_others_are_added(twelve_images):
    before = split_by_hash(twelve_images.load(), 0.4)
    for _ in range(30):
        twelve_images.add_image(40, 60)
    after = split_by_hash(twelve_images.load(), 0.4)
    for part in (0, 1):
        assert set(names(before[part])) <= set(names(after[part]))


def test_the_split_is_the_same_on_every_machine(twelve_images):
    # The sha256 of these names, as a fraction of 2^256, is below 0.3.
    expected = ["4.img", "7.img", "10.img", "11.img"]
    assert names(split_by_hash(twelve_images.load(), 0.3)[1]) == expected


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_no_part_is_ever_empty(twelve_images, fraction):
    train, validation = split_by_hash(twelve_images.load(), fraction)
    assert min(len(train), len(validation)) == 1


def test_a_single_image_cannot_be_split(folder):
    folder.add_image(40, 60)
    with pytest.raises(ValueError, match="1 images cannot be split"):
        split_by_hash(folder.load(), 0.5)
    with pytest.raises(ValueError, match=r"fraction=1\.5 must lie between 0 and 1"):
        split_by_hash(folder.load(), 1.5)


def write_coco(folder, boxes, images):
    annotations = [
        {"id": k, "image_id": k % 2, "category_id": 1, "bbox": [x, y, x2 - x, y2 - y]}
        for k, (x, y, x2, y2) in enumerate(boxes)
    ]
    content = {"annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    content["images"] = [
        {"id": k, "file_name": f"{k}.jpg", "height": 40, "width": 60} for k in range(2)
    ]
    (folder / "instances.json").write_text(json.dumps(content))
    return lambda: CocoSource(folder / "instances.json", images)


def write_csv(folder, boxes, images):
    lines = [f"{k % 2}.jpg,{','.join(map(str, box))},cat\n" for k, box in enumerate(boxes)]
    (folder / "boxes.csv").write_text("".join(lines))
    (folder / "classes.csv").write_text("cat,0")
    return lambda: CsvSource(folder / "boxes.csv", folder / "classes.csv", images)


def write_voc(folder, boxes, images):
    for k in range(2):
        objects = "".join(
            f"<object><name>cat</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for x1, y1, x2, y2 in boxes[k::2]
        )
        size = "<size><width>60</width><height>40</height></size>"
        (folder / f"{k}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return lambda: VocSource(folder, images=images, split="", categories=())


@pytest.mark.parametrize(
    "write",
    [
        write_coco,
        *(pytest.param(write, marks=pytest.mark.slow) for write in (write_csv, write_voc)),
    ],
)
def test_memory_has_every_box_once_in_less_than_72_bytes(tmp_path, encode, measure_memory, write):
    """The numbers of a box, in float64, are 32 of these; a dict of them takes several hundred."""
    images = tmp_path / "images"
    images.mkdir()
    for k in range(2):
        (images / f"{k}.jpg").write_bytes(encode(np.zeros((40, 60, 3), np.uint8), "JPEG"))
    boxes = [(k % 7 + 0.1, k % 9 + 0.2, k % 50 + 9.3, k % 30 + 10.4) for k in range(1000)]
    open_source = write(tmp_path, boxes, images)
    source, num_bytes = measure_memory(open_source)
    assert num_bytes < 72 * len(boxes)
    # The parts of a split have each box once; the merged dataset has all of them.
    for combine, count in (
        (lambda: split_by_hash(source, 0.5), len(boxes)),
        (lambda: merge([source, source]), 2 * len(boxes)),
    ):
        assert measure_memory(combine)[1] < 72 * count
    # Boxes are exact: in training as float32, and in the ground truth as in the file.
    expected = np.array(boxes)[0::2, [1, 0, 3, 2]].astype(np.float32)
    np.testing.assert_array_equal(source.annotations(0).boxes, expected)
    first = source.ground_truth()["annotations"][0]
    assert first["bbox"] == [0.1, 0.2, 9.2, 10.2]


def test_headers_are_read_few_images_ahead(monkeypatch, tmp_path):
    """A million images would otherwise have a million waiting calls, which take gigabytes."""
    taken, most = 0, 0

    class Names(list):
        def __iter__(self):
            nonlocal taken
            for name in super().__iter__():
                taken += 1
                yield name

    def read_header(path):
        nonlocal most
        if path.name == "0.jpg":
            time.sleep(0.1)  # meanwhile, nothing keeps the others from being taken
            most = taken
        return int(path.stem)

    monkeypatch.setattr(image_headers, "_header_or_error", read_header)
    names = Names(f"{k}.jpg" for k in range(1000))
    assert list(image_headers.read_headers(tmp_path, names)) == list(range(1000))
    assert most <= 2 * image_headers.NUM_READERS + 1
