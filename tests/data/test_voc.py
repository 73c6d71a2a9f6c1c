"""Pascal VOC in both layouts: the same boxes as in COCO JSON and CSV."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_files import Devkit, voc_object, voc_xml

from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.csv_files import CsvSource
from retinanet_jax.data.sources.voc import VocSource
from retinanet_jax.evaluation.coco_metrics import coco_metrics

CARDS = ("nine", "ten", "jack", "queen", "king", "ace")  # by their ids in cards/*.json


def test_images_and_boxes_of_a_devkit(devkit):
    devkit.add("2007_000032", voc_xml(voc_object("dog", 1, 1, 60, 40)))
    devkit.add("000005", voc_xml(voc_object("cat", 11, 6, 30, 35), voc_object("dog", 7, 8, 7, 8)))
    devkit.add("000009", voc_xml())
    source = devkit.load()
    assert source.name.endswith("VOC2007/ImageSets/Main/train.txt")
    assert [tuple(category) for category in source.categories] == [(1, "cat"), (2, "dog")]
    assert [source.file_name(index) for index in range(3)] == [
        "2007_000032.jpg",
        "000005.jpg",
        "000009.jpg",
    ]
    assert list(source.image_ids) == [1, 2, 3]
    assert source.sizes.tolist() == [[40, 60]] * 3
    assert source.read(1) == devkit.image
    assert source.annotations(0).boxes.tolist() == [[0, 0, 40, 60]]  # the whole image
    boxes, classes, crowd = source.annotations(1)
    assert boxes.tolist() == [[5, 10, 35, 30], [7, 6, 8, 7]]  # the second is a single pixel
    assert classes.tolist() == [0, 1]
    assert not crowd.any()
    assert source.annotations(2).boxes.shape == (0, 4)


def test_coordinates_in_a_folder_of_xml_are_not_shifted(tmp_path, image):
    for name in ("b", "a"):
        xml = voc_xml(voc_object("cat", 0, 0, 60, 40), voc_object("cat", 10.5, 5, 30, 35))
        (tmp_path / f"{name}.xml").write_text(xml)
        (tmp_path / f"{name}.JPG").write_bytes(image)
    (tmp_path / "without_xml.JPG").write_bytes(image)
    for images in (None, "", tmp_path):
        source = VocSource(tmp_path, images=images, split="", categories=())
        assert source.name == str(tmp_path)
        assert [source.file_name(index) for index in range(len(source))] == ["a.JPG", "b.JPG"]
        assert source.annotations(1).boxes.tolist() == [[0, 0, 40, 60], [5, 10.5, 35, 30]]


def test_ground_truth_in_coco_format(devkit):
    difficult = voc_object("dog", 11, 6, 30, 35, more="<difficult>1</difficult>")
    devkit.add("a", voc_xml())
    devkit.add("b", voc_xml(voc_object("cat", 1, 1, 2, 3), difficult))
    source = devkit.load()
    assert source.annotations(1).crowd.tolist() == [False, True]
    assert source.ground_truth() == {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60},
            {"id": 2, "file_name": "b.jpg", "height": 40, "width": 60},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 2, "category_id": 1}
            | {"bbox": [0, 0, 2, 3], "area": 6, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 2}
            | {"bbox": [10, 5, 20, 30], "area": 600, "iscrowd": 1},
        ],
    }


def test_pycocotools_ignores_detections_of_difficult_objects(devkit):
    difficult = voc_object("cat", 31, 1, 50, 30, more="<difficult> 1 </difficult>")
    easy = voc_object("cat", 1, 1, 20, 30, more="<difficult>0</difficult>")
    devkit.add("a", voc_xml(easy, difficult))
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": [30, 0, 20, 30], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 30], "score": 0.8},
    ]
    source = devkit.load()
    assert coco_metrics(source.ground_truth(), detections)[0]["AP"] == pytest.approx(1)
    # pycocotools writes into its argument, which must not change the source.
    assert "ignore" not in source.ground_truth()["annotations"][0]


def test_parts_of_an_object_are_not_objects(devkit):
    head = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin></bndbox></part>"
    devkit.add("a", voc_xml(voc_object("person", 11, 6, 30, 35, more=head)))
    source = devkit.load()
    assert [category.name for category in source.categories] == ["person"]
    assert source.annotations(0).boxes.tolist() == [[5, 10, 35, 30]]


def test_categories_have_the_given_order(devkit):
    devkit.add("a", voc_xml(voc_object("cat", 1, 1, 9, 9), voc_object("dog", 1, 1, 9, 9)))
    source = devkit.load(categories=("dog", "emu", "cat"))
    assert [tuple(category) for category in source.categories] == [
        (1, "dog"),
        (2, "emu"),
        (3, "cat"),
    ]
    assert source.annotations(0).classes.tolist() == [2, 0]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [None, (0, 60), (40, 0)])
def test_a_missing_size_is_that_of_the_oriented_image(tmp_path, encode, size, file_format):
    pixels = np.zeros((40, 60, 3), np.uint8)
    (tmp_path / "a.xml").write_text(voc_xml(voc_object("cat", 0, 0, 9, 9), size=size))
    (tmp_path / "a.png").write_bytes(encode(pixels, file_format, orientation=6))
    (tmp_path / "b.xml").write_text(voc_xml(size=size))
    (tmp_path / "b.png").write_bytes(encode(pixels, file_format))
    (tmp_path / "c.xml").write_text(voc_xml(size=(70, 80)))
    (tmp_path / "c.png").write_bytes(encode(pixels, file_format))
    source = VocSource(tmp_path, images=None, split="", categories=())
    assert source.sizes.tolist() == [[60, 40], [40, 60], [70, 80]]
    assert source.image(0).shape == (60, 40, 3)


def test_warnings_name_the_xml(devkit, caplog):
    devkit.add("a", voc_xml(voc_object("cat", 1, 1, 9, 9)))
    devkit.add("b", voc_xml(voc_object("cat", 1, 1, 9, 9), voc_object("cat", 61, 1, 70, 9)))
    devkit.add("c", voc_xml(voc_object("cat", 50, 1, 70, 9)))
    devkit.load()
    assert "1 boxes have no area inside" in caplog.text
    assert "(first: object 2 of b.xml (b.jpg))" in caplog.text
    assert "1 boxes extend beyond their image" in caplog.text
    assert "(first: object 1 of c.xml (c.jpg))" in caplog.text


def test_missing_folders_splits_and_xml_are_refused(devkit, tmp_path):
    devkit.add("a", voc_xml(voc_object("cat", 1, 1, 9, 9)))
    devkit.add("b", voc_xml())
    devkit.write_split("cat_train", "a  1", "b  -2")
    devkit.write_split("missing", "a", "b", "c", "d")
    devkit.write_split("repeated", "a", "b", "a")
    devkit.write_split("empty", "")
    root = devkit.root
    for arguments, message in (
        ({"annotations": tmp_path / "nowhere"}, r"nowhere: there is no such folder of annot"),
        (
            {"split": "val"},
            r"Main/val\.txt: there is no such split; .* empty, missing, repeated, train\.",
        ),
        ({"split": ""}, r"Main/\.txt: there is no such split; .* give one of empty, "),
        ({"split": "missing"}, r"missing\.txt: 2 of 4 images have no XML in .*\(first: c\.xml\)"),
        (
            {"split": "cat_train"},
            r"cat_train\.txt: 1 of 2 .*\(first: b  -2\.xml\).*list only names",
        ),
        ({"images": tmp_path / "nowhere"}, r"nowhere: there is no such folder of images"),
        ({"annotations": root / "JPEGImages", "split": ""}, "JPEGImages: contains no XML"),
    ):
        with pytest.raises(FileNotFoundError, match=message) as caught:
            devkit.load(**arguments)
        assert "\n" not in str(caught.value)
    for arguments, message in (
        ({"split": "repeated"}, r"repeated\.txt: lists 'a' twice"),
        ({"split": "empty"}, r"empty\.txt: has no images"),
        ({"annotations": root / "Annotations", "split": ""}, "belongs to the devkit's .*VOC2007;"),
        ({"annotations": root / "JPEGImages"}, "has no folder Annotations and so no split 'train'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            devkit.load(**arguments)
        assert "\n" not in str(caught.value)


def test_the_message_for_a_devkit_without_splits_names_the_folder_of_xml(devkit):
    devkit.add("a", voc_xml(voc_object("cat", 1, 1, 9, 9)))
    (devkit.root / "ImageSets/Main/train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"or give .*VOC2007/Annotations for all XML"):
        devkit.load()
    assert devkit.load_side_by_side().annotations(0).boxes.tolist() == [[1, 1, 9, 9]]


def test_each_xml_requires_exactly_one_image_of_its_own(tmp_path, image):
    folder = tmp_path / "xml"  # next to which there are no folders of other tests
    folder.mkdir()

    def load():
        return VocSource(folder, images=None, split="", categories=())

    (folder / "a.xml").write_text(voc_xml(voc_object("cat", 1, 1, 9, 9), file_name="x.jpg"))
    with pytest.raises(
        FileNotFoundError, match=r"1 of 1 .*\(first: a\.xml \(x\.jpg\)\); the folder"
    ):
        load()
    (folder / "a.jpg").write_bytes(image)
    (folder / "a.png").write_bytes(image)
    with pytest.raises(
        ValueError, match=r"a\.xml: may describe a\.jpg or a\.png, and has <filename>"
    ):
        load()
    (folder / "a.png").unlink()
    (folder / "b.xml").write_text(voc_xml(file_name="A.jpg"))
    used_twice = r"a\.jpg belongs to a\.xml \(a\.jpg\) and to b\.xml \(A\.jpg\); keep one"
    with pytest.raises(ValueError, match=used_twice):
        load()


def test_files_without_objects_require_categories(devkit):
    devkit.add("a", voc_xml())
    with pytest.raises(ValueError, match="has no categories"):
        devkit.load()
    assert len(devkit.load(categories=("cat",)).categories) == 1


def test_an_unreadable_header_is_named(devkit):
    devkit.image = b"not an image"
    devkit.add("a", voc_xml(voc_object("cat", 1, 1, 9, 9), size=None))
    with pytest.raises(
        ValueError, match=r"a\.jpg: the image is corrupt or truncated .unknown image format"
    ):
        devkit.load()


quarters = st.integers(0, 160).map(lambda count: count / 4)
box = st.tuples(
    st.sampled_from(("ant", "bee", "cow")),
    quarters,
    quarters,
    st.integers(1, 20),
    st.integers(1, 20),
)


@settings(deadline=None, max_examples=25)
@given(images=st.lists(st.lists(box, max_size=4), min_size=1, max_size=4))
def test_json_xml_and_csv_give_the_same_boxes(tmp_path_factory, image, images):
    """This includes boxes that extend beyond their 40 x 60 image or are outside it."""
    folder = tmp_path_factory.mktemp("formats")
    devkit = Devkit(folder / "VOC", image)
    xml_folder = folder / "xml"
    xml_folder.mkdir()
    ids = {"ant": 0, "bee": 1, "cow": 2}
    content = {
        "images": [],
        "categories": [{"id": category_id, "name": name} for name, category_id in ids.items()],
        "annotations": [],
    }
    lines = []
    for image_id, boxes in enumerate(images):
        name = f"{image_id}.jpg"
        content["images"].append({"id": image_id, "file_name": name, "height": 40, "width": 60})
        lines += [f"{name},,,,,"] if not boxes else []
        devkit_objects, folder_objects = [], []
        for category, x, y, width, height in boxes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": image_id,
                    "category_id": ids[category],
                }
                | {"bbox": [x, y, width, height]}
            )
            lines.append(f"{name},{x},{y},{x + width},{y + height},{category}")
            devkit_objects.append(voc_object(category, x + 1, y + 1, x + width, y + height))
            folder_objects.append(voc_object(category, x, y, x + width, y + height))
        devkit.add(str(image_id), voc_xml(*devkit_objects))
        (xml_folder / f"{image_id}.xml").write_text(voc_xml(*folder_objects))
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "boxes.csv").write_text("\n".join(lines))
    (folder / "classes.csv").write_text("".join(f"{name},{ids[name]}\n" for name in ids))
    image_folder = devkit.root / "JPEGImages"
    coco = CocoSource(folder / "instances.json", image_folder)
    for other in (
        devkit.load(categories=tuple(ids)),
        VocSource(xml_folder, images=image_folder, split="", categories=tuple(ids)),
        CsvSource(folder / "boxes.csv", folder / "classes.csv", image_folder),
    ):
        assert [category.name for category in other.categories] == list(ids)
        np.testing.assert_array_equal(other.sizes, coco.sizes)
        for index in range(len(coco)):
            assert other.file_name(index) == coco.file_name(index)
            for field, expected in zip(
                other.annotations(index), coco.annotations(index), strict=True
            ):
                np.testing.assert_array_equal(field, expected)
        areas, expected = (
            [annotation["area"] for annotation in source.ground_truth()["annotations"]]
            for source in (other, coco)
        )
        assert areas == expected


def by_file(truth: dict) -> dict[str, list]:
    """Return each image's size and objects by its file name, independently of order and ids."""
    file_of = {image["id"]: image["file_name"] for image in truth["images"]}
    objects = collections.defaultdict(list)
    for annotation in truth["annotations"]:
        fields = [annotation[name] for name in ("category_id", "bbox", "area", "iscrowd")]
        objects[file_of[annotation["image_id"]]].append(fields)
    return {
        image["file_name"]: [image["height"], image["width"], sorted(objects[image["file_name"]])]
        for image in truth["images"]
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_json_and_xml_of_photographs_give_the_same_boxes(test_data, split):
    folder = test_data / "cards" / split
    coco = CocoSource(test_data / "cards" / f"{split}.json", folder)
    voc = VocSource(folder, images=None, split="", categories=CARDS)
    assert voc.categories == coco.categories
    assert by_file(voc.ground_truth()) == by_file(coco.ground_truth())
    index_of = {voc.file_name(index): index for index in range(len(voc))}
    assert len(index_of) == len(coco) == {"train": 296, "test": 67}[split]
    for index in range(len(coco)):
        voc_index = index_of[coco.file_name(index)]
        assert voc.sizes[voc_index].tolist() == coco.sizes[index].tolist()
        fields, expected = (
            [field[np.lexsort((*objects.boxes.T, objects.classes))] for field in objects]
            for objects in (voc.annotations(voc_index), coco.annotations(index))
        )
        for field, expected_field in zip(fields, expected, strict=True):
            np.testing.assert_array_equal(field, expected_field)
