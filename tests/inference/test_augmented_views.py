"""Views: a box in a view is where the object is in the image."""

import numpy as np
import pytest

from retinanet_jax.inference.views import ORIENTATIONS, View, make_views, parse_view


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_box_of_an_object_in_a_view_is_its_box_in_the_image(orientation):
    y0, x0, y1, x1 = 3, 5, 7, 16
    image = np.zeros((12, 20, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    view = View(orientation)
    rows, columns = view.pixels(image)[..., 0].nonzero()
    in_view = np.float32([[rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]])
    boxes = view.boxes_in_image(in_view, height=12, width=20)
    np.testing.assert_array_equal(boxes, [[y0, x0, y1, x1]])


def test_flips_and_rotations_are_those_of_their_names():
    image = np.arange(6).reshape(2, 3, 1).repeat(3, axis=2).astype(np.uint8)
    expected = {
        "plain": [[0, 1, 2], [3, 4, 5]],
        "flip": [[2, 1, 0], [5, 4, 3]],
        "vflip": [[3, 4, 5], [0, 1, 2]],
        "rot90": [[2, 5], [1, 4], [0, 3]],  # counterclockwise
        "rot180": [[5, 4, 3], [2, 1, 0]],
        "rot270": [[3, 0], [4, 1], [5, 2]],
    }
    views = {name: View(name).pixels(image)[..., 0].tolist() for name in ORIENTATIONS}
    assert views == expected


def test_the_name_of_a_view_is_what_is_done_with_the_image():
    names = {
        "plain": View(),
        "flip": View("flip"),
        "0.75": View(scale=0.75),
        "rot90@1.25": View("rot90", 1.25),
    }
    for name, view in names.items():
        assert parse_view(name) == view
        assert view.name == name
    assert parse_view("1") == parse_view("plain@1.0") == View()


@pytest.mark.parametrize("name", ["", "flop", "@", "flip@", "flop@2", "0", "-1", "5", "nan", "75%"])
def test_other_names_are_refused(name):
    with pytest.raises(
        ValueError, match=r"must be one of plain, flip, .* try flip,0\.75,flip@1\.25\."
    ):
        parse_view(name)


def test_the_plain_view_is_always_the_first_one():
    assert make_views([]) == (View(),)
    assert make_views(["flip", 0.75]) == (View(), View("flip"), View(scale=0.75))
    assert make_views("flip,0.75") == make_views(["flip", 0.75])  # as on the command line
    assert make_views([" flip", "plain"]) == (View(), View("flip"))
    with pytest.raises(ValueError, match=r"'0\.5' is given twice"):
        make_views(["0.5", "flip", 0.50])
