"""YOLO datasets are read in all usual layouts, and invalid labels are refused by file and line."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded_images import encode_image

from retinanet_jax.data.decoding import Decoding
from retinanet_jax.data.sources.yolo import YoloSource
from retinanet_jax.data.sources.yolo_layout import splits

IMAGE = encode_image(np.zeros((40, 60, 3), np.uint8), "JPEG")  # 40 x 60
LABELS = {"a": "1 0.5 0.5 0.5 0.25\n", "b": "0 0.1 0.2 0.1 0.2\n\n1 0.5 0.5 1 1\n", "c": ""}
NAMES = "names: [cat, dog]\n"


class Folder:
    """A dataset of the images a.jpg, b.jpg and c.jpg, without objects, and what tests add to it."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def write(self, name: str, content: str | bytes) -> pathlib.Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def add(self, image: str, label: str | None, text: str) -> None:
        self.write(image, IMAGE)
        if label is not None:
            self.write(label, text)

    def add_split(self, images: str, labels: str) -> None:
        for stem, text in LABELS.items():
            self.add(f"{images}/{stem}.jpg", f"{labels}/{stem}.txt", text)


@pytest.fixture
def data(tmp_path) -> Folder:
    return Folder(tmp_path / "fruit")


def check_contents(source: YoloSource, first_id: int = 0) -> None:
    names = [pathlib.Path(name).name for name in source.file_names]
    assert names == ["a.jpg", "b.jpg", "c.jpg"]
    assert [tuple(c) for c in source.categories] == [(first_id, "cat"), (first_id + 1, "dog")]
    assert list(source.image_ids) == [1, 2, 3]
    assert source.objects.ids.tolist() == [1, 2, 3]
    assert source.objects.image_index.tolist() == [0, 1, 1]
    assert source.objects.classes.tolist() == [1, 0, 1]
    expected = [[15, 15, 25, 45], [4, 3, 12, 9], [0, 0, 40, 60]]
    np.testing.assert_allclose(source.objects.boxes, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(source.objects.areas, [300, 48, 2400])
    assert not source.objects.crowd.any()
    assert source.image(1).shape == (40, 60, 3)


# The folders of images and labels of a split, and the value of `val` in data.yaml.
LAYOUTS = {
    "images/val": ("images/val", "labels/val", "images/val"),
    "images/val without a folder of labels": ("images/val", "images/val", "./images/val/"),
    "val/images": ("val/images", "val/labels", "val/images"),
    "Roboflow": ("valid/images", "valid/labels", "../valid/images"),
    "Windows": ("images/val", "labels/val", r"images\val"),
    "moved": ("valid/images", "valid/labels", "/content/no/fruit/valid/images"),
    "moved from Windows": ("valid/images", "valid/labels", r"D:\data\fruit\valid\images"),
    "no folder of images": ("val", "val", "val"),
    "subfolder of labels": ("val", "val/labels", "val"),
    "labels next to the split": ("val", "labels/val", "val"),
    "VOC": ("JPEGImages/val", "labels/val", "JPEGImages/val"),
    "list of folders": ("images/val", "labels/val", "[images/val]"),
    "above the file": ("../images/val", "../labels/val", "../images/val"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_labels_are_read_in_all_layouts(data, case, caplog):
    images, labels, value = LAYOUTS[case]
    data.add_split(images, labels)
    data.write("train/images/a.jpg", IMAGE)
    yaml = data.write("data.yaml", f"train: train/images\nval: {value}\nnc: 2\n{NAMES}")
    check_contents(YoloSource(yaml, split="val"))
    check_contents(YoloSource(yaml.parent, split="valid"))
    assert splits(yaml) == splits(yaml.parent) == ("train", "val")
    assert not caplog.text


@pytest.mark.parametrize("path", [".", "../fruit", "/nowhere/fruit", "datasets/fruit"])
def test_the_folder_of_a_dataset_may_be_anywhere(data, path):
    data.add_split("images/val", "labels/val")
    yaml = data.write("data.yaml", f"path: {path}\nval: images/val\ntest:\n{NAMES}")
    check_contents(YoloSource(yaml))
    assert splits(yaml) == ("val",)


def test_a_path_may_be_relative_to_the_working_folder(data, monkeypatch):
    monkeypatch.chdir(data.path.parent.parent)
    folder = data.path.relative_to(data.path.parent.parent)
    data.add_split("images/val", "labels/val")
    yaml = data.write("../configs/mine.yaml", f"path: {folder}\nval: images/val\n{NAMES}")
    check_contents(YoloSource(yaml))


def test_the_folder_next_to_a_file_of_roboflow_comes_first(data):
    """Another dataset in the folder above has the path that its file literally contains."""
    data.add_split("train/images", "train/labels")
    data.add("../train/images/x.jpg", "../train/labels/x.txt", "")
    yaml = data.write("data.yaml", f"train: ../train/images\n{NAMES}")
    check_contents(YoloSource(yaml))


def test_the_folder_of_images_may_be_in_another_one_of_this_name(tmp_path):
    data = Folder(tmp_path / "images" / "fruit")
    data.add_split("images/val", "labels/val")
    check_contents(YoloSource(data.write("data.yaml", f"val: images/val\n{NAMES}")))


def test_a_missing_folder_is_not_replaced_by_that_of_another_split(data):
    data.add_split("images", "labels")
    yaml = data.write("data.yaml", f"train: images\nval: /nowhere/valid/images\n{NAMES}")
    with pytest.raises(FileNotFoundError, match=r"/nowhere/valid/images is neither a folder nor"):
        YoloSource(yaml, split="val")


def test_several_folders_are_one_split(data):
    data.add("one/images/a.jpg", "one/labels/a.txt", LABELS["a"])
    data.add("two/images/deep/b.jpg", "two/labels/deep/b.txt", LABELS["b"])
    data.add("two/images/deep/c.jpg", None, "")
    yaml = data.write("data.yaml", f"train:\n- one/images\n- two/images\n{NAMES}")
    check_contents(YoloSource(yaml))


LISTS = {
    "relative to the list": "./images/{}.jpg",
    "relative to the dataset": "images/{}.jpg",
    "CVAT": "data/images/{}.jpg",
    "absolute, moved": "/home/me/fruit/images/{}.jpg",
    "Windows": "..\\fruit\\images\\{}.jpg",
}


@pytest.mark.parametrize("case", LISTS)
def test_a_split_may_be_a_list_of_images(data, case, caplog):
    data.add_split("images", "labels")
    data.add("images/other.jpg", "labels/other.txt", LABELS["a"])
    lines = [LISTS[case].format(stem) for stem in "abc"]
    data.write("train.txt", "\n".join(lines) + "\n\n")
    yaml = data.write("data.yaml", f"train: train.txt\n{NAMES}")
    check_contents(YoloSource(yaml))
    assert not caplog.text  # labels of images that are not listed belong to another split
    yaml.unlink()
    check_contents(YoloSource(data.path, split="train", categories=("cat", "dog")), first_id=1)


NAMES_OF_CLASSES = {
    "list": "names: [cat, dog]",
    "dict": "names: {0: cat, 1: dog}",
    "keys as text, in any order": "names: {'1': dog, '0': cat}",
    "number of classes": "nc: 2\nnames:\n  0: cat\n  1: dog",
}


@pytest.mark.parametrize("case", NAMES_OF_CLASSES)
def test_names_are_a_list_or_a_dict(data, case):
    data.add_split("images", "labels")
    check_contents(
        YoloSource(data.write("data.yaml", f"train: images\n{NAMES_OF_CLASSES[case]}\n"))
    )


def test_indices_without_a_name_are_left_out(data):
    data.add("images/a.jpg", "labels/a.txt", "7 0.5 0.5 1 1\n")
    source = YoloSource(data.write("data.yaml", "train: images\nnames: {7: dog, 3: cat}\n"))
    assert [tuple(category) for category in source.categories] == [(3, "cat"), (7, "dog")]
    assert source.objects.classes.tolist() == [1]


def test_classes_without_names_are_numbered(data):
    data.add("images/a.jpg", "labels/a.txt", "")
    source = YoloSource(data.write("data.yaml", "train: images\nnc: 2\n"))
    assert [tuple(c) for c in source.categories] == [(0, "class_0"), (1, "class_1")]


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        ("images", "labels", "classes.txt"),  # Label Studio
        (".", ".", "classes.txt"),  # labelImg
        ("images", "labels", "labels/classes.txt"),
        ("images", "images", "obj.names"),
    ],
)
def test_a_folder_with_a_file_of_names_is_a_dataset(data, images, labels, names, caplog):
    data.add_split(images, labels)
    data.write(names, "\ufeffcat\r\n dog \r\n\r\n")
    check_contents(YoloSource(data.path))
    assert splits(data.path) == ()
    assert not caplog.text
    with pytest.raises(ValueError, match="has no split 'train'; leave it empty"):
        YoloSource(data.path, split="train")


def test_an_image_may_have_the_name_of_a_list_of_images(data):
    """Such as a photograph of a train."""
    for stem in ("a", "train", "test", "labels"):
        data.add(f"images/{stem}.jpg", f"labels/{stem}.txt", LABELS["a"])
    data.write("labels/classes.txt", "cat\ndog\n")  # of no image
    source = YoloSource(data.write("data.yaml", f"train: images\n{NAMES}"), split="train")
    assert source.objects.image_index.tolist() == [0, 1, 2, 3]


def test_a_folder_with_splits_needs_no_description(data):
    """As Roboflow exports for darknet."""
    data.add_split("train", "train")
    data.add_split("valid", "valid")
    data.write("train/_darknet.labels", "cat\ndog\n")
    assert splits(data.path) == ("train", "val")
    for split in ("train", "val"):
        check_contents(YoloSource(data.path, split=split))
    with pytest.raises(ValueError, match="has no split ''; give one of train, val"):
        YoloSource(data.path)
    with pytest.raises(ValueError, match="has no split 'test'; give one of train, val"):
        YoloSource(data.path, split="test")


def test_darknets_description_is_read(data):
    """As CVAT exports it."""
    data.add_split("obj_train_data", "obj_train_data")
    data.write("obj.names", "cat\ndog")
    lines = "\n".join(f"data/obj_train_data/{stem}.jpg" for stem in "abc")
    data.write("train.txt", lines)
    content = "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    check_contents(YoloSource(data.write("obj.data", content)))
    check_contents(YoloSource(data.path, split="train"))
    (data.path / "obj.names").unlink()
    with pytest.raises(ValueError, match=r"obj\.data: has names='data/obj\.names', which is no"):
        YoloSource(data.path)


def test_folders_of_images_and_labels_may_be_given(data):
    data.add_split("images/val", "annotations/yolo/val")
    data.write("data.yaml", "names: [cat, dog]")
    source = YoloSource(
        data.path / "annotations/yolo", data.path / "images", categories=("cat", "dog")
    )
    check_contents(source, first_id=1)
    data.add_split("labels/val", "labels/val")
    check_contents(YoloSource(data.path / "labels/val", data.path / "images/val"))
    check_contents(YoloSource(data.path / "data.yaml", data.path / "images"))
    with pytest.raises(ValueError, match=r"give images=.* or split='val', not both"):
        YoloSource(data.path / "data.yaml", data.path / "images", split="val")


def test_given_categories_are_matched_by_name(data):
    data.add_split("images", "labels")
    yaml = data.write("data.yaml", f"train: images\n{NAMES}")
    source = YoloSource(yaml, categories=("dog", "cow", "cat"))
    names = [tuple(category) for category in source.categories]
    assert names == [(1, "dog"), (2, "cow"), (3, "cat")]
    assert source.objects.classes.tolist() == [0, 2, 0]
    with pytest.raises(
        ValueError, match=r"a\.txt: line 1 has class=1 \(dog\), .* classes of data\.categories"
    ):
        YoloSource(yaml, categories=("cat", "cow"))


# A line, and its box yxyx as fractions.
ROWS = {
    "box": ("0 0.5 0.5 0.2 0.4", (0.3, 0.4, 0.7, 0.6)),
    "class as a float": ("0.0 0.5 0.5 0.2 0.4", (0.3, 0.4, 0.7, 0.6)),
    "exponents and tabs": ("0\t5e-1  .5 2E-1\t0.4 ", (0.3, 0.4, 0.7, 0.6)),
    "triangle": ("0 0.1 0.2 0.7 0.3 0.4 0.9", (0.2, 0.1, 0.9, 0.7)),
    "oriented box": ("0 0.5 0.2 0.8 0.5 0.5 0.8 0.2 0.5", (0.2, 0.2, 0.8, 0.8)),
    "rounded": ("0 0.5 0.5 1.000001 1.0000004", (-2e-7, -5e-7, 1.0000002, 1.0000005)),
}


@pytest.mark.parametrize("case", ROWS)
def test_boxes_and_polygons_become_boxes(data, case):
    text, box = ROWS[case]
    data.add("images/a.jpg", "labels/a.txt", text)
    source = YoloSource(data.write("data.yaml", f"train: images\n{NAMES}"))
    expected = [np.array(box) * [40, 60, 40, 60]]
    np.testing.assert_allclose(source.objects.boxes, expected, rtol=0, atol=1e-9)


def test_a_box_next_to_a_polygon_remains_a_box(data):
    data.add("images/a.jpg", "labels/a.txt", "0 0.1 0.2 0.7 0.3 0.4 0.9\n0 0.5 0.5 0.2 0.4")
    source = YoloSource(data.write("data.yaml", f"train: images\n{NAMES}"))
    np.testing.assert_allclose(source.objects.boxes[1], [12, 24, 28, 36])


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])
def test_keypoints_are_not_read(data, shape):
    keypoints = " ".join(["0.9 0.95", "0.9 0.95 2"][shape[1] - 2] for _ in range(shape[0]))
    text = f"0 0.5 0.5 0.2 0.4 {keypoints}\n1 0.5 0.5 1 1"
    data.add("images/a.jpg", "labels/a.txt", text)
    yaml = data.write("data.yaml", f"train: images\nkpt_shape: {list(shape)}\n{NAMES}")
    np.testing.assert_allclose(YoloSource(yaml).objects.boxes, [[12, 24, 28, 36], [0, 0, 40, 60]])
    data.write("labels/a.txt", f"0 0.5 0.5 0.2 0.4 {keypoints} 0.5 0.5")
    message = r"line 1 has 13 values; write class x y width height and 6 numbers of keypoints"
    with pytest.raises(ValueError, match=message):
        YoloSource(yaml)


