"""`packed`: the same training as from the files, and nothing taken for it that is not it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan, TrainPlan
from retinanet_jax.data.sources import packed
from retinanet_jax.data.sources.base import split_by_hash, subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.packed import PackedSource, write_packed

SIDES = {"short_side": 96, "long_side": 160, "resize": "bilinear"}


def pack(source, path, **more) -> PackedSource:
    return write_packed(source, path, **SIDES | {"progress": lambda done: None} | more)


def load(source, plan, num_steps=None, loader="numpy"):
    return list(
        batches(
            source,
            plan,
            start_step=0,
            num_steps=num_steps,
            prefetch=2,
            loader=loader,
            min_visible=0.0,
        )
    )


def assert_same(loaded, expected):
    for one, other in zip(loaded, expected, strict=True):
        for field, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, wanted)


@pytest.fixture
def source(folder, encode):
    """Photograph-like pictures of many sizes and kinds, with boxes, crowd and none."""
    rng = np.random.default_rng(0)
    for number in range(1, 10):
        height, width = rng.integers(50, 260, 2).tolist()
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        kind = ("JPEG", "PNG")[number % 2]
        folder.add_image(height, width, encode(pixels, kind))
        for k in range(number % 4):
            box = [5 + k, 4, 20.5, 30.25]
            folder.add_box(number, box, category_id=(3, 7)[k % 2], iscrowd=int(k == 2))
    return folder.load()


@pytest.fixture
def written(source, tmp_path):
    path = tmp_path / "packed"
    pack(source, path)
    return path


def test_it_is_the_source_but_for_the_pixels(source, written):
    ours = PackedSource(written)
    assert len(ours) == 9
    assert ours.categories == source.categories
    assert ours.image_ids == source.image_ids
    assert {type(one) for one in ours.image_ids} == {int}
    assert ours.ground_truth() == source.ground_truth()
    np.testing.assert_array_equal(ours.sizes, source.sizes)
    for index in range(9):
        assert ours.file_name(index) == source.file_name(index)
        assert ours.read(index) is None
        for one, other in zip(ours.annotations(index), source.annotations(index), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    assert (ours.short_side, ours.long_side) == (96, 160)


def test_a_picture_by_hand(folder, encode, tmp_path):
    """2 x 4 pixels to 1 x 2: the mean of four; to 4 x 8 it begins with a corner's own colour."""
    values = np.array([[0, 20, 100, 120], [40, 60, 200, 220]], np.uint8)
    folder.add_image(2, 4, encode(np.repeat(values[..., None], 3, axis=2)))
    source = folder.load()
    smaller = pack(source, tmp_path / "smaller", short_side=1, long_side=9)
    assert smaller.image(0)[..., 0].tolist() == [[30, 160]]
    larger = pack(source, tmp_path / "larger", short_side=4, long_side=9)
    assert larger.image(0).shape == (4, 8, 3)
    assert larger.image(0)[[0, 0, 3, 3], [0, 7, 0, 7], 1].tolist() == [0, 120, 40, 220]
    assert larger.sizes.tolist() == [[2, 4]]


def test_pictures_are_the_mapped_file_itself(written):
    source = PackedSource(written)
    whole = source.image(0).base
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    assert isinstance(whole, np.memmap)
    assert np.shares_memory(source.image(3), whole)
    with pytest.raises(ValueError, match="read-only"):
        source.image(0)[0] = 0


@pytest.mark.parametrize("kind", ["bilinear", "pillow"])
def test_evaluation_sees_the_same_batches_bit_for_bit(source, tmp_path, kind):
    ours = pack(source, tmp_path / "packed", resize=kind)
    assert ours.resize == PackedSource(tmp_path / "packed").resize == kind
    recipe = {"batch_size": 4, "buckets": ((96, 160), (160, 96)), **SIDES, "resize": kind}
    theirs = load(source, EvalPlan(source.sizes, **recipe))
    assert len(theirs) > 1
    for loader in ("numpy", "tf"):
        assert_same(load(ours, EvalPlan(ours.sizes, **recipe), loader=loader), theirs)


def test_training_sees_the_same_batches_bit_for_bit(source, written):
    """With everything that does not change the short side."""
    ours = PackedSource(written)
    recipe = {
        "seed": 3,
        "batch_size": 4,
        "buckets": ((96, 96), (160, 160)),
        "resize": "bilinear",
        "short_sides": (96,),
        "short_side_sampling": "choice",
        "long_side": 160,
        "flip": True,
        "scale_jitter": None,
        "crop_size": (90, 120),
        "rot90": True,
        "color_jitter": {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.1},
    }
    theirs = load(source, TrainPlan(source.sizes, **recipe), num_steps=9)
    assert_same(load(ours, TrainPlan(ours.sizes, **recipe), num_steps=9), theirs)


def test_larger_pictures_than_held_are_made_and_told_in_one_line(source, written, caplog):
    ours = PackedSource(written)
    caplog.set_level("WARNING", logger="absl")

    def plan(short_side, long_side):
        sides = {"short_side": short_side, "long_side": long_side, "resize": "bilinear"}
        return EvalPlan(ours.sizes, batch_size=3, buckets=((192, 320), (320, 192)), **sides)

    load(ours, plan(96, 160))
    load(ours, plan(64, 160))
    assert not caplog.records
    loaded = load(ours, plan(192, 320))
    assert sum(int(batch.weights.sum()) for batch in loaded) == 9
    (record,) = caplog.records
    assert str(written) in record.getMessage()
    assert "pack them with larger sides" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_pictures_that_lost_nothing_are_enlarged_without_a_word(folder, tmp_path, caplog):
    folder.add_image(60, 70)
    ours = pack(folder.load(), tmp_path / "packed")
    assert ours.image(0).shape == (96, 112, 3)
    caplog.set_level("WARNING", logger="absl")
    sides = {"short_side": 192, "long_side": 320, "resize": "bilinear"}
    plan = EvalPlan(ours.sizes, batch_size=1, buckets=((192, 320),), **sides)
    load(ours, plan)
    assert not caplog.records


