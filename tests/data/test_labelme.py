"""LabelMe's JSON as all its versions, and X-AnyLabeling, write it."""

import base64
import json

import numpy as np
import pytest
from nine_formats import make_content, write_images

from retinanet_jax.data.sources.labelme import LabelmeSource

CONTENT = make_content(1)
(NAME, (HEIGHT, WIDTH)) = next(iter(CONTENT.sizes.items()))


def write_shapes(folder, *shapes, **fields):
    """Write a JSON file with these shapes next to its image."""
    write_images(folder, CONTENT)
    content = {"version": "5.5.0", "flags": {}, "imageData": None, "shapes": shapes}
    content |= {"imagePath": NAME, "imageHeight": HEIGHT, "imageWidth": WIDTH, **fields}
    (folder / NAME).with_suffix(".json").write_text(
        json.dumps(content, ensure_ascii=False), encoding="utf-8"
    )
    return folder


def shape(shape_type, *points, **fields):
    return {
        "label": "кошка",
        "points": points,
        "shape_type": shape_type,
        "group_id": None,
        **fields,
    }


@pytest.mark.parametrize(
    ("entry", "yxyx"),
    [
        (shape("rectangle", [30, 40], [1.5, 2]), (2, 1.5, 40, 30)),
        (shape("rectangle", [1, 2], [30, 2], [30, 40], [1, 40], difficult=False), (2, 1, 40, 30)),
        (shape(None, [3, 4], [10.5, 2], [7, 9], line_color=None), (2, 3, 9, 10.5)),
        (shape("circle", [20, 30], [23, 34]), (25, 15, 35, 25)),
        (shape("mask", [4, 6], [7, 8], mask="iVBOR"), (6, 4, 8, 7)),
        (
            shape("rotation", [20, 10], [30, 20], [20, 30], [10, 20], direction=0.8),
            (10, 10, 30, 30),
        ),
        (shape("quadrilateral", [5, 5], [20, 6], [21, 30], [4, 29]), (5, 4, 30, 21)),
    ],
)
def test_the_box_of_a_shape_is_the_smallest_that_contains_it(tmp_path, entry, yxyx):
    source = LabelmeSource(write_shapes(tmp_path, entry))
    np.testing.assert_allclose(source.objects.boxes, [yxyx])
    assert source.categories == ((1, "кошка"),)
    assert not source.objects.crowd.any()


def test_points_and_lines_are_counted_and_no_categories(tmp_path, caplog):
    entries = [shape(name, [1, 2], [3, 4]) for name in ("point", "line", "linestrip", "points")]
    box = shape("rectangle", [1, 2], [9, 9]) | {"label": "box"}
    source = LabelmeSource(write_shapes(tmp_path, *entries, box))
    assert source.categories == ((1, "box"),)
    assert "4 shapes are points or lines" in caplog.text


def test_difficult_objects_are_crowd_regions(tmp_path):
    entry = shape("rectangle", [1, 2], [9, 9])
    folder = write_shapes(tmp_path, entry, entry | {"difficult": True})
    assert LabelmeSource(folder).objects.crowd.tolist() == [False, True]


def test_old_files_have_neither_sizes_nor_types_but_the_image(tmp_path):
    entry = shape(None, [1, 2], [9, 2], [9, 9])
    del entry["shape_type"]
    image = base64.b64encode(b"\xff\xd8" * 1000).decode()
    folder = write_shapes(tmp_path, entry, imageData=image, imageHeight=None, imageWidth=None)
    source = LabelmeSource(folder)
    assert source.sizes.tolist() == [[HEIGHT, WIDTH]]
    assert source.objects.boxes.tolist() == [[2, 1, 9, 9]]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (shape("rectangle", [1, 2]), "points=[[1, 2]], not at least 2 [x, y]"),
        (shape("polygon", [1, None]), "points=None, not a finite number"),
        (shape("polygon", [1, 2, 3]), "points=[[1, 2, 3]], not at least 1 [x, y]"),
        (shape("polygon", [1, 2]) | {"label": None}, "label=None, not a name"),
        (shape("polygon", [1, 2], difficult="maybe"), "difficult='maybe', neither 0 nor 1"),
        ({"label": "cat"}, "no `points`"),
        (7, "7 in place of fields"),
    ],
)
def test_invalid_shapes_are_named(tmp_path, entry, words):
    with pytest.raises(ValueError, match=r"photo 0.json: shape 1 has ") as caught:
        LabelmeSource(write_shapes(tmp_path, entry))
    assert words in str(caught.value)
