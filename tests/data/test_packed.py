"""Packed data has the same batches as the image files, and other folders are refused."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from seeded_images import smooth

from retinanet_jax.data.augmentation import Augmentation
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan, TrainPlan
from retinanet_jax.data.sources import packed
from retinanet_jax.data.sources.base import subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.packed import PackedSource, write_packed
from retinanet_jax.data.sources.split import split_by_hash

SIDES = {"short_side": 96, "long_side": 160, "resize": "bilinear"}


def pack(source, path, **changes) -> PackedSource:
    return write_packed(source, path, **SIDES | {"progress": lambda count: None} | changes)


def load_batches(source, plan, num_steps=None, loader="numpy"):
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
    for batch, expected_batch in zip(loaded, expected, strict=True):
        for field, expected_field in zip(batch, expected_batch, strict=True):
            np.testing.assert_array_equal(field, expected_field)


@pytest.fixture
def source(folder, encode):
    """Return smooth images of many sizes in two formats, some with boxes or crowd regions."""
    rng = np.random.default_rng(0)
    for image_id in range(1, 10):
        height, width = rng.integers(50, 260, 2).tolist()
        file_format = ("JPEG", "PNG")[image_id % 2]
        folder.add_image(height, width, encode(smooth(height, width, image_id), file_format))
        for k in range(image_id % 4):
            box = [5 + k, 4, 20.5, 30.25]
            folder.add_box(image_id, box, category_id=(3, 7)[k % 2], iscrowd=int(k == 2))
    return folder.load()


@pytest.fixture
def written(source, tmp_path):
    path = tmp_path / "packed"
    pack(source, path)
    return path


def test_a_packed_dataset_differs_from_the_source_only_in_its_pixels(source, written):
    packed_source = PackedSource(written)
    assert len(packed_source) == 9
    assert packed_source.categories == source.categories
    assert packed_source.image_ids == source.image_ids
    assert {type(image_id) for image_id in packed_source.image_ids} == {int}
    assert packed_source.ground_truth() == source.ground_truth()
    np.testing.assert_array_equal(packed_source.sizes, source.sizes)
    for index in range(9):
        assert packed_source.file_name(index) == source.file_name(index)
        assert packed_source.read(index) is None
        for field, expected in zip(
            packed_source.annotations(index), source.annotations(index), strict=True
        ):
            assert field.dtype == expected.dtype
            np.testing.assert_array_equal(field, expected)
    assert (packed_source.short_side, packed_source.long_side) == (96, 160)


def as_version_1(folder, source) -> None:
    """Rewrite a packed folder in version 1 of the format, as retinanet_jax 0.1 to 0.3 wrote it."""
    header = json.loads((folder / packed.HEADER).read_text()) | {"version": 1}
    del header["image_ids"]
    arrays = dict(np.load(folder / packed.OBJECTS))
    old = {"image_ids": np.array(source.image_ids), "sizes": arrays["sizes"]}
    old["held"] = arrays["packed_sizes"]
    np.savez(folder / packed.OBJECTS, **old)
    (folder / packed.GROUND_TRUTH).write_text(json.dumps(source.ground_truth()))
    for name in (packed.OBJECTS, packed.GROUND_TRUTH):
        header["bytes"][name] = (folder / name).stat().st_size
    (folder / packed.HEADER).write_text(json.dumps(header))


def test_folders_of_version_1_are_read_but_not_written_again(source, written):
    expected = PackedSource(written)
    as_version_1(written, source)
    old = PackedSource(written)
    assert old.ground_truth() == expected.ground_truth()
    assert old.image_ids == expected.image_ids
    for index in range(9):
        np.testing.assert_array_equal(old.image(index), expected.image(index))
    with pytest.raises(ValueError, match="packed in format version 1, which is still read"):
        pack(source, written)


def test_ids_may_have_any_size(folder, tmp_path):
    folder.add_image(60, 70)
    folder.add_box(1, [1, 2, 3, 4])
    folder.content["annotations"][0] |= {"id": 2**70, "image_id": 2**64}
    folder.content["images"][0]["id"] = 2**64
    packed_source = pack(folder.load(), tmp_path / "packed")
    assert packed_source.image_ids == [2**64]
    assert packed_source.annotations(0).boxes.tolist() == [[2, 1, 6, 4]]


def test_the_pixels_of_a_small_image(folder, encode, tmp_path):
    """From 2 x 4 to 1 x 2, a pixel is the mean of four; in 4 x 8, the corners are unchanged."""
    values = np.array([[0, 20, 100, 120], [40, 60, 200, 220]], np.uint8)
    folder.add_image(2, 4, encode(np.repeat(values[..., None], 3, axis=2)))
    source = folder.load()
    smaller = pack(source, tmp_path / "smaller", short_side=1, long_side=9)
    assert smaller.image(0)[..., 0].tolist() == [[30, 160]]
    larger = pack(source, tmp_path / "larger", short_side=4, long_side=9)
    assert larger.image(0).shape == (4, 8, 3)
    assert larger.image(0)[[0, 0, 3, 3], [0, 7, 0, 7], 1].tolist() == [0, 120, 40, 220]
    assert larger.sizes.tolist() == [[2, 4]]


def test_images_are_views_of_the_mapped_file(written):
    source = PackedSource(written)
    whole = source.image(0).base
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    assert isinstance(whole, np.memmap)
    assert np.shares_memory(source.image(3), whole)
    with pytest.raises(ValueError, match="read-only"):
        source.image(0)[0] = 0


@pytest.mark.parametrize("resize", ["bilinear", "pillow"])
def test_evaluation_batches_are_equal_bit_for_bit(source, tmp_path, resize):
    packed_source = pack(source, tmp_path / "packed", resize=resize)
    assert packed_source.resize == PackedSource(tmp_path / "packed").resize == resize
    settings = {"batch_size": 4, "buckets": ((96, 160), (160, 96)), **SIDES, "resize": resize}
    expected = load_batches(source, EvalPlan(source.sizes, **settings))
    assert len(expected) > 1
    for loader in ("numpy", "tf"):
        assert_same(
            load_batches(packed_source, EvalPlan(packed_source.sizes, **settings), loader=loader),
            expected,
        )


def test_training_batches_are_equal_bit_for_bit(source, written):
    """All augmentations are on, except those that change the short side."""
    packed_source = PackedSource(written)
    augmentation = Augmentation(
        short_sides=(96,),
        short_side_sampling="choice",
        long_side=160,
        flip=True,
        scale_jitter=None,
        crop_size=(90, 120),
        rot90=True,
        color_jitter={"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.1},
    )
    settings = {
        "augmentation": augmentation,
        "seed": 3,
        "batch_size": 4,
        "buckets": ((96, 96), (160, 160)),
        "resize": "bilinear",
    }
    expected = load_batches(source, TrainPlan(source.sizes, **settings), num_steps=9)
    assert_same(
        load_batches(packed_source, TrainPlan(packed_source.sizes, **settings), num_steps=9),
        expected,
    )


def test_packed_images_are_enlarged_with_one_warning(source, written, caplog):
    packed_source = PackedSource(written)
    caplog.set_level("WARNING", logger="absl")

    def plan(short_side, long_side):
        sides = {"short_side": short_side, "long_side": long_side, "resize": "bilinear"}
        return EvalPlan(
            packed_source.sizes, batch_size=3, buckets=((192, 320), (320, 192)), **sides
        )

    load_batches(packed_source, plan(96, 160))
    load_batches(packed_source, plan(64, 160))
    assert not caplog.records
    loaded = load_batches(packed_source, plan(192, 320))
    assert sum(int(batch.weights.sum()) for batch in loaded) == 9
    (record,) = caplog.records
    assert str(written) in record.getMessage()
    assert "pack them with larger sides" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_images_that_packing_did_not_reduce_are_enlarged_without_a_warning(
    folder, tmp_path, caplog
):
    folder.add_image(60, 70)
    packed_source = pack(folder.load(), tmp_path / "packed")
    assert packed_source.image(0).shape == (96, 112, 3)
    caplog.set_level("WARNING", logger="absl")
    sides = {"short_side": 192, "long_side": 320, "resize": "bilinear"}
    plan = EvalPlan(packed_source.sizes, batch_size=1, buckets=((192, 320),), **sides)
    load_batches(packed_source, plan)
    assert not caplog.records


def test_splits_and_subsets_equal_those_of_the_source(source, written):
    for part, expected in zip(
        split_by_hash(PackedSource(written), 0.4), split_by_hash(source, 0.4), strict=True
    ):
        assert part.image_ids == expected.image_ids
        assert part.ground_truth() == expected.ground_truth()
    part = subset(PackedSource(written), [4])
    np.testing.assert_array_equal(part.image(0), PackedSource(written).image(4))


def test_progress_counts_every_image(source, tmp_path):
    counts = []
    pack(source, tmp_path / "packed", num_threads=3, progress=counts.append)
    assert counts == list(range(1, 10))


def test_a_packed_folder_is_reused_and_other_folders_are_not_changed(folder, source, written):
    before = {path.name: path.stat().st_mtime_ns for path in written.iterdir()}
    assert len(pack(source, written)) == 9
    assert {path.name: path.stat().st_mtime_ns for path in written.iterdir()} == before

    with pytest.raises(ValueError, match=r"short_side=96.*not.*short_side=64.*remove it") as caught:
        pack(source, written, short_side=64)
    folder.add_box(1, [0, 0, 9, 9])
    with pytest.raises(ValueError, match="with the present annotations"):
        pack(folder.load(), written)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="contains no packed images"):
        pack(source, folder.images)
    assert {path.name: path.stat().st_mtime_ns for path in written.iterdir()} == before

    empty = written.parent / "empty"
    empty.mkdir()
    assert len(pack(source, empty)) == 9


def test_an_invalid_image_leaves_no_files(folder, source, tmp_path):
    (folder.images / "8.img").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"8\.img: the image is corrupt"):
        pack(source, tmp_path / "deep" / "packed")
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_free_space_is_checked_first(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match=r"packed: the images require 0\.00 GB, but only 0\.00 GB are free"
    ):
        pack(source, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def cut(path, name, count):
    file = path / name
    file.write_bytes(file.read_bytes()[:-count])


PIXELS = re.escape(packed.PIXELS)
DAMAGES = {
    "pixels cut": (lambda path: cut(path, packed.PIXELS, 1), rf"{PIXELS} has \d+ bytes, not"),
    "pixels missing": (lambda path: (path / packed.PIXELS).unlink(), rf"damaged .*{PIXELS}"),
    "objects cut": (lambda path: cut(path, packed.OBJECTS, 9), r"objects\.npz has"),
    "header cut": (lambda path: cut(path, packed.HEADER, 9), r"packed\.json: .*pack it again"),
    "header missing": (lambda path: (path / packed.HEADER).unlink(), r"packed\.json is missing"),
    "another header": (
        lambda path: (path / packed.HEADER).write_text("{}"),
        "not of packed images",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(source, written, damage):
    damage_folder, message = DAMAGES[damage]
    damage_folder(written)
    for open_folder in (PackedSource, lambda path: pack(source, path)):
        with pytest.raises(ValueError, match=message) as caught:
            open_folder(written)
        assert str(written) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_flipped_bits_in_the_objects_are_detected(written):
    data = bytearray((written / packed.OBJECTS).read_bytes())
    data[len(data) // 2] ^= 255
    (written / packed.OBJECTS).write_bytes(data)
    with pytest.raises(ValueError, match="incomplete or damaged"):
        PackedSource(written)


def test_another_version_and_a_missing_folder_are_refused(written, tmp_path):
    header = json.loads((written / packed.HEADER).read_text())
    (written / packed.HEADER).write_text(json.dumps(header | {"version": 99}))
    with pytest.raises(
        ValueError, match=r"packed in format version 99, but this program reads versions 1 to 2"
    ):
        PackedSource(written)
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such folder"):
        PackedSource(tmp_path / "nowhere")


def test_writing_and_reading_do_not_need_tensorflow(written, tmp_path):
    code = f"""
import sys
sys.modules.update(tensorflow=None, tensorflow_datasets=None)
from retinanet_jax.data.augmentation import Augmentation
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
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "(4, 160, 160, 3) 1.0", process.stderr


def test_photographs(test_data, tmp_path):
    source = subset(CocoSource(test_data / "cards/test.json", test_data / "cards/test"), range(12))
    sides = {"short_side": 128, "long_side": 213, "resize": "bilinear"}
    packed_source = pack(source, tmp_path / "cards", **sides)
    settings = {"batch_size": 4, "buckets": ((128, 224), (224, 128)), **sides}
    plan = EvalPlan(source.sizes, **settings)
    assert_same(load_batches(packed_source, plan), load_batches(source, plan))