def test_equal_lines_are_different_objects(data):
    """So the dataset has the same objects in any format; the dataset report counts them."""
    data.add("images/a.jpg", "labels/a.txt", "0 0.5 0.5 0.2 0.4\n" * 2)
    source = YoloSource(data.write("data.yaml", f"train: images\n{NAMES}"))
    assert len(source.annotations(0).boxes) == 2


@pytest.mark.parametrize(("exif", "size"), [("applied", (60, 40)), ("ignored", (40, 60))])
def test_fractions_are_of_the_image_as_it_is_decoded(data, exif, size):
    pixels = np.zeros((40, 60, 3), np.uint8)
    data.write("images/a.jpg", encode_image(pixels, "JPEG", orientation=6))
    data.write("labels/a.txt", "0 0.5 0.5 1 1")
    yaml = data.write("data.yaml", f"train: images\n{NAMES}")
    source = YoloSource(yaml, decoding=Decoding(exif=exif))
    assert source.sizes.tolist() == [list(size)]
    assert source.annotations(0).boxes.tolist() == [[0, 0, *size]]
    assert source.image(0).shape == (*size, 3)


INVALID_ROWS = {
    "class out of range": (
        "2 0.5 0.5 0.2 0.4",
        r"class=2, which is none of the 2 classes of .*data\.yaml",
    ),
    "negative class": ("-1 0.5 0.5 0.2 0.4", r"class=-1, which is none of"),
    "class name": ("cat 0.5 0.5 0.2 0.4", r"class='cat', not an integer"),
    "fraction of a class": ("0.5 0.5 0.5 0.2 0.4", r"class='0.5', not an integer"),
    "pixels": ("0 30 20 0.2 0.4", r"x='30', not a fraction of the image from 0 to 1"),
    "pixels of a polygon": ("0 0.1 0.2 7 0.3 0.4 0.9", r"number 3='7', not a fraction of the"),
    "beyond rounding": ("0 0.5 0.5 0.2 1.02", r"height='1.02', not a fraction of the image"),
    "negative": ("0 0.5 -0.02 0.2 0.4", r"y='-0.02', not a fraction of the image from 0 to 1"),
    "negative width": ("0 0.5 0.5 -0.001 0.4", r"width=-0.001 and height=0.4, of which one is"),
    "nan": ("0 0.5 nan 0.2 0.4", r"y='nan', not a finite number"),
    "nan in a polygon": ("0 0.1 0.2 0.7 0.3 nan 0.9", r"number 5='nan', not a finite number"),
    "infinite": ("0 0.5 0.5 inf 0.4", r"width='inf', not a finite number"),
    "underscore": ("0 0.5 0.5 0.2 0_0.4", r"height='0_0.4', not a finite number"),
    "underscore in a polygon": ("0 0.1 0.2 0.7 0.3 0.4 0.1_0", r"number 6='0.1_0', not a finite"),
    "decimal comma": ("0 0,5 0.5 0.2 0.4", r"x='0,5', not a finite number"),
    "too few": ("0 0.5 0.5 0.2", r"4 values; write class x y width height, or class x1 y1 x2"),
    "confidence": ("0 0.5 0.5 0.2 0.4 0.9", r"6 values; write class x y width height"),
    "half a point": ("0 0.1 0.2 0.7 0.3 0.4 0.9 0.5", r"8 values; write class x y width height"),
    "only a class": ("0", r"1 values; write class"),
}


