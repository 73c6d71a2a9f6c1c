import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_boxes import boxes

from retinanet_jax.core import boxes as box_ops
from retinanet_jax.core.boxes import MAX_LOG_SIZE

settings.register_profile("jax", deadline=None, max_examples=30)
settings.load_profile("jax")


@st.composite
def box_arrays(draw, rows=5, smallest=0):
    """Generate integer boxes "rows 4", so that every area is exact."""
    corners = st.integers(0, 50)
    sides = st.integers(smallest, 50)
    return np.array(
        [
            [y, x, y + height, x + width]
            for y, x, height, width in draw(
                st.lists(st.tuples(corners, corners, sides, sides), min_size=rows, max_size=rows)
            )
        ],
        np.float32,
    )


def test_area_is_height_times_width_and_zero_when_inverted():
    result = box_ops.area(boxes([1, 2, 4, 7], [0, 0, 0, 9], [5, 0, 1, 5], [0, 5, 5, 1]))
    np.testing.assert_array_equal(result, [15, 0, 0, 0])


def test_iou_by_hand():
    square = boxes([0, 0, 2, 2])
    others = boxes([0, 0, 2, 2], [1, 1, 3, 3], [0, 1, 2, 2], [2, 0, 4, 2], [9, 9, 9, 9])
    expected = np.array([[1, 1 / 7, 1 / 2, 0, 0]], np.float32)
    np.testing.assert_array_equal(box_ops.pairwise_iou(square, others), expected)


def test_iou_of_two_empty_boxes_is_zero():
    assert box_ops.paired_iou(boxes([3, 3, 3, 3]), boxes([3, 3, 3, 3]))[0] == 0


@given(box_arrays(), box_arrays())
def test_pairwise_iou_is_every_paired_iou(a, b):
    pairwise = box_ops.pairwise_iou(a, b)
    np.testing.assert_array_equal(jnp.diagonal(pairwise), box_ops.paired_iou(a, b))
    np.testing.assert_array_equal(pairwise, box_ops.pairwise_iou(b, a).T)


def test_giou_by_hand():
    square = boxes([0, 0, 1, 1])
    others = boxes([0, 0, 1, 1], [0, 2, 1, 3], [1, 1, 2, 2], [0, 0, 2, 2])
    # Hull 3, union 2: -1/3. Hull 4, union 2: -1/2. Nested: the hull is the union, so it is the IoU.
    np.testing.assert_allclose(box_ops.giou(square, others), [1, -1 / 3, -1 / 2, 1 / 4], rtol=1e-6)


@given(box_arrays(), box_arrays())
def test_giou_is_symmetric_and_between_minus_one_and_the_iou(a, b):
    giou = box_ops.giou(a, b)
    np.testing.assert_array_equal(giou, box_ops.giou(b, a))
    assert np.all(giou >= -1)
    assert np.all(giou <= box_ops.paired_iou(a, b) + 1e-6)


@pytest.mark.parametrize("function", [box_ops.paired_iou, box_ops.giou])
@pytest.mark.parametrize(
    "pair",
    [
        ([3, 3, 3, 3], [3, 3, 3, 3]),
        ([0, 0, 0, 0], [1, 1, 5, 5]),
        ([2, 0, 2, 8], [0, 0, 4, 4]),
        ([5, 5, 1, 1], [0, 0, 4, 4]),
    ],
)
def test_overlap_of_degenerate_boxes_has_finite_value_and_gradient(function, pair):
    a, b = boxes(pair[0]), boxes(pair[1])
    value, gradients = jax.value_and_grad(lambda a, b: function(a, b).sum(), argnums=(0, 1))(a, b)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradients))


def test_clip_limits_height_and_width_separately():
    result = box_ops.clip(boxes([-5, -5, 30, 30], [12, 25, 18, 29], [1, 2, 3, 4]), 10, 20)
    np.testing.assert_array_equal(result, boxes([0, 0, 10, 20], [10, 20, 10, 20], [1, 2, 3, 4]))


def test_encode_by_hand():
    # Center (8, 18) to (10, 16), sides (4, 8) to (8, 8): 1/2 down, 1/4 left, twice as high.
    deltas = box_ops.encode(boxes([6, 12, 14, 20]), boxes([6, 14, 10, 22]))
    np.testing.assert_allclose(deltas, boxes([0.5, -0.25, np.log(2), 0]), rtol=1e-6)


@given(box_arrays(smallest=1), box_arrays(smallest=1))
def test_decode_inverts_encode(some_boxes, anchors):
    deltas = box_ops.encode(some_boxes, anchors)
    np.testing.assert_allclose(box_ops.decode(deltas, anchors), some_boxes, atol=1e-3)


@given(box_arrays(smallest=1))
def test_an_anchor_encodes_itself_as_exactly_zero(anchors):
    np.testing.assert_array_equal(box_ops.encode(anchors, anchors), np.zeros_like(anchors))


def test_decode_limits_how_much_boxes_grow_not_how_much_they_shrink():
    anchor = boxes([0, 0, 16, 16])
    grown = box_ops.decode(boxes([0, 0, 50, MAX_LOG_SIZE]), anchor)
    np.testing.assert_allclose(grown, boxes([-492, -492, 508, 508]), rtol=1e-5)
    shrunk = box_ops.decode(boxes([0, 0, -50, -50]), anchor)
    np.testing.assert_allclose(shrunk, boxes([8, 8, 8, 8]), atol=1e-5)


def test_decode_computes_half_precision_deltas_in_the_anchors_precision():
    anchors = boxes([100, 100, 163, 227])
    deltas = jnp.array([[0.1, -0.2, 0.3, -0.4]], jnp.bfloat16)
    decoded = box_ops.decode(deltas, anchors)
    assert decoded.dtype == jnp.float32
    np.testing.assert_array_equal(decoded, box_ops.decode(deltas.astype(jnp.float32), anchors))


def test_conversions_by_hand():
    box = boxes([1, 2, 5, 9])
    np.testing.assert_array_equal(box_ops.yxyx_to_xyxy(box), boxes([2, 1, 9, 5]))
    np.testing.assert_array_equal(box_ops.yxyx_to_xywh(box), boxes([2, 1, 7, 4]))


@given(box_arrays())
def test_conversions_invert_each_other(some_boxes):
    for convert, invert in (
        (box_ops.yxyx_to_xyxy, box_ops.xyxy_to_yxyx),
        (box_ops.yxyx_to_xywh, box_ops.xywh_to_yxyx),
    ):
        np.testing.assert_array_equal(invert(convert(some_boxes)), some_boxes)


UNARY = (
    box_ops.area,
    box_ops.yxyx_to_xyxy,
    box_ops.xyxy_to_yxyx,
    box_ops.yxyx_to_xywh,
    box_ops.xywh_to_yxyx,
    lambda a: box_ops.clip(a, 20, 30),
)
BINARY = (
    box_ops.intersection,
    box_ops.paired_iou,
    box_ops.pairwise_iou,
    box_ops.giou,
    box_ops.encode,
    box_ops.decode,
)


@pytest.mark.parametrize("function", UNARY + BINARY)
def test_jit_and_vmap_change_nothing(function):
    corners = np.random.default_rng(0).uniform(0, 40, (2, 3, 5, 2))
    sides = np.random.default_rng(1).uniform(1, 40, (2, 3, 5, 2))
    both = np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)
    arguments = both[:1] if function in UNARY else both
    each = np.stack([function(*row) for row in zip(*arguments, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(*arguments), each, rtol=1e-5, atol=1e-5)
