"""Pictures for people."""

import json

import numpy as np
from PIL import Image

from retinanet_jax import visualize
from retinanet_jax.data.sources.coco import CocoSource


def test_neighbouring_classes_differ_in_colour():
    colors = np.array([visualize.color(k) for k in range(80)])
    assert len({tuple(color) for color in colors.tolist()}) == 80
    assert np.linalg.norm(np.diff(colors, axis=0), axis=1).min() > 100


def test_a_box_is_drawn_around_its_pixels():
    black = np.zeros((100, 200, 3), np.uint8)
    drawn = np.asarray(visualize.draw(black, np.array([[30, 20, 61, 121.0]]), [""], [3]))
    inked = (drawn == visualize.color(3)).all(axis=-1)
    rows, columns = (np.flatnonzero(inked.any(axis=axis)) for axis in (1, 0))
    # The maximum is exclusive: the last pixels of the box are row 60 and column 120.
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (30, 60, 20, 120)
    assert not inked[33:58, 23:118].any()
    assert not black.any()


def test_a_label_stands_above_its_box_or_inside_at_the_top():
    black = np.zeros((100, 200, 3), np.uint8)
    for top, above in ((50, True), (0, False)):
        box = np.array([[top, 20, top + 40, 150.0]])
        drawn = np.asarray(visualize.draw(black, box, ["cat 0.97"], [0]))
        plain = np.asarray(visualize.draw(black, box, [""], [0]))
        rows = np.flatnonzero((drawn != plain).any(axis=(1, 2)))
        assert rows.size
        assert (rows.max() <= top) if above else (rows.max() < 40)


def test_a_label_at_the_right_edge_is_whole():
    black = np.zeros((100, 200, 3), np.uint8)
    columns = []
    for left in (20, 190):
        box = np.array([[50, left, 90, left + 8.0]])
        drawn, plain = (np.asarray(visualize.draw(black, box, [x], [0])) for x in ("cat 0.97", ""))
        columns.append(np.flatnonzero((drawn != plain).any(axis=(0, 2))))
    assert len(columns[0]) == len(columns[1]) > 20


def test_boxes_of_no_extent_and_of_the_edge_are_drawn():
    black = np.zeros((20, 20, 3), np.uint8)
    boxes = np.array([[5, 5, 5, 5], [0, 0, 20, 20], [19, 19, 20, 20.0]])
    assert visualize.draw(black, boxes, ["a", "b", "c"], [0, 1, 2]).size == (20, 20)


def test_compare_has_truth_on_the_left_and_confident_detections_on_the_right(drawn):
    source = CocoSource(drawn / "instances.json", drawn / "images")
    annotation = json.loads((drawn / "instances.json").read_text())["annotations"][-1]
    index = list(source.image_ids).index(annotation["image_id"])
    found = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}

    def compare(score):
        results = [{**found, "score": score}]
        return np.asarray(visualize.compare(source, results, count=len(source), side=100))

    with_box, without = compare(0.9), compare(0.1)
    # Two pairs a row, and 4 pixels between the cells.
    assert with_box.shape == (104 * -(-len(source) // 2), 104 * 4, 3)
    rows, columns, _ = np.nonzero(with_box != without)
    assert {*rows // 104} == {index // 2}
    assert {*columns // 104} == {2 * (index % 2) + 1}
    # At the size of the picture's cell: here 100 pixels for 64.
    x, y, width, height = (value * 100 / 64 for value in annotation["bbox"])
    ink = visualize.color([c.id for c in source.categories].index(annotation["category_id"]))
    left, top = 104 * (2 * (index % 2) + 1), 104 * (index // 2)
    assert tuple(with_box[int(top + y + height) - 1, int(left + x + width / 2)]) == ink
    assert tuple(with_box[int(top + y + height / 2), int(left + x + width) - 1]) == ink


def test_compare_takes_pictures_evenly_spread(drawn, monkeypatch):
    source = CocoSource(drawn / "instances.json", drawn / "images")
    indices = []

    def read(index):
        indices.append(int(index))
        return CocoSource.read(source, index)

    monkeypatch.setattr(source, "read", read)
    visualize.compare(source, [], count=3)
    assert indices == [0, 9, 19]


def test_a_sheet_keeps_each_picture_whole():
    sizes = ((50, 60), (60, 2), (30, 30))
    sheet = np.asarray(
        visualize.sheet([Image.new("RGB", size, "red") for size in sizes], side=60, columns=2)
    )
    assert sheet.shape == (2 * 64, 2 * 64, 3)
    red = (sheet == (255, 0, 0)).all(axis=-1)
    assert (red[:64, :64].sum(), red[:64, 64:].sum(), red[64:].sum()) == (3000, 120, 900)
