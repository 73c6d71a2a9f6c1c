"""Batches follow the plan, are the same from any step, and name invalid images."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from train_plans import make_train_plan

from retinanet_jax.data import transforms
from retinanet_jax.data.augmentation import COLORS
from retinanet_jax.data.batch import IDENTITY_COLORS
from retinanet_jax.data.decoding import Decoding
from retinanet_jax.data.pipeline import batches, padded_counts
from retinanet_jax.data.plan import BatchPlan, EvalPlan, TrainPlan
from retinanet_jax.data.sources.base import subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.merged import merge

BUCKETS = ((96, 160), (160, 96))
EVERYTHING = {  # all augmentations
    "buckets": ((96, 96), (160, 160)),
    "short_sides": (60, 120),
    "short_side_sampling": "range",
    "scale_jitter": (0.5, 2.0),
    "crop_size": (110, 130),
    "rot90": True,
    "color_jitter": {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4, "hue": 0.1},
}


DEFAULTS = {
    "seed": 0,
    "batch_size": 4,
    "buckets": BUCKETS,
    "resize": "bilinear",
    "short_sides": (64, 96),
    "short_side_sampling": "choice",
    "long_side": 160,
    "flip": True,
    "scale_jitter": (0.7, 1.3),
    "crop_size": None,
    "rot90": False,
    "color_jitter": dict.fromkeys(COLORS, 0.0),
}


def train_plan(source, **changes) -> TrainPlan:
    """Return a plan with the default settings except for changes."""
    return make_train_plan(source.sizes, DEFAULTS | changes)


def eval_plan(source, **changes) -> EvalPlan:
    options = {"batch_size": 4, "buckets": BUCKETS, "short_side": 96, "long_side": 160}
    return EvalPlan(source.sizes, **options | {"resize": "bilinear"} | changes)


class SingleBatchPlan:
    """A plan of one batch; images are resized to 96 x 96 unless `fields` differ from that."""

    num_batches = 1

    def __init__(self, bucket, index, **fields):
        count = len(index)
        defaults = {
            "resized": np.full((count, 2), 96),
            "flip": np.zeros(count, bool),
            "rot90_k": np.zeros(count),
            "offset": np.zeros((count, 2)),
            "colors": np.tile(np.float32(IDENTITY_COLORS), (count, 1)),
            "weights": np.ones(count, np.float32),
        }
        values = defaults | {"size": defaults["resized"]} | fields
        arrays = {
            name: np.asarray(value, None if name in NOT_INTEGER else np.int32)
            for name, value in values.items()
        }
        self._batch_plan = BatchPlan(bucket, "bilinear", np.int32(index), **arrays)

    def batch(self, step):
        return self._batch_plan


NOT_INTEGER = ("flip", "colors", "weights")


def load(source, plan, start_step=0, num_steps=None, **changes):
    options = {"prefetch": 2, "num_threads": 2, "loader": "numpy", "min_visible": 0.0} | changes
    return list(batches(source, plan, start_step=start_step, num_steps=num_steps, **options))


def assert_equal(a, b):
    for field_of_a, field_of_b in zip(a, b, strict=True):
        np.testing.assert_array_equal(field_of_a, field_of_b)


@pytest.fixture
def planted(folder, encode):
    """Return images of many sizes with a bright rectangle on a dark background, and its box."""
    rng = np.random.default_rng(0)
    for image_id in range(1, 10):
        height, width = rng.integers(60, 200, 2).tolist()
        y, x = rng.integers(0, 30, 2).tolist()
        pixels = np.full((height, width, 3), 20, np.uint8)
        pixels[y : y + 25, x : x + 30] = 220
        file_format = "JPEG" if image_id % 2 else "PNG"
        options = {"quality": 98, "subsampling": "4:4:4"} if file_format == "JPEG" else {}
        folder.add_image(height, width, encode(pixels, file_format, **options))
        folder.add_box(image_id, [x, y, 30, 25], category_id=(3, 7)[image_id % 2])
    return folder.load()


@pytest.fixture(params=["tf", "numpy"])
def loader(request) -> str:
    return request.param


def test_the_box_of_a_rectangle_stays_on_it(planted):
    flipped = 0
    for batch in load(planted, train_plan(planted), num_steps=9):
        for example in range(len(batch.index)):
            bright = batch.images[example, :, :, 1] > 120
            rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
            frame = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            np.testing.assert_allclose(batch.boxes[example, 0], frame, atol=1)
            y1, x1, _, x2 = batch.boxes[example, 0] * np.tile(batch.scales[example], 2)
            original = planted.annotations(int(batch.index[example])).boxes[0]
            width = planted.sizes[batch.index[example], 1]
            mirrored = abs(x1 - original[1]) > 0.1
            flipped += mirrored
            np.testing.assert_allclose(width - x2 if mirrored else x1, original[1], atol=1e-3)
            np.testing.assert_allclose(y1, original[0], atol=1e-3)
    assert 5 < flipped < 31


def test_the_box_of_a_rectangle_stays_on_it_through_crops_and_rotations(planted):
    """If the rectangle is outside the crop, its box is counted as dropped instead."""
    plan, num_visible = train_plan(planted, **EVERYTHING), 0
    for batch in load(planted, plan, num_steps=15):
        for example in range(len(batch.index)):
            height, width = batch.sizes[example].astype(int)
            assert not batch.images[example, height:].any()
            assert not batch.images[example, :, width:].any()
            assert int(batch.mask[example].sum()) + batch.dropped[example] == 1
            bright = batch.images[example, :, :, 1] > 120
            y1, x1, y2, x2 = batch.boxes[example, 0]
            if min(y2 - y1, x2 - x1) <= 2:  # dropped, or at most two pixels wide
                assert bright.sum() <= 3 * 160
                continue
            num_visible += 1
            rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
            frame = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            np.testing.assert_allclose(batch.boxes[example, 0], frame, atol=2)
    assert num_visible > 40


def test_both_loaders_give_the_same_batches(planted):
    plan = train_plan(planted, **EVERYTHING)
    by_tf, by_threads = (
        load(planted, plan, num_steps=8, loader=name, min_visible=0.5) for name in ("tf", "numpy")
    )
    assert len(by_tf) == len(by_threads) == 8
    for tf_batch, threads_batch in zip(by_tf, by_threads, strict=True):
        assert tf_batch.images.dtype == threads_batch.images.dtype
        # One gray level: the JPEG libraries round differently.
        assert np.abs(tf_batch.images.astype(int) - threads_batch.images).max() <= 1
        assert_equal(tf_batch._replace(images=0), threads_batch._replace(images=0))


def test_every_field_follows_the_plan(planted):
    plan = train_plan(planted, color_jitter=EVERYTHING["color_jitter"])
    for step, batch in enumerate(load(planted, plan, num_steps=3)):
        planned = plan.batch(step)
        assert batch.images.shape == (4, *planned.bucket, 3)
        np.testing.assert_array_equal(batch.index, planned.index)
        np.testing.assert_array_equal(batch.weights, planned.weights)
        np.testing.assert_array_equal(batch.sizes, planned.size)
        np.testing.assert_array_equal(batch.colors, planned.colors)
        np.testing.assert_allclose(
            batch.scales * batch.sizes, planted.sizes[planned.index], rtol=1e-6
        )
        assert " ".join(field.dtype.name for field in batch) == (
            "uint8 float32 float32 float32 int32 bool float32 bool float32 int32 float32 int32"
        )
        assert batch.boxes.shape == (4, 8, 4)
        assert batch.mask.sum(axis=1).tolist() == [1] * 4
        # Image i has the id i + 1; odd ids are cats, the category with the higher id.
        assert batch.classes[:, 0].tolist() == [(index + 1) % 2 for index in planned.index]
        assert not batch.boxes[:, 1:].any()
        assert not batch.crowd_mask.any()
        assert not batch.dropped.any()


@pytest.mark.parametrize("method", transforms.PIXEL_TYPES)
def test_images_are_the_original_ones_resized_flipped_rotated_cropped_and_padded(
    planted, loader, method
):
    plan = train_plan(planted, **EVERYTHING, resize=method)
    for step, batch in enumerate(load(planted, plan, num_steps=6, loader=loader)):
        planned = plan.batch(step)
        for example, index in enumerate(planned.index.tolist()):
            resized = planned.resized[example].tolist()
            image = transforms.resize(planted.image(index), *resized, method=method)
            image = transforms.flip(image) if planned.flip[example] else image
            y, x = planned.offset[example]
            height, width = planned.size[example]
            image = np.rot90(image, planned.rot90_k[example])[y : y + height, x : x + width]
            image = transforms.pad(image, *planned.bucket)
            assert batch.images.dtype == image.dtype
            difference = np.abs(batch.images[example].astype(float) - image).max()
            assert difference <= (1.001 if loader == "tf" else 0)


def test_boxes_below_the_visible_fraction_are_dropped_and_counted(folder):
    """The crop is 48 x 48 pixels at (24, 24) of an image of 96 x 96 pixels."""
    folder.add_image(96, 96)
    folder.add_box(1, [30, 30, 20, 20])  # whole
    folder.add_box(1, [14, 24, 20, 20], category_id=7)  # half: x from 24
    folder.add_box(1, [4, 24, 25, 20])  # a fifth
    folder.add_box(1, [0, 0, 24, 96])  # none: it ends where the crop begins
    folder.add_box(1, [0, 0, 96, 48], iscrowd=1)  # a quarter
    folder.add_box(1, [70, 70, 20, 20], iscrowd=1)  # a hundredth
    source = folder.load()
    plan = SingleBatchPlan((64, 64), [0, 0], offset=[[24, 24], [0, 0]], size=[[48, 48], [64, 64]])

    (batch,) = load(source, plan, min_visible=0.25)
    assert batch.boxes[0, :2].tolist() == [[6, 6, 26, 26], [0, 0, 20, 10]]
    assert batch.classes[0, :2].tolist() == [0, 1]
    assert batch.mask[0].tolist() == [True] * 2 + [False] * 6
    assert not batch.boxes[0, 2:].any()
    assert batch.crowd_boxes[0].tolist() == [[0, 0, 24, 48], [0] * 4]
    assert batch.crowd_mask[0].tolist() == [True, False]
    assert batch.dropped.tolist() == [2, 0]
    assert batch.sizes.tolist() == [[48, 48], [64, 64]]

    (batch,) = load(source, plan, min_visible=0.0)
    assert batch.mask[0].sum() == 3  # a box with no visible area is always dropped
    assert batch.crowd_mask[0].sum() == 2
    assert batch.dropped.tolist() == [1, 0]


def test_no_complete_box_is_dropped_by_a_rounding_error(folder):
    rng = np.random.default_rng(0)
    for height, width in rng.integers(33, 500, (40, 2)).tolist():
        image_id = folder.add_image(height, width)
        for y, x in rng.integers(0, 30, (8, 2)).tolist():
            folder.add_box(image_id, [x, y, width - x, height - y])
    source = folder.load()
    options = {"short_sides": (61, 97), "rot90": True, "scale_jitter": (0.5, 1.5)}
    plan = train_plan(source, buckets=((160, 160),), **options)
    for batch in load(source, plan, num_steps=10, loader="numpy", min_visible=1.0):
        assert not batch.dropped.any()
        assert batch.mask.sum() == 32


def test_a_rotation_by_90_degrees_exchanges_the_scales(folder):
    folder.add_image(192, 48)
    source = folder.load()
    plan = SingleBatchPlan((96, 96), [0, 0], rot90_k=[0, 3])
    (batch,) = load(source, plan)
    assert batch.scales.tolist() == [[2, 0.5], [0.5, 2]]


def test_a_resumed_run_gets_the_same_batches(planted, loader):
    whole = load(planted, train_plan(planted), num_steps=8, loader=loader)
    resumed = load(
        planted,
        train_plan(planted),
        start_step=5,
        num_steps=3,
        num_threads=None,
        prefetch=0,
        loader=loader,
    )
    assert len(resumed) == 3
    for batch, resumed_batch in zip(whole[5:], resumed, strict=True):
        assert_equal(batch, resumed_batch)


def test_the_parts_of_all_hosts_make_the_batch(planted):
    plan = train_plan(planted)
    whole = load(planted, plan, num_steps=3)
    parts = [
        load(planted, plan, num_steps=3, process_index=host, process_count=2) for host in (0, 1)
    ]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert_equal(batch, [np.concatenate(pair) for pair in zip(first, second, strict=True)])
    with pytest.raises(ValueError, match="does not divide among 3 processes"):
        load(planted, plan, num_steps=1, process_count=3)


def test_an_evaluation_ends_after_every_image(planted, loader):
    plan = eval_plan(planted)
    loaded = load(planted, plan, loader=loader)
    assert len(loaded) == plan.num_batches
    indices = np.concatenate([batch.index[batch.weights == 1] for batch in loaded])
    assert sorted(indices.tolist()) == list(range(9))
    assert load(planted, plan, start_step=plan.num_batches, loader=loader) == []


def test_crowd_regions_are_separate_from_the_boxes(folder):
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
    for x in range(most):
        folder.add_box(1, [x, 0, 5, 5])
    assert padded_counts(folder.load()) == (padded, 1)


def test_images_of_every_mode_and_orientation_are_loaded(folder, encode, loader):
    """RGB, gray, CMYK, rotated by EXIF, annotated without the rotation, transparent, 16 bit."""
    pixels = np.asarray(Image.linear_gradient("L").resize((160, 96)).convert("RGB"))
    rotated = np.ascontiguousarray(np.rot90(pixels))
    gray16 = pixels[:, :, 0].astype(np.uint16) * 257
    for data in (
        encode(pixels, "JPEG", quality=98),
        encode(pixels, "JPEG", mode="L", quality=98),
        encode(pixels, "JPEG", mode="CMYK", quality=98),
        encode(rotated, "JPEG", orientation=6, quality=98),
        encode(pixels, "JPEG", orientation=6, quality=98),
        encode(pixels, mode="RGBA"),
        encode(pixels, mode="L"),
        encode(gray16),
    ):
        folder.add_image(96, 160, data)
    source = folder.load()
    for batch in load(source, eval_plan(source), loader=loader):
        assert np.abs(batch.images.astype(int) - pixels).max() <= 4


def test_images_are_decoded_as_their_dataset_requires(folder, encode, loader):
    """12 bits in 16 by a value range, and an orientation that boxes were drawn without."""
    pixels = np.asarray(Image.linear_gradient("L").resize((160, 96)).convert("RGB"))
    folder.add_image(96, 160, encode(pixels[..., 0].astype(np.uint16) * 16))
    folder.add_image(96, 160, encode(pixels, "JPEG", orientation=3, quality=98))
    folder.add_image(96, 160, encode(pixels, "JPEG", quality=98))
    source = folder.load()
    source.decoding = Decoding(value_range=(0.0, 4080.0), exif="ignored")
    merged = merge([source, subset(source, [0])])
    for part in (source, subset(source, [2, 1, 0]), merged):
        for batch in load(part, eval_plan(part), loader=loader):
            assert np.abs(batch.images.astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("defect", ["truncated", "corrupt", "text", "size", "missing", "png"])
def test_an_invalid_image_is_named_in_one_line_with_no_trace_of_the_loader(
    folder, encode, defect, loader
):
    good = encode(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), "JPEG")
    bad, error, message = {
        "truncated": (good[:-900], ValueError, r"3\.img: the image is corrupt or truncated"),
        "corrupt": (good[:200] + b"\0" * 500, ValueError, r"3\.img: the image is corrupt"),
        "text": (b"not an image", ValueError, r"3\.img: the image is corrupt"),
        "size": (
            encode(np.zeros((50, 70, 3), np.uint8), "JPEG"),
            ValueError,
            r"3\.img: .*\(50, 70\).*annotations declare \(96, 96\)",
        ),
        "missing": (good, FileNotFoundError, r"3\.img: the image of id 3 is missing"),
        "png": (encode(np.zeros((96, 96, 3), np.uint8))[:60], ValueError, r"3\.img: .*corrupt"),
    }[defect]
    for image_id in range(1, 7):
        folder.add_image(96, 96, bad if image_id == 3 else good)
    source = folder.load()
    if defect == "missing":
        (folder.images / "3.img").unlink()
    loaded = batches(
        source,
        eval_plan(source, batch_size=2),
        start_step=0,
        num_steps=None,
        prefetch=2,
        loader=loader,
        min_visible=0.0,
    )
    next(loaded)  # images 1 and 2 are valid
    with pytest.raises(error, match=message) as caught:
        next(loaded)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "tensorflow" not in str(caught.value).lower()


def test_threads_load_at_most_the_prefetched_batches_and_end_with_the_loader(planted, monkeypatch):
    requested, image = [], planted.image
    monkeypatch.setattr(planted, "image", lambda index: requested.append(index) or image(index))
    before = threading.active_count()
    loaded = batches(
        planted,
        train_plan(planted),
        start_step=0,
        num_steps=None,
        prefetch=2,
        num_threads=3,
        loader="numpy",
        min_visible=0.0,
    )
    next(loaded)
    assert threading.active_count() > before
    loaded.close()
    assert threading.active_count() == before
    assert 4 <= len(requested) <= 3 * 4


def test_an_image_smaller_than_requested_is_logged_once(planted, loader, caplog, monkeypatch):
    monkeypatch.setattr(planted, "read", lambda index: None)
    monkeypatch.setattr(planted, "image", lambda index: np.zeros((30, 30, 3), np.uint8))
    caplog.set_level("WARNING", logger="absl")
    loaded = load(planted, train_plan(planted), num_steps=5, loader=loader)
    assert not any(batch.images.any() for batch in loaded)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "at a height of 30, and " in line
    assert "\n" not in line


def test_an_unknown_loader_or_a_fraction_out_of_range_is_an_error(planted):
    plan = train_plan(planted)
    with pytest.raises(ValueError, match=r"loader='tfdata' must be one of 'tf', 'numpy'\."):
        load(planted, plan, num_steps=1, loader="tfdata")
    with pytest.raises(ValueError, match=r"min_visible=25\.0 must be a fraction"):
        load(planted, plan, num_steps=1, min_visible=25.0)


def test_without_tensorflow_the_error_of_the_tf_loader_names_the_remedy(planted, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match=r"`pip install .tensorflow-cpu.`.*loader=numpy") as caught:
        load(planted, train_plan(planted), num_steps=1, loader="tf")
    assert "\n" not in str(caught.value)


def test_the_numpy_loader_does_not_need_tensorflow(synthetic_dataset):
    code = f"""
