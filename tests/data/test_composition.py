"""Composed images: their pixels and boxes by hand, by independent computation, and in batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded_images import noise
from train_plans import DEFAULTS, make_train_plan

from retinanet_jax.data import transforms
from retinanet_jax.data.composition import FILL, compose_boxes, compose_image
from retinanet_jax.data.layers import Composition, Layers, pastable_objects
from retinanet_jax.data.pipeline import batches, padded_counts, visible_annotations
from retinanet_jax.data.plan import TrainPlan

AFFINE = {"rotation": 15.0, "shear": 5.0, "scale": (0.6, 1.3), "translation": 0.1}
IDENTITY = np.eye(2)
NO_WARP = AFFINE | {"rotation": 0.0, "shear": 0.0}
EVERYTHING = {"affine": AFFINE, "mosaic": 0.5, "mixup": 0.5, "copy_paste": 0.4, "rot90": True}


def compose(size, placed, warp=IDENTITY) -> Composition:
    """Return a composition of unscaled images: (height, width, y, x, opacity) of each layer."""
    extent = np.abs(np.linalg.inv(warp)) @ size / 2
    low, high = np.floor(np.divide(size, 2) - extent), np.ceil(np.divide(size, 2) + extent)
    placed = np.array(placed, float)
    sides, place, opacity = placed[:, :2], placed[:, 2:4], placed[:, 4]
    start, stop = np.maximum(place, low), np.minimum(place + sides, high)  # inside the canvas
    layers = Layers(
        index=np.arange(len(placed), dtype=np.int32),
        resized=sides.astype(np.int32),
        flip=np.zeros(len(placed), bool),
        rot90_k=np.zeros(len(placed), np.int32),
        offset=(start - place).astype(np.int32),
        size=np.maximum(stop - start, 0).astype(np.int32),
        place=start.astype(np.int32),
        opacity=opacity.astype(np.float32),
    )
    canvas = np.concatenate([low, high]).astype(np.int32)
    return Composition(layers, canvas, np.asarray(warp), np.bool_(True))


def uniform_image(height, width, value) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_layers_cover_each_other_or_are_averaged():
    composition = compose((3, 5), [(3, 3, 0, 0, 1), (2, 2, 1, 1, 1), (1, 5, 2, 0, 0.5)])
    images = [uniform_image(3, 3, 10), uniform_image(2, 2, 50), uniform_image(1, 5, 101)]
    image = compose_image(
        composition, (3, 5), lambda index, resized: images[index], method="bilinear"
    )
    assert image.dtype == np.uint8
    assert image[:, :, 1].tolist() == [
        [10, 10, 10, FILL, FILL],
        [10, 50, 50, FILL, FILL],
        [56, 76, 76, 108, 108],  # halves are rounded to even
    ]
    exact = compose_image(
        composition, (3, 5), lambda index, resized: images[index], method="bilinear_float"
    )
    assert exact.dtype == np.float32
    assert exact[2, :, 1].tolist() == [55.5, 75.5, 75.5, 107.5, 107.5]


def test_boxes_that_others_cover_are_less_visible():
    """The second layer covers the right half of the first, the third a quarter of the second."""
    composition = compose((4, 8), [(4, 8, 0, 0, 1), (4, 4, 0, 4, 1), (2, 2, 0, 4, 1)])
    whole = [np.float32([[0, 0, 4, 8], [0, 5, 2, 7]]), np.float32([[0, 0, 4, 4]])]
    boxes, visible = compose_boxes(
        composition, (4, 8), [*whole, np.float32([[0, 0, 2, 2]])], [(4, 8), (4, 4), (2, 2)]
    )
    assert boxes.tolist() == [[0, 0, 4, 8], [0, 5, 2, 7], [0, 4, 4, 8], [0, 4, 2, 6]]
    assert visible.tolist() == [0.5, 0, 0.75, 1]
    averaged = composition._replace(
        layers=composition.layers._replace(opacity=np.float32([1, 0.5, 0.5]))
    )
    boxes, visible = compose_boxes(
        averaged, (4, 8), [*whole, np.float32([[0, 0, 2, 2]])], [(4, 8), (4, 4), (2, 2)]
    )
    assert visible.tolist() == [1, 1, 1, 1]


rectangles = st.tuples(
    st.integers(1, 12), st.integers(1, 12), st.integers(-6, 14), st.integers(-6, 14), st.just(1)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(rectangles, min_size=1, max_size=5))
def test_the_visible_fraction_is_that_of_the_pixels(placed):
    """Each layer has one box, which contains all of it."""
    images = [uniform_image(h, w, number) for number, (h, w, *_) in enumerate(placed)]
    composition = compose((16, 16), placed)
    present = [0] + [k for k in range(1, len(placed)) if composition.layers.size[k].all()]
    image = compose_image(composition, (16, 16), lambda index, _: images[index], method="bilinear")
    boxes, visible = compose_boxes(
        composition,
        (16, 16),
        [np.float32([[0, 0, *placed[k][:2]]]) for k in present],
        [placed[k][:2] for k in present],
    )
    for position, k in enumerate(present):
        height, width, y, x, _ = placed[k]
        expected = (image[:, :, 0] == k).sum() / (height * width)
        np.testing.assert_allclose(visible[position], expected, rtol=1e-6)
        whole = np.array([y, x, y + height, x + width])
        assert visible[position] == 0 or boxes[position].tolist() == whole.clip(0, 16).tolist()


def area(start, stop) -> float:
    return np.maximum(np.subtract(stop, start), 0).prod()


@settings(deadline=None, max_examples=40)
@given(
    angle=st.floats(-180, 180),
    shear=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    corner=st.tuples(st.integers(5, 20), st.integers(5, 30)),
    sides=st.tuples(st.integers(8, 20), st.integers(8, 20)),
)
def test_a_rectangle_is_where_the_warp_moves_it_and_framed_by_its_box(angle, shear, corner, sides):
    size, (y, x), (height, width) = (48, 64), corner, sides
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    slope_y, slope_x = np.tan(np.radians(shear))
    warp = np.array([[cos, -sin], [sin, cos]]) @ [[1, slope_y], [slope_x, 1]]
    image = uniform_image(*size, 20)
    image[y : y + height, x : x + width] = 220
    composition = compose(size, [(*size, 0, 0, 1)], warp)
    warped = compose_image(composition, size, lambda *_: image, method="bilinear")
    assert warped.shape == (*size, 3)

    # The pixels: the center of each is moved back.
    centers = np.stack(np.mgrid[:48, :64], axis=-1) + 0.5
    original = (centers - (24, 32)) @ np.linalg.inv(warp).T + (24, 32)

    def distance_inside(y1, x1, y2, x2):
        """Return how far inside a rectangle each pixel was; negative outside."""
        edges = [original[..., 0] - y1, y2 - original[..., 0]]
        return np.min([*edges, original[..., 1] - x1, x2 - original[..., 1]], axis=0)

    in_rectangle = distance_inside(y, x, y + height, x + width)
    in_image = distance_inside(0, 0, *size)
    assert (warped[in_rectangle > 0.6] >= 219).all()  # Pillow rounds down
    assert (warped[(in_rectangle < -0.6) & (in_image > 0.6)] <= 20).all()
    assert (warped[in_image < -0.6] == FILL).all()

    # The box: the extreme points of what the canvas shows of the rectangle.
    box = np.float32([[y, x, y + height, x + width]])
    (framed,), (visible,) = compose_boxes(composition, size, [box], [size])
    low, high = composition.canvas.reshape(2, 2)
    corners = [np.clip((a, b), low, high) for a in (y, y + height) for b in (x, x + width)]
    moved = np.array([warp @ (corner - (24, 32)) + (24, 32) for corner in corners])
    whole = np.concatenate([moved.min(axis=0), moved.max(axis=0)])
    inside = np.clip(whole, 0, (48, 64, 48, 64))
    fraction = area(corners[0], corners[3]) / (height * width)
    hull, rest = (area(*frame.reshape(2, 2)) for frame in (whole, inside))
    np.testing.assert_allclose(visible, fraction * rest / hull if fraction else 0, atol=1e-4)
    if visible > 0:
        np.testing.assert_allclose(framed, inside, atol=1e-4)


def test_floating_point_pixels_are_warped_like_bytes():
    rotation = np.array([[0.8, -0.6], [0.6, 0.8]])
    image, composition = noise(40, 40), compose((40, 40), [(40, 40, 0, 0, 1)], rotation)
    exact, rounded = (
        compose_image(composition, (40, 40), lambda *_: image, method=method)
        for method in ("bilinear_float", "bilinear")
    )
    assert exact.dtype == np.float32
    assert np.abs(exact - rounded).max() <= 1.01  # Pillow rounds bytes down


def plan_of(source, **changes) -> TrainPlan:
    options = {"buckets": ((96, 96),), "short_sides": (80,), "long_side": 96}
    options |= {"scale_jitter": (0.7, 1.0), "objects": pastable_objects(source)} | changes
    return make_train_plan(source.sizes, DEFAULTS | options)


def load(source, plan, num_steps, start_step=0, **changes):
    options = {"prefetch": 2, "num_threads": 2, "loader": "numpy", "min_visible": 0.0} | changes
    return list(batches(source, plan, start_step=start_step, num_steps=num_steps, **options))


@pytest.fixture
def planted(folder, encode):
    """Return images with a rectangle of which the green channel is 255, and its box."""
    rng = np.random.default_rng(0)
    for image_id in range(1, 9):
        height, width = rng.integers(60, 150, 2).tolist()
        y, x = rng.integers(0, 30, 2).tolist()
        pixels = np.full((height, width, 3), 10 * image_id, np.uint8)
        pixels[:, :, 1] = 20
        pixels[y : y + 25, x : x + 30, 1] = 255
        options = {"quality": 98} if image_id % 2 else {}
        folder.add_image(
            height, width, encode(pixels, "JPEG" if image_id % 2 else "PNG", **options)
        )
        folder.add_box(image_id, [x, y, 30, 25])
    return folder.load()


def test_boxes_stay_on_their_rectangles_in_scaled_mosaics(planted):
    plan, num_framed = plan_of(planted, mosaic=0.7, affine=NO_WARP), 0
    for step, batch in enumerate(load(planted, plan, num_steps=10)):
        composition = plan.batch(step).composition
        for example in range(4):
            layers = composition.select(example).layers
            green = batch.images[example, :, :, 1] > 185
            for box in batch.boxes[example, batch.mask[example]]:
                y1, x1, y2, x2 = np.rint(box).astype(int)
                # One layer contains each box; its other pixels are another layer's.
                inside = (box[:2] >= layers.place) & (box[2:] <= layers.place + layers.size)
                assert inside.all(axis=1).sum() == 1
                if min(y2 - y1, x2 - x1) < 4:
                    continue
                num_framed += 1
                assert green[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all()
                outside = green.copy()
                for other in batch.boxes[example, batch.mask[example]]:
                    oy1, ox1, oy2, ox2 = np.rint(other).astype(int)
                    outside[max(oy1 - 1, 0) : oy2 + 1, max(ox1 - 1, 0) : ox2 + 1] = False
                assert not outside.any()
    assert num_framed > 60


def test_unscaled_layers_have_the_pixels_of_their_plain_images(planted):
    plan = plan_of(planted, mosaic=1.0, copy_paste=0.5, scale_jitter=None)
    for step, batch in enumerate(load(planted, plan, num_steps=3)):
        planned = plan.batch(step)
        for example in range(4):
            height, width = planned.size[example]
            expected = np.zeros_like(batch.images[example])
            for index, resized, flip, _, offset, size, place, _ in zip(
                *(field[example].tolist() for field in planned.composition.layers), strict=True
            ):
                image = transforms.resize(planted.image(index), *resized, method="bilinear")
                image = image[:, ::-1] if flip else image
                (y, x), (h, w), (top, left) = offset, size, place
                expected[top : top + h, left : left + w] = image[y : y + h, x : x + w]
            assert np.array_equal(batch.images[example, :height, :width], expected[:height, :width])
            assert not batch.images[example, height:].any()


def test_both_loaders_compose_bit_for_bit_equal_images(planted):
    plan = plan_of(planted, **EVERYTHING)
    by_tf, by_threads = (load(planted, plan, 4, loader=name) for name in ("tf", "numpy"))
    num_composed = 0
    for step, (a, b) in enumerate(zip(by_tf, by_threads, strict=True)):
        for first, second in zip(a[1:], b[1:], strict=True):
            np.testing.assert_array_equal(first, second)
        is_composed = plan.batch(step).is_composed
        num_composed += is_composed.sum()
        np.testing.assert_array_equal(a.images[is_composed], b.images[is_composed])
    assert num_composed == 16


def test_a_batch_of_tf_data_has_composed_and_plain_examples(planted):
    plan = plan_of(planted, mosaic=0.5)
    for step, batch in enumerate(load(planted, plan, 2, loader="tf")):
        (by_threads,) = load(planted, plan, 1, start_step=step)
        assert 0 < plan.batch(step).is_composed.sum() < 4
        # One gray level: the JPEG libraries round differently.
        assert np.abs(batch.images.astype(int) - by_threads.images).max() <= 1


def test_a_resumed_run_and_the_parts_of_all_hosts_have_the_same_images(planted):
    whole = load(planted, plan_of(planted, **EVERYTHING), 4)
    resumed = load(planted, plan_of(planted, **EVERYTHING), 1, start_step=3)
    hosts = [
        load(planted, plan_of(planted, **EVERYTHING), 4, process_index=host, process_count=2)[3]
        for host in (0, 1)
    ]
    for field, again, *parts in zip(whole[3], resumed[0], *hosts, strict=True):
        np.testing.assert_array_equal(field, again)
        np.testing.assert_array_equal(field, np.concatenate(parts))


def test_hidden_boxes_are_dropped_but_only_the_images_own_are_counted(folder):
    """The second image covers the left half of the first, and its own left half is outside."""
    for _ in range(2):
        folder.add_image(40, 40)
    folder.add_box(1, [0, 0, 40, 40])  # half hidden
    folder.add_box(1, [0, 0, 20, 40], category_id=7)  # hidden
    folder.add_box(1, [30, 0, 10, 40], iscrowd=1)
    folder.add_box(2, [10, 10, 20, 20])  # half outside
    folder.add_box(2, [0, 0, 10, 10])  # outside
    folder.add_box(2, [20, 20, 20, 20], iscrowd=1)
    source = folder.load()
    composition = compose((40, 40), [(40, 40, 0, 0, 1), (40, 40, 0, 0, 1)])
    layers = composition.layers
    layers = layers._replace(
        offset=np.int32([[0, 0], [0, 20]]), size=np.int32([[40, 40], [40, 20]])
    )
    plain = make_train_plan(source.sizes, DEFAULTS).batch(0)
    batched = Composition(
        *(
            Layers(*(field[None] for field in layers)),
            *(np.asarray(field)[None] for field in composition[1:]),
        )
    )
    size = np.int32([[40, 40]])
    batch_plan = plain._replace(index=np.int32([0]), size=size, composition=batched)
    annotations, num_dropped = visible_annotations(source, batch_plan, 0, min_visible=0.6)
    assert annotations.crowd.all()
    assert annotations.boxes.tolist() == [[0, 30, 40, 40], [20, 0, 40, 20]]
    assert num_dropped == 2
    annotations, num_dropped = visible_annotations(source, batch_plan, 0, min_visible=0.5)
    assert annotations.boxes[~annotations.crowd].tolist() == [[0, 0, 40, 40], [10, 0, 30, 10]]
    assert annotations.classes[~annotations.crowd].tolist() == [0, 0]
    assert num_dropped == 1


def test_boxes_are_padded_for_as_many_images_as_one_is_composed_of(folder):
    folder.add_image(96, 96)
    for x in range(3):
        folder.add_box(1, [x, 0, 5, 5])
    folder.add_box(1, [0, 0, 5, 5], iscrowd=1)
    source = folder.load()
    assert padded_counts(source, 4) == (16, 4)  # 12 boxes, padded to a multiple of 8
    # With a single image, a mosaic shows it four times.
    options = {"mosaic": 1.0, "mixup": 1.0, "buckets": ((128, 128),), "batch_size": 1}
    (batch,) = load(source, plan_of(source, **options), 1)
    assert batch.boxes.shape == (1, 16, 4)
    assert batch.crowd_boxes.shape == (1, 5, 4)