@pytest.mark.parametrize("case", INVALID_ROWS)
def test_an_invalid_label_is_refused_by_file_and_line(data, case):
    text, message = INVALID_ROWS[case]
    data.add("images/a.jpg", "labels/a.txt", f"1 0.5 0.5 0.5 0.25\n\n{text}\n")
    yaml = data.write("data.yaml", f"train: images\n{NAMES}")
    with pytest.raises(ValueError, match=rf"labels/a\.txt: line 3 has {message}") as caught:
        YoloSource(yaml)
    assert "\n" not in str(caught.value)


INVALID_YAML = {
    "no YAML": ("names: [cat", r"is not YAML \(.*\); correct it"),
    "no fields": ("cat", "has no fields"),
    "no names": ("train: images", r"has names=None, which is no list of names"),
    "one name": ("names: cat", r"has names='cat', which is no list of names"),
    "truth value": ("names: [yes, dog]", r"has names\[0\]=True, not a name"),
    "empty name": ("names: ['', dog]", r"has names\[0\]='', not a name"),
    "index twice": ("names: {0: cat, '0': dog}", "of which the indices are not unique"),
    "negative index": ("names: {-1: cat}", "of which the indices are not unique and from 0"),
    "text as index": ("names: {a: cat}", r"has names='a', not an integer"),
    "number of classes": ("nc: 3\nnames: [cat, dog]", r"has nc=3, but 2 names"),
    "name twice": ("train: images\nnames: [cat, cat]", "1 names belong to several categories"),
    "number as a path": ("train: {a: b}\nnames: [cat, dog]", r"has train=\{'a': 'b'\}, not a name"),
    "keypoints": ("kpt_shape: 17\nnames: [cat]", r"has kpt_shape=17, not a list of two numbers"),
    "missing folder": ("train: nowhere\nnames: [cat, dog]", r"\(train\): nowhere is neither a"),
    "date": ("names: [2024-13-45]", r"is not YAML"),
}


