"""TFDS: its own builders run over small archives, compared with the COCO JSON in them."""

import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seeded_images import encode_image, noise
from tfds_archives import CATEGORIES, Archives, prepare, prepare_own

from retinanet_jax.data.augmentation import COLORS, Augmentation
from retinanet_jax.data.pipeline import batches
from retinanet_jax.data.plan import EvalPlan, TrainPlan
from retinanet_jax.data.sources import tfds_index
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.tfds import TfdsSource
from retinanet_jax.data.sources.tfds_index import to_pixels
from retinanet_jax.utils import progress

YEARS, FORMATS = (2014, 2017), ("tfrecord", "array_record")
ALL_PREPARED = list(itertools.product(YEARS, FORMATS))


def jpeg(height, width, seed, *, mode="RGB", orientation=1) -> bytes:
    """Return an image of noise, which differs for every seed."""
    return encode_image(noise(height, width, seed), "JPEG", mode=mode, orientation=orientation)


def write_dataset(folder: pathlib.Path, ids, first_annotation: int):
    """Write a folder of images; return its COCO JSON, sorted by id, and the folder."""
    folder.mkdir()
    rng = np.random.default_rng(ids)
    images, annotations = [], []
    for index, image_id in enumerate(ids):
        height, width = rng.integers(30, 100, 2).tolist()
        # Every fourth image is gray, and the third has an EXIF orientation that swaps its sides.
        data = jpeg(height, width, image_id, mode="L" if index % 4 == 1 else "RGB")
        if index == 2:
            data = jpeg(width, height, image_id, orientation=6)
        name = f"{image_id:012d}.jpg"
        (folder / name).write_bytes(data)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for _ in range(0 if index == 1 else 5):  # the second has no objects
            x, y = rng.integers(0, 100 * width - 500), rng.integers(0, 100 * height - 500)
            right, bottom = rng.integers(x + 99, 100 * width), rng.integers(y + 99, 100 * height)
            box = [x / 100, y / 100, (right - x) / 100, (bottom - y) / 100]
            annotations.append(
                {
                    "id": first_annotation + len(annotations),
                    "image_id": image_id,
                    "category_id": CATEGORIES[rng.integers(80)]["id"],
                    "bbox": [float(coordinate) for coordinate in box],
                    "area": round(float(rng.uniform(1, 2000)), 4),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, folder


@pytest.fixture(scope="session")
def contents(tmp_path_factory):
    path = tmp_path_factory.mktemp("coco")
    return {
        "train": write_dataset(path / "train", (4, 9, 25, 26, 300, 301, 7000), 50),
        "validation": write_dataset(path / "validation", (1, 10, 24, 299), 900),
    }


@pytest.fixture(scope="session")
def prepared(contents, tmp_path_factory):
    """Return `prepared(year, format, shards=1)`, which returns (data_dir, archives)."""
    cache = {}

    def prepared(year, file_format, shards=1):
        key = year, file_format, shards
        if key not in cache:
            path = tmp_path_factory.mktemp("prepared")
            archives = Archives(path / "archives", year, contents)
            archives.prepare(path / "data", file_format, shards=shards)
            cache[key] = path / "data", archives
        return cache[key]

    return prepared


@pytest.fixture
def copy(prepared, tmp_path, monkeypatch):
    """Return a copy of the dataset of 2017 that is not indexed yet; the user's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(prepared(2017, "tfrecord")[0], tmp_path / "copy")
    for path in (tmp_path / "copy").rglob(".retinanet_jax*"):
        path.unlink()
    return tmp_path / "copy"


def shard_paths(data_dir, split="train"):
    return sorted(data_dir.rglob(f"coco-{split}.*"))


def open_coco(contents, split):
    content, folder = contents[split]
    path = folder.parent / f"{split}.json"
    path.write_text(json.dumps(content))
    return CocoSource(path, folder)


def assert_same(source, expected):
    assert source.categories == expected.categories
    assert list(source.image_ids) == list(expected.image_ids)
    np.testing.assert_array_equal(source.sizes, expected.sizes)
    assert source.sizes.dtype == expected.sizes.dtype
    for index in range(len(expected)):
        assert source.file_name(index) == expected.file_name(index)
        assert source.read(index) == expected.read(index)
        np.testing.assert_array_equal(source.image(index), expected.image(index))
        for field, expected_field in zip(
            source.annotations(index), expected.annotations(index), strict=True
        ):
            np.testing.assert_array_equal(field, expected_field, strict=True)


@pytest.mark.parametrize(("year", "file_format"), ALL_PREPARED)
def test_a_prepared_dataset_equals_its_json(prepared, contents, year, file_format, caplog):
    data_dir, archives = prepared(year, file_format)
    for split in ("train", "validation"):
        expected = open_coco(contents, split)
        source = TfdsSource(f"coco/{year}", data_dir=data_dir, split=split)
        assert_same(source, expected)
        assert not caplog.messages
        truth = expected.ground_truth()
        for annotation in truth["annotations"]:
            annotation["area"] = int(annotation["area"])
        assert source.ground_truth() == truth
        assert "truncates areas to integers; to publish AP" in caplog.text
        caplog.clear()
        official = archives.official(split)
        source = TfdsSource(f"coco/{year}", data_dir=data_dir, split=split, official=official)
        assert_same(source, expected)
        assert source.ground_truth() == json.loads(official.read_text())
        assert not caplog.messages


def load_batches(source):
    """Return training batches of more than an epoch, and all evaluation batches."""
    buckets = ((96, 160), (160, 96))
    augmentation = Augmentation(
        short_sides=(64, 96),
        short_side_sampling="choice",
        long_side=160,
        scale_jitter=(0.7, 1.3),
        crop_size=None,
        flip=True,
        rot90=False,
        color_jitter=dict.fromkeys(COLORS, 0.0),
    )
    training = TrainPlan(
        source.sizes, augmentation, seed=3, batch_size=3, buckets=buckets, resize="bilinear"
    )
    sides = {"short_side": 96, "long_side": 160, "resize": "bilinear"}
    evaluation = EvalPlan(source.sizes, batch_size=2, buckets=buckets, **sides)
    options = {"start_step": 0, "prefetch": 1, "min_visible": 0.0}
    return [
        *batches(source, training, num_steps=5, loader="tf", **options),
        *batches(source, evaluation, num_steps=None, loader="numpy", **options),
    ]


@pytest.fixture(scope="session")
def batches_of_json(contents):
    return load_batches(open_coco(contents, "train"))


@pytest.mark.parametrize(("year", "file_format"), ALL_PREPARED)
def test_a_prepared_dataset_gives_the_batches_of_its_json(
    prepared, batches_of_json, year, file_format
):
    source = TfdsSource(f"coco/{year}", data_dir=prepared(year, file_format)[0], split="train")
    loaded = load_batches(source)
    assert len(loaded) == len(batches_of_json) >= 9
    assert {int(index) for batch in loaded[:5] for index in batch.index} == set(range(7))
    assert any(batch.crowd_mask.any() for batch in loaded)
    for batch, expected in zip(loaded, batches_of_json, strict=True):
        for field, expected_field in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(field, expected_field)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_number_of_shards_does_not_change_a_dataset(prepared, contents, file_format):
    data_dir, _ = prepared(2017, file_format, 3)
    assert len(shard_paths(data_dir)) == 3
    source = TfdsSource("coco/2017", data_dir=data_dir, split="train")
    assert_same(source, open_coco(contents, "train"))


@pytest.mark.parametrize("file_format", FORMATS)
def test_splits_are_joined_by_image_id(prepared, contents, file_format, tmp_path):
    both = {
        section: contents["train"][0][section] + contents["validation"][0][section]
        for section in ("images", "annotations")
    }
    both["images"].sort(key=lambda image: image["id"])
    for split in ("train", "validation"):
        shutil.copytree(contents[split][1], tmp_path / "all", dirs_exist_ok=True)
    (tmp_path / "all.json").write_text(json.dumps(both | {"categories": CATEGORIES}))
    source = TfdsSource(
        "coco/2014:1.1.0", data_dir=prepared(2014, file_format)[0], split="train+validation"
    )
    assert_same(source, CocoSource(tmp_path / "all.json", tmp_path / "all"))


def test_category_ids_of_coco(prepared):
    source = TfdsSource("coco/2017", data_dir=prepared(2017, "tfrecord")[0], split="train")
    ids = {category.name: category.id for category in source.categories}
    after_gaps = {"stop sign": 13, "backpack": 27, "handbag": 31, "wine glass": 46}
    after_gaps |= {"dining table": 67, "toilet": 70, "tv": 72, "book": 84}
    assert len(ids) == 80
    assert ids | after_gaps | {"person": 1, "toothbrush": 90} == ids


def test_images_of_coco(test_data, tmp_path, caplog):
    content = json.loads((test_data / "coco21/instances.json").read_text())
    content["images"].sort(key=lambda image: image["id"])
    content["annotations"].sort(key=lambda annotation: (annotation["image_id"], annotation["id"]))
    (tmp_path / "sorted.json").write_text(json.dumps(content))
    assert [(category["id"], category["name"]) for category in content["categories"]] == [
        (category["id"], category["name"]) for category in CATEGORIES
    ]
    both = content, test_data / "coco21/images"
    archives = Archives(tmp_path / "archives", 2017, {"train": both, "validation": both})
    archives.prepare(tmp_path / "data", "tfrecord")
    source = TfdsSource("coco/2017", data_dir=tmp_path / "data", split="validation")
    expected = CocoSource(tmp_path / "sorted.json", test_data / "coco21/images")
    assert_same(source, expected)
    truth = expected.ground_truth()
    annotations = source.ground_truth()["annotations"]
    for annotation, official in zip(annotations, truth["annotations"], strict=True):
        assert annotation["bbox"] == official["bbox"]
        assert annotation["area"] == int(official["area"])
        assert annotation["iscrowd"] == official["iscrowd"]


@given(
    st.integers(1, 20_000),
    st.integers(1, 20_000),
    st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), max_size=5),
)
def test_hundredths_of_a_pixel_are_recovered_exactly(height, width, fractions):
    limits = np.array([height, width, height, width])
    hundredths = np.rint(np.reshape(fractions, (-1, 4)) * limits * 100) / 100
    stored = (hundredths / limits).astype(np.float32)
    pixels, exact = to_pixels(stored, np.tile([height, width], (len(stored), 1)))
    assert exact.all()
    np.testing.assert_array_equal(pixels, hundredths)


def test_other_fractions_of_a_pixel_are_recovered_to_float32():
    boxes = np.array([[10 / 3, 20 / 3, 100 / 7, 639.99 - 1 / 3]])
    stored = (boxes / 640).astype(np.float32)
    pixels, exact = to_pixels(stored, np.array([[640, 640]]))
    assert not exact.any()
    np.testing.assert_allclose(pixels, boxes, rtol=0, atol=640 * 2.0**-25)
    assert np.abs(pixels - boxes).max() > 0


def prepare_image(tmp_path, data, height, width, boxes):
    """Return `coco/2017` with only this image, and its `CocoSource`."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(data)
    image = {"id": 1, "file_name": "1.jpg", "height": height, "width": width}
    annotations = [
        {"id": box_id, "image_id": 1, "category_id": 3, "bbox": box, "area": 1.0, "iscrowd": 0}
        for box_id, box in enumerate(boxes, start=1)
    ]
    content = {"images": [image], "annotations": annotations, "categories": CATEGORIES}
    both = content, folder
    archives = Archives(tmp_path / "archives", 2017, {"train": both, "validation": both})
    archives.prepare(tmp_path / "data", "tfrecord")
    (tmp_path / "single.json").write_text(json.dumps(content))
    source = TfdsSource("coco/2017", data_dir=tmp_path / "data", split="train")
    return source, CocoSource(tmp_path / "single.json", folder)


def test_an_image_that_was_annotated_unrotated_stays_unrotated(tmp_path):
    data = jpeg(40, 70, 1, orientation=6)
    source, expected = prepare_image(tmp_path, data, 40, 70, [[3.25, 4.07, 50.5, 30.61]])
    assert source.sizes.tolist() == [[40, 70]]
    assert_same(source, expected)


def test_boxes_without_area_are_left_out_and_counted(tmp_path, caplog):
    boxes = [[1, 2, 3, 4], [5, 5, 0, 9], [5, 5, 9, 0]]
    source, expected = prepare_image(tmp_path, jpeg(40, 70, 1), 40, 70, [*boxes[1:], boxes[0]])
    warning, expected_warning = [message.split(": ", 1)[1] for message in caplog.messages]
    assert warning == expected_warning
    assert warning.startswith("2 boxes have no area inside their image")
    assert "annotation id 1 (1.jpg)" in warning
    assert_same(source, expected)
    assert source.annotations(0).boxes.tolist() == [[2, 1, 6, 4]]
    assert len(source.ground_truth()["annotations"]) == 3


def forbid_indexing(monkeypatch):
    def build_index(name, *_):
        raise AssertionError(f"{name} was indexed again")

    monkeypatch.setattr(tfds_index, "build_index", build_index)


def open_train(data_dir):
    return TfdsSource("coco/2017", data_dir=data_dir, split="train")


def test_the_index_is_built_once_and_stored_next_to_the_shards(copy, contents, monkeypatch, capsys):
    open_train(copy)
    (path,) = copy.rglob(".retinanet_jax-train.npz*")
    assert path.parent == shard_paths(copy)[0].parent
    output = capsys.readouterr().out
    line = rf"coco/2017 train: indexed 7 images in \d\.\d s, stored in {path}\n"
    assert re.search(line, output)
    assert path.stat().st_mode & 0o444 == 0o444
    forbid_indexing(monkeypatch)
    assert_same(open_train(copy), open_coco(contents, "train"))
    assert capsys.readouterr().out == ""
    assert not (copy.parent / "cache" / "retinanet_jax").exists()


def test_progress_is_printed(copy, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PROGRESS_INTERVAL", 0.0)
    monkeypatch.setattr(progress, "MIN_MEASURED", 0.0)
    open_train(copy)
    line = capsys.readouterr().out.splitlines()[2]
    assert re.fullmatch(
        r"indexing coco/2017 train: 3/7 images  \d+\.\d images/s  0 min 00 s left", line
    )


@pytest.mark.parametrize("change", ["time", "size"])
def test_changed_shards_are_indexed_again(copy, monkeypatch, change):
    open_train(copy)
    (shard,) = shard_paths(copy)
    if change == "time":
        os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    else:
        stat = shard.stat()
        shard.write_bytes(shard.read_bytes() + bytes(16))
        os.utime(shard, ns=(0, stat.st_mtime_ns))
    forbid_indexing(monkeypatch)
    with pytest.raises(AssertionError, match="was indexed again"):
        open_train(copy)


def test_a_dataset_that_was_prepared_again_is_read_again(copy, contents, tmp_path):
    open_train(copy)
    others = {"train": contents["validation"], "validation": contents["train"]}
    shutil.rmtree(copy / "coco" / "2017" / "1.1.0", ignore_errors=True)
    Archives(tmp_path / "others", 2017, others).prepare(copy, "tfrecord")
    assert_same(open_train(copy), open_coco(contents, "validation"))


def flip_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


BROKEN = {
    "empty": lambda data: b"",
    "text": lambda data: b"not an index",
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": flip_byte,
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_index_is_built_again(copy, contents, caplog, damage):
    open_train(copy)
    (path,) = copy.rglob(".retinanet_jax*")
    content = path.read_bytes()
    path.write_bytes(BROKEN[damage](content))
    assert_same(open_train(copy), open_coco(contents, "train"))
    assert len(caplog.messages) == 1
    assert re.search(r"retinanet_jax-train.npz: is broken .* will be built again", caplog.text)
    assert len(path.read_bytes()) == len(content)


def deny_writing_in(monkeypatch, *folders):
    """Fail as a read-only disk does; a folder without permissions would not stop root."""
    make_folder = tfds_index.tempfile.TemporaryDirectory

    def denied(*args, **options):
        if any(options["dir"].is_relative_to(folder) for folder in folders):
            raise OSError(30, "Read-only file system")
        return make_folder(*args, **options)

    monkeypatch.setattr(tfds_index.tempfile, "TemporaryDirectory", denied)


def test_the_users_cache_is_used_if_the_shards_are_read_only(copy, contents, monkeypatch, caplog):
    deny_writing_in(monkeypatch, copy)
    open_train(copy)
    (path,) = (copy.parent / "cache" / "retinanet_jax").iterdir()
    assert path.name.startswith("tfds-")
    forbid_indexing(monkeypatch)
    assert_same(open_train(copy), open_coco(contents, "train"))
    assert not list(copy.rglob(".retinanet_jax*"))
    assert not caplog.messages


def test_a_dataset_is_read_even_if_its_index_cannot_be_stored(copy, contents, monkeypatch, caplog):
    deny_writing_in(monkeypatch, copy, copy.parent / "cache")
    assert_same(open_train(copy), open_coco(contents, "train"))
    assert len(caplog.messages) == 1
    assert "cannot be stored in" in caplog.text


def test_an_index_that_was_not_written_completely_is_removed(copy, contents, monkeypatch):
    def savez_on_a_full_disk(file, **fields):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(np, "savez", savez_on_a_full_disk)
        open_train(copy)
    assert not list(copy.parent.rglob("*.npz*"))
    assert_same(open_train(copy), open_coco(contents, "train"))


def test_several_threads_may_read_a_source(prepared, contents):
    expected = open_coco(contents, "train")
    for file_format in FORMATS:
        source = TfdsSource("coco/2017", data_dir=prepared(2017, file_format)[0], split="train")
        order = np.random.default_rng(0).integers(0, len(source), 300).tolist()
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(source.read, order))
        assert images == [expected.read(index) for index in order]


@pytest.mark.parametrize("builder", ["coco/2014", "coco/2017:9.9.9", "coco/1999", "voc"])
def test_a_dataset_that_is_not_prepared_is_refused_with_the_command(copy, builder):
    with pytest.raises(FileNotFoundError) as caught:
        TfdsSource(builder, data_dir=copy, split="train")
    message = str(caught.value)
    assert message.startswith(f"{builder}: is not prepared in {copy}; run python -c ")
    assert f"tfds.builder('{builder}', data_dir='{copy}').download_and_prepare()" in message
    assert "\n" not in message


def test_the_default_folder_is_that_of_tfds(copy, contents, monkeypatch):
    from tensorflow_datasets.core import constants
    from tensorflow_datasets.core.utils import file_utils

    monkeypatch.setattr(constants, "DATA_DIR", str(copy))
    file_utils.clear_registered_data_dirs()
    assert_same(open_train(None), open_coco(contents, "train"))
    monkeypatch.setenv("HOME", str(copy.parent))
    assert len(open_train("~/copy")) == 7
    with pytest.raises(FileNotFoundError, match=r"builder\('coco/2014'\)\.download_and_prepare"):
        TfdsSource("coco/2014", data_dir=None, split="train")


INVALID = {
    "builder": ({"builder": "a b"}, "'a b': is not a dataset of TFDS .Parsing.* write it as name/"),
    "remote": ({"data_dir": "gs://bucket/data"}, "data_dir=gs://bucket/data: shards are read from"),
    "split": ({"split": "val"}, "no split 'val'; give one of test, train, validation"),
    "slice": ({"split": "train[:10%]"}, r"no split 'train\[:10%\]'"),
    "twice": ({"split": "train+train"}, "contains 7 images twice, first 4; give splits"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_arguments_are_refused_in_one_line(copy, case):
    change, message = INVALID[case]
    arguments = {"builder": "coco/2017", "data_dir": copy, "split": "train"}
    with pytest.raises(ValueError, match=message) as caught:
        TfdsSource(**arguments | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"tfrecord-00000-of-00001: is truncated or corrupt after \d+"),
        (lambda data: data[:-9] + data[:4], "is truncated or corrupt"),
        (lambda data: data + data, "contain 14 images, but dataset_info.json declares 7"),
        (lambda data: b"", "contain 0 images, but dataset_info.json declares 7"),
        (lambda data: data.replace(b"\xff\xd8\xff", b"\xff\xd7\xff", 1), r"\d+\.jpg: the image"),
    ],
)
def test_broken_shards_are_refused(copy, change, message):
    (shard,) = shard_paths(copy)
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(ValueError, match=message):
        open_train(copy)


def test_missing_shards_are_named(copy):
    source = open_train(copy)
    (shard,) = shard_paths(copy)
    shard.rename(f"{shard}-away")
    with pytest.raises(FileNotFoundError, match=f"{shard}: .*image of id 9 is missing"):
        source.read(1)
    with pytest.raises(FileNotFoundError, match=f"1 of 1 shards are missing, first {shard}"):
        open_train(copy)


def test_the_missing_package_array_record_is_named(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_data_source", None)
    with pytest.raises(ValueError, match=r"requires array_record, .*`pip install .array_record.`"):
        open_train(prepared(2017, "array_record")[0])


def test_the_missing_package_tensorflow_datasets_is_named(monkeypatch, copy):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.core", None)
    with pytest.raises(ValueError, match=r"`pip install .tensorflow-datasets.`"):
        open_train(copy)


def remove_an_image(content):
    removed = content["images"].pop(2)
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] != removed["id"]]


def resize_an_image(content):
    content["images"][1]["height"] += 1


def rename_a_category(content):
    content["categories"][3] = {"id": 4, "name": "moped"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_an_image, "lacks 1 of the 7 images of coco/2017 train, first image id 25"),
        (resize_an_image, r"declares image id 9 with height and width \(.*train has \("),
        (rename_a_category, "1 of its labels, first 'motorcycle', are not categories of"),
    ],
)
def test_an_official_json_of_other_images_is_refused(prepared, tmp_path, change, message):
    data_dir, archives = prepared(2017, "tfrecord")
    content = json.loads(archives.official("train").read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        TfdsSource("coco/2017", data_dir=data_dir, split="train", official=path)
    with pytest.raises(FileNotFoundError, match="there is no such annotation file"):
        TfdsSource("coco/2017", data_dir=data_dir, split="train", official=tmp_path / "no.json")


def test_an_official_json_may_have_more_images_and_sets_the_category_ids(
    prepared, contents, tmp_path
):
    data_dir, archives = prepared(2017, "tfrecord")
    content = json.loads(archives.official("train").read_text())
    for category in content["categories"]:
        category["id"] = 1000 - category["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = 1000 - annotation["category_id"]
    truth = json.loads(json.dumps(content))
    content["images"].insert(3, {"id": 77777, "file_name": "x.jpg", "height": 9, "width": 9})
    more = {"id": 5, "image_id": 77777, "category_id": 999, "bbox": [0, 0, 1, 1], "area": 1}
    content["annotations"].insert(3, more)
    (tmp_path / "more.json").write_text(json.dumps(content))
    (tmp_path / "train.json").write_text(json.dumps(truth))
    source = TfdsSource(
        "coco/2017", data_dir=data_dir, split="train", official=tmp_path / "more.json"
    )
    assert source.categories[0] == (910, "toothbrush")
    assert_same(source, CocoSource(tmp_path / "train.json", contents["train"][1]))
    truth["categories"].sort(key=lambda category: category["id"])
    assert source.ground_truth() == truth


VOC = """<annotation><size><width>50</width><height>40</height></size>{}</annotation>"""
VOC_OBJECT = """<object><name>{}</name><pose>Left</pose><truncated>0</truncated>
<difficult>{}</difficult><bndbox><xmin>3</xmin><ymin>7</ymin><xmax>23</xmax><ymax>31</ymax></bndbox>
</object>"""


def test_voc_2007(tmp_path, caplog):
    root = tmp_path / "unpacked" / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, objects in (("000012", [("dog", 0), ("cat", 1)]), ("000005", []), ("000020", [])):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg(40, 50, int(name)))
        listed = "".join(itertools.starmap(VOC_OBJECT.format, objects))
        (root / "Annotations" / f"{name}.xml").write_text(VOC.format(listed))
    for split, names in (("train", "000012\n000005\n"), ("val", "000020\n"), ("test", "000020\n")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    prepare("voc/2007", tmp_path / "unpacked", tmp_path / "data")
    source = TfdsSource("voc/2007", data_dir=tmp_path / "data", split="train+validation")
    assert [source.file_name(index) for index in range(3)] == [
        "000005.jpg",
        "000012.jpg",
        "000020.jpg",
    ]
    assert source.image_ids == [1, 2, 3]
    assert len(source.categories) == 20
    assert source.categories[0] == (1, "aeroplane")
    assert source.read(1) == (root / "JPEGImages" / "000012.jpg").read_bytes()
    boxes, classes, crowd = source.annotations(1)
    assert boxes.tolist() == [[7, 3, 31, 23]] * 2
    assert classes.tolist() == [11, 7]
    assert crowd.tolist() == [False, True]
    assert source.ground_truth()["annotations"] == [
        {
            "id": object_id,
            "image_id": 2,
            "category_id": category_id,
            "bbox": [3, 7, 20, 24],
            "area": 480,
            "iscrowd": difficult,
        }
        for object_id, category_id, difficult in ((1, 12, 0), (2, 8, 1))
    ]
    assert not caplog.messages  # there are no areas to truncate
    official = tmp_path / "x.json"
    official.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(ValueError, match=r"has no image ids to look up in .*x\.json"):
        TfdsSource("voc/2007", data_dir=tmp_path / "data", split="train", official=official)


def features_of_own(**changes):
    """Return the features of the dataset `own`, with changes of single features."""
    import tensorflow_datasets as tfds

    objects = {
        "bbox": tfds.features.BBoxFeature(bbox_format=None),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    objects |= changes.pop("objects", {})
    return {"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)} | changes


def test_a_dataset_with_only_the_required_features(tmp_path, caplog):
    import tensorflow_datasets as tfds

    data = jpeg(50, 100, 1)
    fractions = [[0.2, 0.1, 0.6, 0.5], [0.5, 0.5, 1.1, 1.0], [0.5, 0.5, 0.5, 1.0]]
    boxes = [{"bbox": np.array(box), "label": 1} for box in fractions]
    # Images of the same size begin with the same bytes; two of them surround it in the record.
    features = features_of_own(**{name: tfds.features.Image() for name in ("before", "later")})
    others = {"before": io.BytesIO(jpeg(50, 100, 2)), "later": io.BytesIO(jpeg(50, 100, 3))}
    prepare_own(tmp_path, features, [{"image": io.BytesIO(data), "objects": boxes, **others}])
    source = TfdsSource("own", data_dir=tmp_path, split="train")
    assert source.read(0) == data
    assert source.file_name(0) == "own train 0:12"
    assert source.image_ids == [1]
    assert source.categories == ((1, "cat"), (2, "dog"))
    first, clipped = source.annotations(0).boxes.tolist()
    assert first == [10, 10, 30, 50]
    assert clipped == [25, 50, 50, 100]
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        "1 boxes have no area inside their image: they are not trained on, but AP counts each as "
        "missed (first: annotation id 3 (own train 0:12)).",
        "1 boxes extend beyond their image by more than 1 pixel and are clipped (first: annotation "
        "id 2 (own train 0:12)).",
    ]
    truth = source.ground_truth()["annotations"]
    assert [annotation["bbox"] for annotation in truth] == [
        [10, 10, 40, 20],
        [50, 25, 50, 30],
        [50, 25, 50, 0],
    ]
    assert [annotation["area"] for annotation in truth] == [800, 1500, 0]


def test_a_label_without_a_category_is_refused(tmp_path):
    boxes = [{"bbox": np.array([0.2, 0.1, 0.6, 0.5]), "label": -1}]
    example = {"image": io.BytesIO(jpeg(50, 100, 1)), "objects": boxes}
    prepare_own(tmp_path, features_of_own(), [example])
    with pytest.raises(ValueError, match="has the label -1, but only 2 categories"):
        TfdsSource("own", data_dir=tmp_path, split="train")


def test_memory_has_every_box_once_in_less_than_72_bytes(tmp_path, measure_memory):
    objects = [{"bbox": np.array([0.1, 0.2, 0.3, 0.4]), "label": 1}] * 1000
    example = {"image": io.BytesIO(jpeg(50, 100, 1)), "objects": objects}
    prepare_own(tmp_path, features_of_own(), [example])
    source, num_bytes = measure_memory(lambda: TfdsSource("own", data_dir=tmp_path, split="train"))
    assert len(source.annotations(0).boxes) == 1000
    assert num_bytes < 72 * 1000


def test_other_datasets_are_refused_by_their_features(tmp_path):
    import tensorflow_datasets as tfds

    box, label = tfds.features.BBoxFeature(), tfds.features.ClassLabel(num_classes=2)
    image, objects = tfds.features.Image(), ["image (Image)", "objects/bbox (BBoxFeature)"]
    corners = tfds.features.BBoxFeature(bbox_format="XYXY")
    cases = {
        "classification": (
            {"image": image, "label": label},
            ["image (Image)", "label (ClassLabel)"],
        ),
        "other key": (
            {"image": image, "faces": tfds.features.Sequence({"bbox": box})},
            ["faces/bbox (BBoxFeature)", "image (Image)"],
        ),
        "other box format": (
            features_of_own(objects={"bbox": corners}),
            [*objects, "objects/label (ClassLabel)"],
        ),
        "text labels": (
            features_of_own(objects={"label": tfds.features.Text()}),
            [*objects, "objects/label (Text)"],
        ),
        "text images": (
            features_of_own(image=tfds.features.Text()),
            ["image (Text)", objects[1], "objects/label (ClassLabel)"],
        ),
    }
    for name, (features, listed) in cases.items():
        prepare_own(tmp_path / name, features, [tfds_example(features)])
        with pytest.raises(ValueError, match=re.escape(", ".join(listed) + "; give")) as caught:
            TfdsSource("own", data_dir=tmp_path / name, split="train")
        assert "\n" not in str(caught.value)


def tfds_example(features):
    """Return an example with these features."""
    import tensorflow_datasets as tfds

    def value(feature):
        if isinstance(feature, tfds.features.Image):
            return io.BytesIO(jpeg(50, 100, 1))
        if isinstance(feature, tfds.features.Text):
            return "text"
        return [] if isinstance(feature, tfds.features.Sequence) else 0

    return {key: value(feature) for key, feature in features.items()}


WITHOUT_TENSORFLOW = """
import importlib.machinery, sys

find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *more: (
    None if name.split(".")[0] == "tensorflow" else find(name, *more)
)
from retinanet_jax.data.sources.tfds import TfdsSource

assert "tensorflow_datasets" not in sys.modules
for data_dir in sys.argv[1:]:
    source = TfdsSource("coco/2017", data_dir=data_dir, split="train")
    print(len(source), source.image(0).shape[:2] == tuple(source.sizes[0]))
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_is_not_imported(prepared):
    folders = [str(prepared(2017, file_format)[0]) for file_format in FORMATS]
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *folders]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stdout.splitlines() if line.startswith("7 ")] == ["7 True"] * 2


def test_importing_the_package_does_not_import_tfds():
    code = "import sys, retinanet_jax, retinanet_jax.data.sources.tfds; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & {"tensorflow", "tensorflow_datasets", "array_record", "jax"}
