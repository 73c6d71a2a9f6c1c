"""Batches: true to plan and pictures, the same from any step, and clear about bad pictures."""

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.data import transforms
from retinanet_jax.data.pipeline import batches, padded_counts
from retinanet_jax.data.plan import EvalPlan, TrainPlan
from retinanet_jax.data.sources.coco import CocoSource

BUCKETS = ((96, 160), (160, 96))


def train_plan(source, **changes) -> TrainPlan:
    recipe = {
        "seed": 0,
        "batch_size": 4,
        "buckets": BUCKETS,
        "short_sides": (64, 96),
        "long_side": 160,
        "flip": True,
        "scale_jitter": (0.7, 1.3),
    }
    return TrainPlan(source.sizes, **recipe | changes)


def eval_plan(source, batch_size: int = 4) -> EvalPlan:
    return EvalPlan(
        source.sizes, batch_size=batch_size, buckets=BUCKETS, short_side=96, long_side=160
    )


def load(source, plan, start_step=0, num_steps=None, **more):
    options = {"prefetch": 2, "num_threads": 2} | more
    return list(batches(source, plan, start_step=start_step, num_steps=num_steps, **options))


def assert_equal(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def planted(folder, encode):
    """A bright rectangle before a dark ground, and its box, in pictures of many sizes."""
    rng = np.random.default_rng(0)
    for number in range(1, 10):
        height, width = rng.integers(60, 200, 2).tolist()
        y, x = rng.integers(0, 30, 2).tolist()
        pixels = np.full((height, width, 3), 20, np.uint8)
        pixels[y : y + 25, x : x + 30] = 220
        kind = "JPEG" if number % 2 else "PNG"
        options = {"quality": 98, "subsampling": "4:4:4"} if kind == "JPEG" else {}
        folder.add_image(height, width, encode(pixels, kind, **options))
        folder.add_box(number, [x, y, 30, 25], category_id=(3, 7)[number % 2])
    return folder.load()


def test_a_planted_rectangle_stays_framed(planted):
    flipped = 0
    for batch in load(planted, train_plan(planted), num_steps=9):
        for row in range(len(batch.index)):
            bright = batch.images[row, :, :, 1] > 120
            rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
            framed = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            np.testing.assert_allclose(batch.boxes[row, 0], framed, atol=1)
            y1, x1, _, x2 = batch.boxes[row, 0] * np.tile(batch.scales[row], 2)
            original = planted.annotations(int(batch.index[row])).boxes[0]
            width = planted.sizes[batch.index[row], 1]
            mirrored = abs(x1 - original[1]) > 0.1
            flipped += mirrored
            np.testing.assert_allclose(width - x2 if mirrored else x1, original[1], atol=1e-3)
            np.testing.assert_allclose(y1, original[0], atol=1e-3)
    assert 5 < flipped < 31


def test_every_field_by_the_plan(planted):
    plan = train_plan(planted)
    for step, batch in enumerate(load(planted, plan, num_steps=3)):
        planned = plan.batch(step)
        assert batch.images.shape == (4, *planned.bucket, 3)
        np.testing.assert_array_equal(batch.index, planned.index)
        np.testing.assert_array_equal(batch.weights, planned.weights)
        np.testing.assert_array_equal(batch.sizes, planned.resized)
        np.testing.assert_allclose(
            batch.scales * batch.sizes, planted.sizes[planned.index], rtol=1e-6
        )
        assert " ".join(field.dtype.name for field in batch) == (
            "uint8 float32 float32 float32 int32 bool float32 bool float32 int32"
        )
        assert batch.boxes.shape == (4, 8, 4)
        assert batch.mask.sum(axis=1).tolist() == [1] * 4
        # Picture i is image i + 1; the odd ones are cats, the higher of the two ids.
        assert batch.classes[:, 0].tolist() == [(index + 1) % 2 for index in planned.index]
        assert not batch.boxes[:, 1:].any()
        assert not batch.crowd_mask.any()


def test_pictures_equal_those_made_without_tensorflow(planted):
    plan = train_plan(planted)
    for step, batch in enumerate(load(planted, plan, num_steps=6)):
        planned = plan.batch(step)
        for row, index in enumerate(planned.index.tolist()):
            image = transforms.decode_image(planted.read(index), "a")
            image = transforms.resize(image, *planned.resized[row].tolist())
            image = transforms.flip(image) if planned.flip[row] else image
            image = transforms.pad(image, *planned.bucket)
            # One grey level: the JPEG libraries' rounding.
            assert np.abs(batch.images[row].astype(int) - image).max() <= 1


def test_a_resumed_run_sees_the_same_batches(planted):
    whole = load(planted, train_plan(planted), num_steps=8)
    resumed = load(planted, train_plan(planted), start_step=5, num_steps=3, num_threads=None)
    assert len(resumed) == 3
    for one, other in zip(whole[5:], resumed, strict=True):
        assert_equal(one, other)


def test_hosts_share_a_batch(planted):
    plan = train_plan(planted)
    whole = load(planted, plan, num_steps=3)
    parts = [
        load(planted, plan, num_steps=3, process_index=host, process_count=2) for host in (0, 1)
    ]
    for one, first, second in zip(whole, *parts, strict=True):
        assert_equal(one, [np.concatenate(pair) for pair in zip(first, second, strict=True)])
    with pytest.raises(ValueError, match="does not divide among 3 processes"):
        load(planted, plan, num_steps=1, process_count=3)


def test_evaluation_ends_after_every_picture(planted):
    plan = eval_plan(planted)
    loaded = load(planted, plan)
    assert len(loaded) == plan.num_batches
    seen = np.concatenate([batch.index[batch.weights == 1] for batch in loaded])
    assert sorted(seen.tolist()) == list(range(9))
    assert load(planted, plan, start_step=plan.num_batches) == []


def test_crowd_regions_have_their_own_place(folder):
    folder.add_image(96, 96)
    folder.add_image(96, 96)
    folder.add_box(1, [0, 0, 50, 60], iscrowd=1)
    folder.add_box(1, [10, 20, 30, 40], category_id=7)
    source = folder.load()
    (batch,) = load(source, eval_plan(source, batch_size=2))
    assert batch.mask.sum(axis=1).tolist() == [1, 0]
    assert batch.boxes[0, 0].tolist() == [20, 10, 60, 40]
    assert batch.classes[0, 0] == 1
    assert batch.crowd_mask.tolist() == [[True], [False]]
    assert batch.crowd_boxes[0].tolist() == [[0, 0, 60, 50]]
    assert not batch.boxes[1].any()


@pytest.mark.parametrize(("most", "padded"), [(0, 8), (1, 8), (8, 8), (9, 16)])
def test_boxes_are_padded_to_a_multiple_of_8(folder, most, padded):
    folder.add_image(96, 96)
    for number in range(most):
        folder.add_box(1, [number, 0, 5, 5])
    assert padded_counts(folder.load()) == (padded, 1)


def test_every_kind_of_picture_arrives(folder, encode):
    """Grey, 16 bit, palette, transparent, CMYK, turned by EXIF, annotated unrotated."""
    pixels = np.asarray(Image.linear_gradient("L").resize((160, 96)).convert("RGB"))
    turned = np.ascontiguousarray(np.rot90(pixels))
    grey16 = pixels[:, :, 0].astype(np.uint16) * 257
    for data in (
        encode(pixels, "JPEG", quality=98),
        encode(pixels, "JPEG", mode="L", quality=98),
        encode(pixels, "JPEG", mode="CMYK", quality=98),
        encode(turned, "JPEG", orientation=6, quality=98),
        encode(pixels, "JPEG", orientation=6, quality=98),
        encode(pixels, mode="RGBA"),
        encode(pixels, mode="L"),
        encode(grey16),
    ):
        folder.add_image(96, 160, data)
    source = folder.load()
    for batch in load(source, eval_plan(source)):
        assert np.abs(batch.images.astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("culprit", ["truncated", "corrupt", "text", "size", "gone", "png"])
def test_a_bad_picture_is_named_in_one_line_with_no_trace_of_tensorflow(folder, encode, culprit):
    good = encode(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), "JPEG")
    bad, error, message = {
        "truncated": (good[:-900], ValueError, r"3\.img: the picture is corrupt or truncated"),
        "corrupt": (good[:200] + b"\0" * 500, ValueError, r"3\.img: the picture is corrupt"),
        "text": (b"not a picture", ValueError, r"3\.img: the picture is corrupt"),
        "size": (
            encode(np.zeros((50, 70, 3), np.uint8), "JPEG"),
            ValueError,
            r"3\.img: .*\(50, 70\).*declared with \(96, 96\)",
        ),
        "gone": (good, FileNotFoundError, r"3\.img: the picture of image id 3 is missing"),
        "png": (encode(np.zeros((96, 96, 3), np.uint8))[:60], ValueError, r"3\.img: .*corrupt"),
    }[culprit]
    for number in range(1, 7):
        folder.add_image(96, 96, bad if number == 3 else good)
    source = folder.load()
    if culprit == "gone":
        (folder.images / "3.img").unlink()
    loaded = batches(
        source, eval_plan(source, batch_size=2), start_step=0, num_steps=None, prefetch=2
    )
    next(loaded)  # pictures 1 and 2 are good
    with pytest.raises(error, match=message) as caught:
        next(loaded)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert "tensorflow" not in str(caught.value).lower()


def test_real_photographs(test_data):
    source = CocoSource(test_data / "cards/test.json", test_data / "cards/test")
    plan = EvalPlan(
        source.sizes,
        batch_size=8,
        buckets=((256, 352), (352, 256)),
        short_side=256,
        long_side=341,
    )
    loaded = load(source, plan)
    assert sum(int(batch.weights.sum()) for batch in loaded) == 67
    assert sum(int(batch.mask[batch.weights == 1].sum()) for batch in loaded) == 143
    for batch in loaded:
        limits = np.tile(batch.sizes, 2)[:, None]
        assert (batch.boxes <= limits + 1e-3).all()
