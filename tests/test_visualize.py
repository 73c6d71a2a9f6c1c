"""Labeled boxes and contact sheets show what they should, at the right pixels."""

import json

import numpy as np
from PIL import Image

from retinanet_jax import visualize
from retinanet_jax.data.sources.coco import CocoSource


def test_consecutive_classes_differ_in_color():
    colors = np.array([visualize.class_color(k) for k in range(80)])
    assert len({tuple(color) for color in colors.tolist()}) == 80
    assert np.linalg.norm(np.diff(colors, axis=0), axis=1).min() > 100


def test_a_box_contains_its_first_and_last_pixels():
    black = np.zeros((100, 200, 3), np.uint8)
    drawing = np.asarray(visualize.draw(black, np.array([[30, 20, 61, 121.0]]), [""], [3]))
    colored = (drawing == visualize.class_color(3)).all(axis=-1)
    rows, columns = (np.flatnonzero(colored.any(axis=axis)) for axis in (1, 0))
    # The maximum is exclusive: the last pixels of the box are row 60 and column 120.
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (30, 60, 20, 120)
    assert not colored[33:58, 23:118].any()
    assert not black.any()


def test_a_label_is_above_its_box_or_inside_it_at_the_top_of_the_image():
    black = np.zeros((100, 200, 3), np.uint8)
    for top, above in ((50, True), (0, False)):
        box = np.array([[top, 20, top + 40, 150.0]])
        labeled = np.asarray(visualize.draw(black, box, ["cat 0.97"], [0]))
        plain = np.asarray(visualize.draw(black, box, [""], [0]))
        rows = np.flatnonzero((labeled != plain).any(axis=(1, 2)))
        assert rows.size
        assert (rows.max() <= top) if above else (rows.max() < 40)


def test_a_label_at_the_right_edge_is_not_cut_off():
    black = np.zeros((100, 200, 3), np.uint8)
    columns = []
    for left in (20, 190):
        box = np.array([[50, left, 90, left + 8.0]])
        labeled, plain = (
            np.asarray(visualize.draw(black, box, [label], [0])) for label in ("cat 0.97", "")
        )
        columns.append(np.flatnonzero((labeled != plain).any(axis=(0, 2))))
    assert len(columns[0]) == len(columns[1]) > 20


def test_empty_boxes_and_boxes_at_the_edge_are_no_error():
    black = np.zeros((20, 20, 3), np.uint8)
    boxes = np.array([[5, 5, 5, 5], [0, 0, 20, 20], [19, 19, 20, 20.0]])
    assert visualize.draw(black, boxes, ["a", "b", "c"], [0, 1, 2]).size == (20, 20)


def test_a_comparison_shows_ground_truth_on_the_left_and_confident_detections_on_the_right(
    synthetic_dataset,
):
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")
    annotation = json.loads((synthetic_dataset / "instances.json").read_text())["annotations"][-1]
    index = list(source.image_ids).index(annotation["image_id"])
    result = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}

    def comparison(score):
        results = [{**result, "score": score}]
        return np.asarray(visualize.comparison_sheet(source, results, count=len(source), side=100))

    with_box, without = comparison(0.9), comparison(0.1)
    # Two images per row, each twice, and 4 pixels between the cells.
    assert with_box.shape == (104 * -(-len(source) // 2), 104 * 4, 3)
    rows, columns, _ = np.nonzero(with_box != without)
    assert {*rows // 104} == {index // 2}
    assert {*columns // 104} == {2 * (index % 2) + 1}
    # Scaled as the image is to its cell: from 64 pixels to 100.
    x, y, width, height = (value * 100 / 64 for value in annotation["bbox"])
    category_ids = [category.id for category in source.categories]
    color = visualize.class_color(category_ids.index(annotation["category_id"]))
    left, top = 104 * (2 * (index % 2) + 1), 104 * (index // 2)
    assert tuple(with_box[int(top + y + height) - 1, int(left + x + width / 2)]) == color
    assert tuple(with_box[int(top + y + height / 2), int(left + x + width) - 1]) == color


def test_the_images_of_a_comparison_are_evenly_spread(synthetic_dataset, monkeypatch):
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")
    indices = []

    def read(index):
        indices.append(int(index))
        return CocoSource.read(source, index)

    monkeypatch.setattr(source, "read", read)
    visualize.comparison_sheet(source, [], count=3)
    assert indices == [0, 9, 19]


def test_a_sheet_shows_each_image_completely():
    sizes = ((50, 60), (60, 2), (30, 30))
    sheet = np.asarray(
        visualize.sheet([Image.new("RGB", size, "red") for size in sizes], side=60, columns=2)
    )
    assert sheet.shape == (2 * 64, 2 * 64, 3)
    red = (sheet == (255, 0, 0)).all(axis=-1)
    assert (red[:64, :64].sum(), red[:64, 64:].sum(), red[64:].sum()) == (3000, 120, 900)
