"""What examples are composed of: sampled by the plan, inside the canvas, and off by default."""

import dataclasses

import numpy as np
import pytest
from train_plans import SIZES, random_sizes, train_plan

from retinanet_jax.data import transforms
from retinanet_jax.data.composition import placed_layers
from retinanet_jax.data.layers import NUM_PASTED, Composition, PastableObjects

AFFINE = {"rotation": 20.0, "shear": 10.0, "scale": (0.5, 1.5), "translation": 0.2}
NO_AFFINE = {"rotation": 0.0, "shear": 0.0, "scale": (1.0, 1.0), "translation": 0.0}
COUNT = 400
BOX = np.float32([3.5, 4.25, 18.75, 15.5])
OBJECTS = PastableObjects(np.tile(BOX, (30, 1)), np.arange(30, dtype=np.int32))
EVERYTHING = {
    "affine": AFFINE,
    "mosaic": 0.5,
    "mixup": 0.4,
    "copy_paste": 0.3,
    "objects": OBJECTS,
    "rot90": True,
    "crop_size": (120, 110),
}


def epoch(plan) -> Composition:
    """Return the composition of all images of the first epoch, fillers included."""
    parts = [plan.batch(step).composition for step in range(plan.steps_per_epoch)]
    layers = type(parts[0].layers)(
        *(np.concatenate(field) for field in zip(*(part.layers for part in parts), strict=True))
    )
    fields = ("canvas", "warp", "is_composed")
    return Composition(layers, *(np.concatenate([getattr(p, f) for p in parts]) for f in fields))


def square_plan(**changes):
    """Return a plan of images of 100 x 100 pixels that are neither resized nor flipped."""
    options = {"short_sides": (100,), "scale_jitter": None, "flip": False, "batch_size": COUNT}
    return train_plan(np.full((COUNT, 2), 100), **options | changes)


def to_bytes(composition: Composition) -> bytes:
    fields = (*composition.layers, *composition[1:])
    return b"".join(field.tobytes() for field in fields)


def test_images_are_not_composed_by_default():
    batch = train_plan(SIZES).batch(0)
    assert batch.composition is None
    assert not batch.is_composed.any()
    assert batch.num_layers == 1


def test_composition_does_not_change_the_other_samples():
    """Nor its own when one of its parts is switched off."""
    sizes = random_sizes(40)
    options = {name: EVERYTHING[name] for name in ("rot90", "crop_size")}
    plain, composed = train_plan(sizes, **options), train_plan(sizes, **EVERYTHING)
    without = train_plan(sizes, **EVERYTHING | {"mixup": 0.0})
    for step in range(plain.steps_per_epoch):
        for a, b in zip(plain.batch(step)[:10], composed.batch(step)[:10], strict=True):
            np.testing.assert_array_equal(a, b)
        complete, partial = composed.batch(step).composition, without.batch(step).composition
        for a, b in zip(complete.layers, partial.layers, strict=True):
            np.testing.assert_array_equal(a[:, :-1], b)