def test_the_split_and_subsets_are_those_of_the_source(source, written):
    for one, other in zip(
        split_by_hash(PackedSource(written), 0.4), split_by_hash(source, 0.4), strict=True
    ):
        assert one.image_ids == other.image_ids
        assert one.ground_truth() == other.ground_truth()
    held = subset(PackedSource(written), [4])
    np.testing.assert_array_equal(held.image(0), PackedSource(written).image(4))


def test_progress_counts_every_picture(source, tmp_path):
    done = []
    pack(source, tmp_path / "packed", num_threads=3, progress=done.append)
    assert done == list(range(1, 10))


def test_what_is_written_is_reused_and_nothing_else_is_touched(folder, source, written):
    before = {one.name: one.stat().st_mtime_ns for one in written.iterdir()}
    assert len(pack(source, written)) == 9
    assert {one.name: one.stat().st_mtime_ns for one in written.iterdir()} == before

    with pytest.raises(ValueError, match=r"short_side=96.*not.*short_side=64.*remove it") as other:
        pack(source, written, short_side=64)
    folder.add_box(1, [0, 0, 9, 9])
    with pytest.raises(ValueError, match="with the present annotations"):
        pack(folder.load(), written)
    assert "\n" not in str(other.value)
    with pytest.raises(ValueError, match="holds no packed pictures"):
        pack(source, folder.images)
    assert {one.name: one.stat().st_mtime_ns for one in written.iterdir()} == before

    empty = written.parent / "empty"
    empty.mkdir()
    assert len(pack(source, empty)) == 9


def test_a_bad_picture_leaves_nothing(folder, source, tmp_path):
    (folder.images / "8.img").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"8\.img: the picture is corrupt"):
        pack(source, tmp_path / "deep" / "packed")
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_space_is_looked_at_first(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"packed: the pictures take 0\.00 GB and 0\.00 GB are free"):
        pack(source, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def cut(path, name, count):
    file = path / name
    file.write_bytes(file.read_bytes()[:-count])


DAMAGES = {
    "pixels cut": (lambda path: cut(path, packed.PIXELS, 1), r"pictures\.bin has \d+ bytes, not"),
    "pixels gone": (lambda path: (path / packed.PIXELS).unlink(), r"damaged .*pictures\.bin"),
    "objects cut": (lambda path: cut(path, packed.OBJECTS, 9), r"objects\.npz has"),
    "header cut": (lambda path: cut(path, packed.HEADER, 9), r"packed\.json: .*pack it anew"),
    "header gone": (lambda path: (path / packed.HEADER).unlink(), r"packed\.json is missing"),
    "foreign": (lambda path: (path / packed.HEADER).write_text("{}"), "not of packed pictures"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_clear_error(source, written, damage):
    harm, message = DAMAGES[damage]
    harm(written)
    for use in (PackedSource, lambda path: pack(source, path)):
        with pytest.raises(ValueError, match=message) as caught:
            use(written)
        assert str(written) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_flipped_bits_among_the_objects_are_found(written):
    data = bytearray((written / packed.OBJECTS).read_bytes())
    data[len(data) // 2] ^= 255
    (written / packed.OBJECTS).write_bytes(data)
    with pytest.raises(ValueError, match="incomplete or damaged"):
        PackedSource(written)


def test_another_layout_and_a_missing_folder_are_told(written, tmp_path):
    header = json.loads((written / packed.HEADER).read_text())
    (written / packed.HEADER).write_text(json.dumps(header | {"version": 99}))
    with pytest.raises(ValueError, match=r"packed in layout 99, and this program reads 1"):
        PackedSource(written)
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such folder"):
        PackedSource(tmp_path / "nowhere")


def test_writing_and_reading_need_no_tensorflow(written, tmp_path):
    code = f"""
import sys
sys.modules.update(tensorflow=None, tensorflow_datasets=None)
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan
from retinanet_jax.data.sources.packed import PackedSource, write_packed
sides = {{"short_side": 64, "long_side": 160, "resize": "bilinear"}}
written = PackedSource({str(written)!r})
source = write_packed(written, {str(tmp_path / "again")!r}, progress=print, **sides)
plan = EvalPlan(source.sizes, batch_size=4, buckets=((160, 160),), **sides)
for batch in batches(
    source, plan, start_step=0, num_steps=None, prefetch=2, loader="numpy", min_visible=0.0
):
    print(batch.images.shape, batch.weights.sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "(4, 160, 160, 3) 1.0", done.stderr


def test_real_photographs(test_data, tmp_path):
    source = subset(CocoSource(test_data / "cards/test.json", test_data / "cards/test"), range(12))
    sides = {"short_side": 128, "long_side": 213, "resize": "bilinear"}
    ours = pack(source, tmp_path / "cards", **sides)
    recipe = {"batch_size": 4, "buckets": ((128, 224), (224, 128)), **sides}
    plan = EvalPlan(source.sizes, **recipe)
    assert_same(load(ours, plan), load(source, plan))
