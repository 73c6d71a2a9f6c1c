import numpy as np
import pytest

from retinanet_jax.core import area, cell_anchors, pyramid_anchors, xyxy_to_yxyx

PAPER = dict(
    min_level=3,
    max_level=7,
    base_scale=4.0,
    scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
    ratios=(0.5, 1.0, 2.0),
    offset=0.0,
    rounding="exact",
    stride_rule="nominal",
)
TORCHVISION = dict(PAPER, rounding="torchvision", stride_rule="grid")


def cell_centers(levels, index, shape):
    """Return the centers of the anchors of a level's cells, "h w 2"."""
    anchors = levels[index].reshape(*shape, 9, 4)
    return (anchors[:, :, 0, :2] + anchors[:, :, 0, 2:]) / 2


def test_an_800_by_1344_image_has_201600_anchors():
    levels = pyramid_anchors((800, 1344), **PAPER)
    assert [len(level) for level in levels] == [151_200, 37_800, 9_450, 2_457, 693]
    assert sum(map(len, levels)) == 201_600
    assert all(level.dtype == np.float32 for level in levels)


def test_order_is_row_column_scale_ratio():
    settings = dict(PAPER, min_level=3, max_level=3, scales=(1.0, 2.0), ratios=(1.0, 4.0))
    (anchors,) = pyramid_anchors((16, 24), **settings)
    first_cell = [[-16, -16, 16, 16], [-32, -8, 32, 8], [-32, -32, 32, 32], [-64, -16, 64, 16]]
    grid = anchors.reshape(2, 3, 4, 4)
    np.testing.assert_array_equal(grid[0, 0], first_cell)
    np.testing.assert_array_equal(grid[0, 1], first_cell + np.array([0, 8, 0, 8]))
    np.testing.assert_array_equal(grid[1, 0], first_cell + np.array([8, 0, 8, 0]))


def test_exact_anchors_of_a_scale_have_equal_areas_and_ratio_is_height_over_width():
    for index, anchors in enumerate(pyramid_anchors((64, 96), **PAPER)):
        expected = (32 * 2**index) ** 2 * 2 ** (2 * np.arange(3) / 3)
        by_cell = anchors.reshape(-1, 3, 3, 4)  # cell scale ratio 4
        areas = np.asarray(area(by_cell))
        np.testing.assert_allclose(
            areas, np.broadcast_to(expected[:, None], areas.shape), rtol=1e-4
        )
        sides = by_cell[..., 2:] - by_cell[..., :2]
        np.testing.assert_allclose(sides[..., 0] / sides[..., 1], areas * 0 + [0.5, 1, 2], 1e-4)


def test_offset_is_in_strides():
    levels = pyramid_anchors((64, 64), **dict(PAPER, offset=0.5))
    np.testing.assert_allclose(cell_centers(levels, 0, (8, 8))[0, :2], [[4, 4], [4, 12]], rtol=1e-6)
    np.testing.assert_allclose(cell_centers(levels, 3, (1, 1))[0], [[32, 32]], rtol=1e-6)


def test_levels_round_up_where_the_stride_does_not_divide_the_size():
    levels = pyramid_anchors((33, 130), **PAPER)
    shapes = [(5, 17), (3, 9), (2, 5), (1, 3), (1, 2)]
    assert [len(level) for level in levels] == [h * w * 9 for h, w in shapes]


def test_torchvision_rounding_truncates_sizes_and_rounds_half_to_even():
    anchors = cell_anchors(64.0, PAPER["scales"], PAPER["ratios"], "torchvision")
    sizes = {(64, 0.5): (23, 45), (64, 1): (32, 32), (64, 2): (45, 23), (101, 1): (50, 50)}
    expected = [[-h, -w, h, w] for h, w in sizes.values()]  # int(101.59) / 2 = 50.5 -> 50
    np.testing.assert_array_equal(anchors[[0, 1, 2, 7]], expected)


def test_grid_strides_of_an_800_by_1344_image():
    grid = pyramid_anchors((800, 1344), **TORCHVISION)
    nominal = pyramid_anchors((800, 1344), **PAPER)
    np.testing.assert_array_equal(cell_centers(grid, 2, (25, 42))[1, 1], [32, 32])
    np.testing.assert_array_equal(cell_centers(grid, 3, (13, 21))[1, 1], [61, 64])
    np.testing.assert_array_equal(cell_centers(grid, 4, (7, 11))[1, 1], [114, 122])
    np.testing.assert_array_equal(cell_centers(nominal, 4, (7, 11))[1, 1], [128, 128])


@pytest.mark.parametrize(
    "name", ["torchvision_v1", "torchvision_v2", "detectron2_r50_stride_in_1x1"]
)
def test_anchors_equal_torchvisions_and_detectron2s(test_data, name):
    golden = np.load(test_data / "parity" / f"{name}_128x160.npz")
    expected = np.asarray(xyxy_to_yxyx(golden["anchors"]))
    if name.startswith("torchvision"):
        settings = TORCHVISION
        expected = (
            expected.reshape(-1, 3, 3, 4).swapaxes(1, 2).reshape(-1, 4)
        )  # ordered by ratio first
    else:
        settings = PAPER
    levels = pyramid_anchors((128, 160), **settings)
    assert [len(level) for level in levels] == golden["levels"].tolist()
    np.testing.assert_array_equal(np.concatenate(levels), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rounding="floor"), "rounding='floor'"),
        (dict(stride_rule="image"), "stride_rule='image'"),
        (dict(min_level=5, max_level=3), "5..3"),
        (dict(scales=()), r"scales=\(\)"),
        (dict(ratios=(1.0, 0.0)), r"ratios=\(1.0, 0.0\)"),
    ],
)
def test_invalid_settings_are_refused_with_their_value(change, message):
    with pytest.raises(ValueError, match=message):
        pyramid_anchors((64, 64), **dict(PAPER, **change))


def test_an_empty_image_is_refused():
    with pytest.raises(ValueError, match=r"image_size=\(0, 64\)"):
        pyramid_anchors((0, 64), **PAPER)