@pytest.mark.parametrize("case", INVALID_YAML)
def test_an_invalid_description_is_refused(data, case):
    content, message = INVALID_YAML[case]
    data.add_split("images", "labels")
    yaml = data.write("data.yaml", content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"data\.yaml.*{message}") as caught:
        YoloSource(yaml)
    assert "\n" not in str(caught.value)


def test_missing_files_are_refused(data):
    with pytest.raises(FileNotFoundError, match="fruit: there is no such file or folder"):
        YoloSource(data.path)
    data.write("notes.md", "")
    with pytest.raises(FileNotFoundError, match="fruit: there is no image in"):
        YoloSource(data.path, categories=("cat",))
    data.add("a.jpg", None, "")
    with pytest.raises(
        FileNotFoundError, match=r"none of its 1 images has a file of labels .*a\.jpg"
    ):
        YoloSource(data.path, categories=("cat",))
    data.write("a.txt", "")
    with pytest.raises(ValueError, match=r"fruit: has no data\.yaml and no names of classes"):
        YoloSource(data.path)
    with pytest.raises(ValueError, match=r"notes\.md: is neither a data\.yaml nor an obj\.data"):
        YoloSource(data.path / "notes.md")
    data.write("classes.txt", "cat\n\ndog")
    with pytest.raises(
        ValueError, match=r"classes\.txt: line 2 is empty; write the name of class 1"
    ):
        YoloSource(data.path)
    data.write("classes.txt", b"c\xe4t")
    with pytest.raises(ValueError, match=r"classes\.txt: is not text in UTF-8"):
        YoloSource(data.path)
    data.write("classes.txt", "cat")
    data.write("a.txt", b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt: is not text"):
        YoloSource(data.path, categories=("cat",))
    data.write("one.yaml", NAMES)
    data.write("two.yaml", NAMES)
    with pytest.raises(ValueError, match=r"one\.yaml and two\.yaml both describe a dataset"):
        YoloSource(data.path)


def test_missing_labels_and_images_are_reported(data, caplog):
    data.add_split("images", "labels")
    data.write("images/d.jpg", IMAGE)
    data.write("images/._a.jpg", b"")
    data.write("images/notes.md", "")
    data.write("labels/e.txt", LABELS["a"])
    source = YoloSource(data.write("data.yaml", f"train: images\n{NAMES}"))
    assert len(source) == 4
    assert "1 of 4 images have no file of labels and count as images without objects" in caplog.text
    assert "(first: images/d.jpg)" in caplog.text
    assert "1 files of labels have no image and are not read" in caplog.text


def test_labels_in_another_letter_case_or_unicode_normalization_are_matched(data):
    data.add("images/IMG_1.JPG", "labels/img_1.txt", LABELS["a"])
    data.add("images/cafe\u0301.jpg", "labels/caf\u00e9.txt", LABELS["b"])
    source = YoloSource(data.write("data.yaml", f"train: images\n{NAMES}"))
    assert source.objects.image_index.tolist() == [0, 1, 1]


def test_warnings_name_the_object_in_its_file(data, caplog):
    data.add("images/a.jpg", "labels/a.txt", "0 0.5 0.5 1 1")
    data.add("images/b.jpg", "labels/b.txt", "0 0.5 0.5 1 1\n0 0.5 0.5 0 0.5\n0 0.9 0.5 0.5 0.5")
    YoloSource(data.write("data.yaml", f"train: images\n{NAMES}"))
    assert "1 boxes have no area inside their image" in caplog.text
    assert f"(first: object 2 of {data.path}/labels/b.txt" in caplog.text
    assert f"(first: object 3 of {data.path}/labels/b.txt" in caplog.text


VALUES = st.sampled_from(
    ["", "0", "1", "2", "-1", "0.5", "1.5", "-0.5", "1e-3", "1e999", "nan", "0_1", "0,5", "true"]
)
VALUES |= st.sampled_from(["cat", "\u0661", "\u00e9", "\0", "#", "\u2028", "\r", "0x1", "'0.5'"])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_labels_are_read_or_refused_in_one_line(folder_of_examples, data):
    """Neither another exception nor a value that is not finite reaches the caller."""
    lines = [["1", "0.5", "0.5", "0.5", "0.25"], ["0", "0.1", "0.2", "0.7", "0.3", "0.4", "0.9"]]
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.sampled_from(lines))
        column = data.draw(st.integers(0, len(line)))
        line[column : column + data.draw(st.integers(0, 1))] = [data.draw(VALUES)]
    folder_of_examples.write("labels/a.txt", "\n".join(map(" ".join, lines)))
    try:
        source = YoloSource(folder_of_examples.path / "data.yaml")
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert np.isfinite(source.objects.boxes).all()
        assert set(source.objects.classes.tolist()) <= {0, 1}
    assert "\n" not in message
    assert len(message) < 500


@pytest.fixture(scope="module")
def folder_of_examples(tmp_path_factory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("examples"))
    folder.add("images/a.jpg", None, "")
    folder.write("data.yaml", f"train: images\n{NAMES}")
    return folder


def test_memory_has_every_box_once_in_less_than_64_bytes(data, measure_memory):
    data.add("images/a.jpg", "labels/a.txt", "0 0.5 0.5 0.2 0.4\n" * 1000)
    yaml = data.write("data.yaml", f"train: images\n{NAMES}")
    source, num_bytes = measure_memory(lambda: YoloSource(yaml))
    assert len(source.annotations(0).boxes) == 1000
    assert num_bytes < 64 * 1000
