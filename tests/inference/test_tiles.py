"""Windows cover an image of any size, and each of its points belongs to one of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_jax.inference.tiles import check_tiles, make_grid


def test_windows_and_cores_of_a_small_image():
    grid = make_grid(100, 250, tile=100, overlap=0.2)
    np.testing.assert_array_equal(
        grid.windows, [[0, 0, 100, 100], [75, 0, 175, 100], [150, 0, 250, 100]]
    )
    assert grid.x_borders.tolist() == [87.5, 162.5]
    assert grid.y_borders.tolist() == []
    centers = np.array([[0, 50], [87.4, 50], [87.5, 50], [162.5, 0], [250, 100]])
    assert grid.owners(np.tile(centers, 2)).tolist() == [0, 0, 1, 2, 2]


def test_an_image_that_fits_has_one_window_of_its_size():
    for height, width in ((1, 1), (64, 30), (64, 64)):
        grid = make_grid(height, width, tile=64, overlap=0.5)
        assert grid.windows.tolist() == [[0, 0, width, height]]
    assert len(make_grid(64, 65, tile=64, overlap=0.5).windows) == 2


sides = st.integers(1, 700)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(32, 300), st.floats(0.001, 0.9), st.data())
def test_windows_cover_the_image_and_the_owner_of_a_small_object_sees_it_whole(
    height, width, tile, overlap, data
):
    grid = make_grid(height, width, tile=tile, overlap=overlap)
    x0, y0, x1, y1 = grid.windows.T
    assert (min(x0), min(y0), max(x1), max(y1)) == (0, 0, width, height)
    assert set(x1 - x0) == {min(tile, width)}
    assert set(y1 - y0) == {min(tile, height)}
    shared = max(1, round(overlap * tile))
    for starts, size in ((np.unique(x0), min(tile, width)), (np.unique(y0), min(tile, height))):
        assert (starts[1:] <= starts[:-1] + size - shared).all()
        assert (starts[1:] > starts[:-1]).all()
    box_width = data.draw(st.integers(1, min(shared, width)))
    box_height = data.draw(st.integers(1, min(shared, height)))
    x = data.draw(st.integers(0, width - box_width))
    y = data.draw(st.integers(0, height - box_height))
    box = np.array([[x, y, x + box_width, y + box_height]])
    owner = grid.windows[grid.owners(box)[0]]
    assert (box[0, :2] >= owner[:2]).all()
    assert (box[0, 2:] <= owner[2:]).all()


@pytest.mark.parametrize("tile", [31, 0, -1, 64.0, 64.5])
def test_a_tile_that_is_too_small_or_no_integer_is_an_error(tile):
    with pytest.raises(ValueError, match=rf"^tile={tile} must be an integer of at least 32, "):
        check_tiles(tile, 0.2)


@pytest.mark.parametrize("overlap", [0, -0.1, 0.91, 1, float("nan")])
def test_windows_overlap(overlap):
    with pytest.raises(ValueError, match=rf"^overlap={overlap:g} must be above 0 and at most 0.9"):
        check_tiles(64, overlap)
    check_tiles(np.int64(64), 0.9)
