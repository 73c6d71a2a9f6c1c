"""Labeled boxes and sheets show what they should, at the right pixels and in clear colors."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import visualize
from retinanet_jax.data.sources.coco import CocoSource


def test_colors_are_compared_in_cielab():
    """With Lindbloom's values of white, red, green and blue (http://www.brucelindbloom.com)."""
    colors = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    expected = [[100, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(visualize._lab(colors), expected, atol=0.1)


@pytest.mark.parametrize(("num_classes", "distance"), [(5, 60), (10, 45), (20, 35), (80, 18)])
def test_the_colors_of_any_two_classes_differ_clearly(num_classes, distance):
    """People see a difference in CIELAB of 2.3; anchors and crowd regions have other colors."""
    reserved = [visualize.YELLOW, visualize.PINK, visualize.WHITE, visualize.BLACK]
    colors = [*map(visualize.class_color, range(num_classes)), *reserved]
    points = visualize._lab(np.array(colors))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    assert distances[np.triu_indices(len(points), 1)].min() > distance


def test_every_class_index_has_a_color_on_which_text_is_readable():
    """With a contrast of 4.5, which WCAG 2.1 requires (https://www.w3.org/TR/WCAG21)."""
    for k in (*range(visualize.NUM_COLORS), 1202):
        color = visualize.class_color(k)
        red, green, blue = (
            v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4
            for v in color
        )
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        black = visualize.text_color(color) == "black"
        assert ((luminance + 0.05) / 0.05 if black else 1.05 / (luminance + 0.05)) >= 4.5


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


def test_labels_of_the_first_boxes_are_on_top_of_all_boxes():
    black = np.zeros((100, 200, 3), np.uint8)
    boxes = np.array([[50, 20, 90, 150], [44, 30, 95, 160.0]])
    both = np.asarray(visualize.draw(black, boxes, ["cat 0.97", "dog 0.96"], [0, 1]))
    first = np.asarray(visualize.draw(black, boxes[:1], ["cat 0.97"], [0]))
    label = first[:50].any(axis=-1)
    assert label.sum() > 200
    np.testing.assert_array_equal(both[:50][label], first[:50][label])


def test_the_first_of_two_boxes_at_one_place_is_on_top():
    black = np.zeros((100, 200, 3), np.uint8)
    boxes = np.array([[50, 20, 90, 150.0]] * 2)
    both = np.asarray(visualize.draw(black, boxes, ["jack 0.53", "queen 0.52"], [0, 1]))
    assert tuple(both[89, 100]) == visualize.class_color(0)


def test_a_long_label_is_shortened_to_the_image():
    text, font = visualize.fit_text("a category with a very long name 0.93", 12, 80)
    assert text.startswith("a categ")
    assert text.endswith("…")
    assert font.getlength(text) <= 80
    assert visualize.fit_text("cat", 12, 80)[0] == "cat"
    assert visualize.fit_text("cat", 12, 3)[0] == ""
    for size in ((1, 1), (20, 20), (3, 500)):
        image = np.zeros((*size, 3), np.uint8)
        drawing = visualize.draw(image, np.array([[0, 0, *size]]), ["a very long name 0.93"], [0])
        assert drawing.size == size[::-1]


@pytest.mark.parametrize(
    ("text", "without_fonts"),
    [
        ("cat 0.93", "cat 0.93"),
        ("mèche", "meche"),
        ("me\u0300che", "meche"),  # as file names of macOS are
        ("猫 0.93", "? 0.93"),
        ("two\nlines", "two lines"),
        ("photo\udcff.jpg", "photo?.jpg"),  # a file name that is no UTF-8
    ],
)
def test_a_character_without_a_font_is_replaced(monkeypatch, text, without_fonts):
    fitted, font = visualize.fit_text(text, 12)
    assert all(visualize._has_glyph(font, character) for character in fitted)
    monkeypatch.setattr(visualize, "SYSTEM_FONTS", ())
    assert visualize.fit_text(text, 12)[0] == without_fonts


def test_a_font_of_the_system_is_used_for_what_pillows_own_lacks(monkeypatch, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")  # which contains the font
    path = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    monkeypatch.setattr(visualize, "SYSTEM_FONTS", ("absent.ttf", str(path)))
    text, font = visualize.fit_text("mèche", 12)
    assert (text, font.getname()[0]) == ("mèche", "DejaVu Sans")
    assert visualize.fit_text("cat", 12)[1].getname()[0] != "DejaVu Sans"


def open_source(folder):
    return CocoSource(folder / "instances.json", folder / "images")


def test_a_comparison_shows_ground_truth_on_the_left_and_confident_detections_on_the_right(
    synthetic_dataset,
):
    source = open_source(synthetic_dataset)
    annotation = json.loads((synthetic_dataset / "instances.json").read_text())["annotations"][-1]
    index = list(source.image_ids).index(annotation["image_id"])
    result = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}

    def comparison(score):
        results = [{**result, "score": score}]
        return np.asarray(visualize.comparison_sheet(source, results, count=len(source), side=100))

    with_box, without = comparison(0.9), comparison(0.1)
    # Headings; then two images per row, each twice, 4 pixels between the cells, below a file name;
    # then two lines of the legend.
    num_rows = -(-len(source) // 2)
    assert with_box.shape == (20 + (20 + 104) * num_rows + 2 * 20, 104 * 4, 3)
    rows, columns, _ = np.nonzero(with_box != without)
    assert {*(rows - 20) // 124} == {index // 2}
    assert {*columns // 104} == {2 * (index % 2) + 1}
    # Scaled as the image is to its cell: from 64 pixels to 100.
    x, y, width, height = (value * 100 / 64 for value in annotation["bbox"])
    category_ids = [category.id for category in source.categories]
    color = visualize.class_color(category_ids.index(annotation["category_id"]))
    left, top = 104 * (2 * (index % 2) + 1), 20 + 124 * (index // 2) + 20
    for cell in (left, left - 104):  # the detection, and the ground truth in the same color
        assert tuple(with_box[int(top + y + height) - 1, int(cell + x + width / 2)]) == color
        assert tuple(with_box[int(top + y + height / 2), int(cell + x + width) - 1]) == color


def test_a_comparison_has_a_title_headings_file_names_and_a_legend(synthetic_dataset, monkeypatch):
    source = open_source(synthetic_dataset)
    texts, fit_text = [], visualize.fit_text
    monkeypatch.setattr(
        visualize, "fit_text", lambda *args: texts.append(args[0]) or fit_text(*args)
    )
    visualize.comparison_sheet(source, [], title="step 500", count=2, threshold=0.3)
    names = {source.categories[k].name for i in (0, 19) for k in source.annotations(i).classes}
    assert {"step 500", "ground truth", "detections (score >= 0.3)"} <= {*texts}
    assert {source.file_name(0), source.file_name(19)} | names <= {*texts}


def test_a_legend_has_the_color_of_each_class():
    image = np.asarray(visualize.legend({3: "cat", 70: "dog"}, 400))
    assert image.shape == (20, 400, 3)
    for k in (3, 70):
        assert (image == visualize.class_color(k)).all(axis=-1).sum() > 100
    assert not (image == visualize.class_color(0)).all(axis=-1).any()


def test_a_legend_has_at_most_five_lines(monkeypatch):
    texts, fit_text = [], visualize.fit_text
    monkeypatch.setattr(
        visualize, "fit_text", lambda *args: texts.append(args[0]) or fit_text(*args)
    )
    image = visualize.legend({k: f"a category named {k}" for k in range(80)}, 800)
    assert image.size == (800, 5 * 20)
    num_listed = int(texts[-2].split()[-1])  # the first one that does not fit
    assert texts[-1] == f"and {80 - num_listed} more"
    assert num_listed >= 16


def test_the_images_of_a_comparison_are_evenly_spread(synthetic_dataset, monkeypatch):
    source = open_source(synthetic_dataset)
    indices = []

    def read(index):
        indices.append(int(index))
        return CocoSource.read(source, index)

    monkeypatch.setattr(source, "read", read)
    visualize.comparison_sheet(source, [], count=3)
    assert indices == [0, 9, 19]


def test_images_are_arranged_in_rows_that_show_them_completely():
    images = [Image.new("RGB", size, "red") for size in ((50, 60), (60, 2), (30, 30))]
    arranged = np.asarray(visualize.arrange([images[:2], images[2:]], gap=4))
    assert arranged.shape == ((60 + 4) + (30 + 4), (50 + 4) + (60 + 4), 3)
    red = (arranged == (255, 0, 0)).all(axis=-1)
    assert (red[:64, :54].sum(), red[:64, 54:].sum(), red[64:].sum()) == (3000, 120, 900)