import sys
sys.modules.update(tensorflow=None, tensorflow_datasets=None)
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan
from retinanet_jax.data.sources.coco import CocoSource
folder = {str(synthetic_dataset)!r}
source = CocoSource(folder + "/instances.json", folder + "/images")
sides = {{"short_side": 80, "long_side": 80, "resize": "bilinear"}}
plan = EvalPlan(source.sizes, batch_size=8, buckets=((96, 96),), **sides)
loaded = batches(
    source, plan, start_step=0, num_steps=None, prefetch=2, loader="numpy", min_visible=0.0
)
print(sum(int(batch.weights.sum()) for batch in loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["20"], done.stderr


def test_real_photographs_are_loaded_with_all_their_boxes(test_data):
    source = CocoSource(test_data / "cards/test.json", test_data / "cards/test")
    plan = EvalPlan(
        source.sizes,
        batch_size=8,
        buckets=((256, 352), (352, 256)),
        resize="bilinear",
        short_side=256,
        long_side=341,
    )
    loaded = load(source, plan)
    assert sum(int(batch.weights.sum()) for batch in loaded) == 67
    assert sum(int(batch.mask[batch.weights == 1].sum()) for batch in loaded) == 143
    for batch in loaded:
        limits = np.tile(batch.sizes, 2)[:, None]
        assert (batch.boxes <= limits + 1e-3).all()
