"""Batches: true to plan and pictures, the same from any step, and clear about bad pictures."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.data import transforms
from retinanet_jax.data.pipeline import batches, padded_counts
from retinanet_jax.data.plan import PLAIN_COLORS, BatchPlan, EvalPlan, TrainPlan
from retinanet_jax.data.sources.base import subset
from retinanet_jax.data.sources.coco import CocoSource

BUCKETS = ((96, 160), (160, 96))
EVERYTHING = {  # that changes the geometry
    "buckets": ((96, 96), (160, 160)),
    "short_sides": (60, 120),
    "short_side_sampling": "range",
    "scale_jitter": (0.5, 2.0),
    "crop_size": (110, 130),
    "rot90": True,
    "color_jitter": {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4, "hue": 0.1},
}


def train_plan(source, **changes) -> TrainPlan:
    recipe = {
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
        "color_jitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
    }
    return TrainPlan(source.sizes, **recipe | changes)


def eval_plan(source, **changes) -> EvalPlan:
    recipe = {"batch_size": 4, "buckets": BUCKETS, "short_side": 96, "long_side": 160}
    return EvalPlan(source.sizes, **recipe | {"resize": "bilinear"} | changes)


class Given:
    """A plan of one batch, by hand."""

    num_batches = 1

    def __init__(self, bucket, index, **fields):
        count = len(index)
        plain = {
            "resized": np.full((count, 2), 96),
            "flip": np.zeros(count, bool),
            "turns": np.zeros(count),
            "offset": np.zeros((count, 2)),
            "colors": np.tile(np.float32(PLAIN_COLORS), (count, 1)),
            "weights": np.ones(count, np.float32),
        }
        given = plain | {"size": plain["resized"]} | fields
        ours = {
            name: np.asarray(value, np.asarray(value).dtype if name in KEPT else np.int32)
            for name, value in given.items()
        }
        self.rows = BatchPlan(bucket=bucket, resize="bilinear", index=np.int32(index), **ours)

    def batch(self, step):
        return self.rows


KEPT = ("flip", "colors", "weights")  # fields that are not whole numbers


def load(source, plan, start_step=0, num_steps=None, **more):
    options = {"prefetch": 2, "num_threads": 2, "loader": "numpy", "min_visible": 0.0} | more
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


@pytest.fixture(params=["tf", "numpy"])
def loader(request) -> str:
    return request.param


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


def test_a_planted_rectangle_stays_framed_through_crop_and_quarter_turns(planted):
    """Or it is counted among the dropped, and not to be seen."""
    plan, seen = train_plan(planted, **EVERYTHING), 0
    for batch in load(planted, plan, num_steps=15):
        for row in range(len(batch.index)):
            height, width = batch.sizes[row].astype(int)
            assert not batch.images[row, height:].any()
            assert not batch.images[row, :, width:].any()
            assert int(batch.mask[row].sum()) + batch.dropped[row] == 1
            bright = batch.images[row, :, :, 1] > 120
            y1, x1, y2, x2 = batch.boxes[row, 0]
            if min(y2 - y1, x2 - x1) <= 2:  # dropped, or a sliver of a pixel's width
                assert bright.sum() <= 3 * 160
                continue
            seen += 1
            rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
            framed = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            np.testing.assert_allclose(batch.boxes[row, 0], framed, atol=2)
    assert seen > 40


def test_both_loaders_give_the_same_batches(planted):
    plan = train_plan(planted, **EVERYTHING)
    by_tf, by_threads = (
        load(planted, plan, num_steps=8, loader=name, min_visible=0.5) for name in ("tf", "numpy")
    )
    assert len(by_tf) == len(by_threads) == 8
    for one, other in zip(by_tf, by_threads, strict=True):
        assert one.images.dtype == other.images.dtype
        # One grey level: the JPEG libraries' rounding.
        assert np.abs(one.images.astype(int) - other.images).max() <= 1
        assert_equal(one._replace(images=0), other._replace(images=0))


def test_every_field_by_the_plan(planted):
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
        # Picture i is image i + 1; the odd ones are cats, the higher of the two ids.
        assert batch.classes[:, 0].tolist() == [(index + 1) % 2 for index in planned.index]
        assert not batch.boxes[:, 1:].any()
        assert not batch.crowd_mask.any()
        assert not batch.dropped.any()


@pytest.mark.parametrize("kind", transforms.PIXEL_TYPES)
def test_pictures_are_the_plain_ones_resized_flipped_turned_cropped_and_padded(
    planted, loader, kind
):
    plan = train_plan(planted, **EVERYTHING, resize=kind)
    for step, batch in enumerate(load(planted, plan, num_steps=6, loader=loader)):
        planned = plan.batch(step)
        for row, index in enumerate(planned.index.tolist()):
            resized = planned.resized[row].tolist()
            image = transforms.resize(planted.image(index), *resized, kind=kind)
            image = transforms.flip(image) if planned.flip[row] else image
            y, x = planned.offset[row]
            height, width = planned.size[row]
            image = np.rot90(image, planned.turns[row])[y : y + height, x : x + width]
            image = transforms.pad(image, *planned.bucket)
            assert batch.images.dtype == image.dtype
            difference = np.abs(batch.images[row].astype(float) - image).max()
            assert difference <= (1.001 if loader == "tf" else 0)


def test_boxes_below_the_visible_share_are_left_out_and_counted(folder):
    """A window of 48 x 48 at (24, 24) of a picture of 96 x 96."""
    folder.add_image(96, 96)
    folder.add_box(1, [30, 30, 20, 20])  # whole
    folder.add_box(1, [14, 24, 20, 20], category_id=7)  # half: x from 24
    folder.add_box(1, [4, 24, 25, 20])  # a fifth
    folder.add_box(1, [0, 0, 24, 96])  # none: it ends where the window begins
    folder.add_box(1, [0, 0, 96, 48], iscrowd=1)  # a quarter
    folder.add_box(1, [70, 70, 20, 20], iscrowd=1)  # a hundredth
    source = folder.load()
    plan = Given((64, 64), [0, 0], offset=[[24, 24], [0, 0]], size=[[48, 48], [64, 64]])

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
    assert batch.mask[0].sum() == 3  # the one without any area left is never kept
    assert batch.crowd_mask[0].sum() == 2
    assert batch.dropped.tolist() == [1, 0]


def test_no_whole_box_is_left_out_for_a_rounding_error(folder):
    rng = np.random.default_rng(0)
    for height, width in rng.integers(33, 500, (40, 2)).tolist():
        number = folder.add_image(height, width)
        for y, x in rng.integers(0, 30, (8, 2)).tolist():
            folder.add_box(number, [x, y, width - x, height - y])
    source = folder.load()
    plan = train_plan(source, short_sides=(61, 97), rot90=True, scale_jitter=(0.5, 1.5))
    for batch in load(source, plan, num_steps=10, loader="numpy", min_visible=1.0):
        assert not batch.dropped.any()
        assert batch.mask.sum() == 32


def test_a_quarter_turn_exchanges_the_scales(folder):
    folder.add_image(192, 48)
    source = folder.load()
    plan = Given((96, 96), [0, 0], turns=[0, 3])
    (batch,) = load(source, plan)
    assert batch.scales.tolist() == [[2, 0.5], [0.5, 2]]


def test_a_resumed_run_sees_the_same_batches(planted, loader):
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


def test_evaluation_ends_after_every_picture(planted, loader):
    plan = eval_plan(planted)
    loaded = load(planted, plan, loader=loader)
    assert len(loaded) == plan.num_batches
    seen = np.concatenate([batch.index[batch.weights == 1] for batch in loaded])
    assert sorted(seen.tolist()) == list(range(9))
    assert load(planted, plan, start_step=plan.num_batches, loader=loader) == []


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


def test_every_kind_of_picture_arrives(folder, encode, loader):
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
    for batch in load(source, eval_plan(source), loader=loader):
        assert np.abs(batch.images.astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("culprit", ["truncated", "corrupt", "text", "size", "gone", "png"])
def test_a_bad_picture_is_named_in_one_line_with_no_trace_of_the_loader(
    folder, encode, culprit, loader
):
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
        source,
        eval_plan(source, batch_size=2),
        start_step=0,
        num_steps=None,
        prefetch=2,
        loader=loader,
        min_visible=0.0,
    )
    next(loaded)  # pictures 1 and 2 are good
    with pytest.raises(error, match=message) as caught:
        next(loaded)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "tensorflow" not in str(caught.value).lower()


class Watched:
    """A source that counts which pictures have been asked for."""

    def __init__(self, source):
        self._source = source
        self.asked = []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def image(self, index):
        self.asked.append(index)
        return self._source.image(index)


def test_threads_run_no_further_ahead_than_asked_and_end_with_the_loader(planted):
    source = Watched(planted)
    before = threading.active_count()
    loaded = batches(
        source,
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
    assert 4 <= len(source.asked) <= 3 * 4


def test_a_picture_held_too_small_is_told_once(planted, loader, caplog):
    class Small(type(subset(planted, []))):
        def read(self, index):
            return None

        def image(self, index):
            return np.zeros((30, 30, 3), np.uint8)

    plan = train_plan(planted)
    small = Small(planted, range(len(planted)))
    caplog.set_level("WARNING", logger="absl")
    assert not any(batch.images.any() for batch in load(small, plan, num_steps=5, loader=loader))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "at 30, and " in line
    assert "\n" not in line


def test_what_batches_are_asked_for_is_checked(planted):
    plan = train_plan(planted)
    with pytest.raises(ValueError, match=r"loader='tfdata' must be one of 'tf', 'numpy'\."):
        load(planted, plan, num_steps=1, loader="tfdata")
    with pytest.raises(ValueError, match=r"min_visible=25 must be a share"):
        load(planted, plan, num_steps=1, min_visible=25)


def test_without_tensorflow_the_tf_loader_says_what_to_do(planted, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match=r"pip install tensorflow-cpu.*loader=numpy") as caught:
        load(planted, train_plan(planted), num_steps=1, loader="tf")
    assert "\n" not in str(caught.value)


def test_the_numpy_loader_needs_no_tensorflow(drawn):
    code = f"""
import sys
sys.modules.update(tensorflow=None, tensorflow_datasets=None)
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan
from retinanet_jax.data.sources.coco import CocoSource
source = CocoSource({str(drawn / "instances.json")!r}, {str(drawn / "images")!r})
sides = {{"short_side": 80, "long_side": 80, "resize": "bilinear"}}
plan = EvalPlan(source.sizes, batch_size=8, buckets=((96, 96),), **sides)
loaded = batches(
    source, plan, start_step=0, num_steps=None, prefetch=2, loader="numpy", min_visible=0.0
)
print(sum(int(batch.weights.sum()) for batch in loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["20"], done.stderr


def test_real_photographs(test_data):
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