def test_a_step_is_composed_the_same_whichever_step_is_planned_first_and_on_any_host():
    sizes = random_sizes(30)
    running, resumed = (train_plan(sizes, **EVERYTHING) for _ in range(2))
    steps = [to_bytes(running.batch(step).composition) for step in range(20)]
    assert len(set(steps)) == 20
    assert steps[13:] == [to_bytes(resumed.batch(step).composition) for step in range(13, 20)]
    batch = running.batch(3)
    hosts = [batch.for_process(host, 2).composition for host in (0, 1)]
    for whole, *parts in zip(batch.composition.layers, *(h.layers for h in hosts), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_layers_are_crops_of_their_images_inside_the_canvas():
    composition = epoch(train_plan(random_sizes(60), **EVERYTHING))
    layers, canvas = composition.layers, composition.canvas[:, None]
    present = layers.size.any(axis=-1)
    assert (layers.size[present] > 0).all()
    assert 3 < present.sum(axis=1).mean() < 7
    swapped = layers.rot90_k[..., None] % 2 == 1
    rotated = np.where(swapped, layers.resized[..., ::-1], layers.resized)
    start, stop = layers.place, layers.place + layers.size
    inside_image = (layers.offset >= 0) & (layers.offset + layers.size <= rotated)
    inside_canvas = (start >= canvas[..., :2]) & (stop <= canvas[..., 2:])
    assert inside_image[present].all()
    assert inside_canvas[present].all()


def test_the_four_images_of_a_mosaic_meet_in_a_point_and_fill_the_whole_area():
    composition = epoch(square_plan(mosaic=1.0))
    layers = composition.layers
    assert layers.size.prod(axis=-1).sum(axis=1).tolist() == [100 * 100] * COUNT
    assert composition.is_composed.all()
    meeting = layers.size[:, 0]
    assert (meeting.min(), meeting.max()) == (25, 75)
    for k, (y, x) in enumerate([(1, 1), (1, 0), (0, 1), (0, 0)]):
        # An image shows the corner with which it touches the point.
        bottom_right = np.array([y, x]) * meeting + (1 - np.array([y, x])) * 100
        assert np.array_equal(layers.place[:, k] + layers.size[:, k], bottom_right)
        assert np.array_equal(layers.offset[:, k], np.where([y, x], 100 - meeting, 0))
    counts = np.bincount(layers.index[:, 1:].ravel(), minlength=COUNT)
    assert counts.max() < 15, "partners are sampled from all images"
    assert abs(counts.std() - np.sqrt(3)) < 0.3


def test_fractions_and_ranges_are_the_stated_ones():
    options = {"mosaic": 0.3, "mixup": 0.2, "copy_paste": 0.25, "affine": AFFINE}
    composition = epoch(square_plan(**options, objects=OBJECTS))
    sizes = composition.layers.size
    assert sizes.shape[1] == 4 + NUM_PASTED + 1
    present = sizes.any(axis=-1).mean(axis=0)
    assert abs(present[1:4].mean() - 0.3) < 0.07
    assert abs(present[4:8].mean() - 0.25) < 0.05
    assert abs(present[8] - 0.2) < 0.06
    zoom = composition.layers.resized[:, 0, 0] / 100
    assert (zoom.min() < 0.52) & (zoom.max() > 1.48) & (zoom.min() >= 0.5) & (zoom.max() <= 1.5)
    # The rotation is what is left of the warp after the shear, which has a diagonal of 1.
    (a, b), (c, d) = np.moveaxis(composition.warp, 0, -1)
    shear = np.degrees(np.arctan(np.array([c / a, b / d])))  # rotation -+ shear, to first order
    assert abs(shear).max() <= 30
    assert abs(shear).max() > 19
    angle = np.degrees(np.arctan2(c - b, a + d))
    assert abs(angle).max() <= 20 + 10
    assert abs(angle.mean()) < 2


def test_a_translation_moves_by_fractions_of_the_sides():
    layers = epoch(square_plan(affine=NO_AFFINE | {"translation": 0.2})).layers
    moved = layers.place[:, 0] - layers.offset[:, 0]
    assert (moved.min(axis=0) == -20).all()
    assert (moved.max(axis=0) == 20).all()
    assert np.array_equal(layers.size[:, 0], 100 - abs(moved))


@pytest.mark.parametrize("changes", [{}, {"affine": AFFINE}])
def test_a_pasted_crop_contains_its_object_and_hardly_more(changes):
    options = {"copy_paste": 1.0, "objects": OBJECTS, "rot90": True, "flip": True}
    plan, num_pasted = train_plan(random_sizes(30), **options | changes), 0
    for step in range(plan.steps_per_epoch):
        batch = plan.batch(step)
        for example in range(4):
            for layer in placed_layers(batch.composition.select(example))[1:]:
                original = tuple(plan.sizes[layer.index].tolist())
                (box,), (visible,) = transforms.transform_boxes(BOX[None], original, layer.geometry)
                if (layer.geometry.size >= batch.size[example]).any():
                    continue  # it may be larger than the example and so clipped
                num_pasted += 1
                assert visible == 1
                assert (box[:2] < 1).all()
                assert (box[2:] > np.subtract(layer.geometry.size, 1)).all()
    assert num_pasted > 80


def test_the_last_steps_have_one_image_each():
    options = {"mosaic": 1.0, "mixup": 1.0, "copy_paste": 1.0, "objects": OBJECTS}
    always, limited = (train_plan(random_sizes(30), **options, mixed_steps=n) for n in (None, 10))
    for step in range(20):
        batch = limited.batch(step)
        if step < 10:
            assert to_bytes(batch.composition) == to_bytes(always.batch(step).composition)
        else:
            assert not batch.is_composed.any()
            assert batch.num_layers == 4 + NUM_PASTED + 1, "the boxes have one shape in all steps"
    affine = train_plan(random_sizes(30), **options, affine=AFFINE, mixed_steps=0)
    assert affine.batch(0).is_composed.all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mosaic": 1.5}, "mosaic=1.5 must be a fraction"),
        ({"mixup": -0.1}, "mixup=-0.1 must be a fraction"),
        ({"affine": AFFINE | {"rotation": 200.0}}, "affine.rotation=200.0 must be from 0 to 180"),
        ({"affine": AFFINE | {"shear": -5.0}}, "affine.shear=-5.0 must be from 0 to 30"),
        ({"affine": AFFINE | {"translation": 2.0}}, "affine.translation=2.0 must be from 0 to 1"),
        ({"affine": AFFINE | {"scale": (1.5, 0.5)}}, r"affine.scale=\(1.5, 0.5\) must be \(lo, hi"),
    ],
)
def test_a_value_out_of_range_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        train_plan(SIZES, **changes)


def test_without_objects_nothing_is_pasted():
    none = PastableObjects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    for objects in (None, none):
        assert train_plan(SIZES, copy_paste=1.0, objects=objects).batch(0).composition is None


def test_the_augmentation_is_affine_only_if_a_range_is_not_the_identity():
    augmentation = train_plan(SIZES).augmentation
    assert not augmentation.is_affine
    assert not dataclasses.replace(augmentation, affine=NO_AFFINE | {"scale": [1, 1]}).is_affine
    assert dataclasses.replace(augmentation, affine=NO_AFFINE | {"shear": 1.0}).is_affine
