"""COCO JSON is read unchanged, and invalid entries are refused by name."""

import copy
import json

import numpy as np
import pytest

from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation.coco_metrics import BOX_FIELDS, coco_metrics


def box_fields(content):
    """Return the fields from which AP is computed."""
    return {
        section: [{field: entry[field] for field in fields} for entry in content[section]]
        for section, fields in BOX_FIELDS.items()
    }


def two_images(folder):
    folder.add_image(40, 60)
    folder.add_image(50, 30)
    return folder


def test_boxes_classes_and_crowd(folder):
    two_images(folder)
    folder.add_box(1, [10, 5, 20, 30], category_id=7)
    folder.add_box(1, [0, 0, 60, 40], category_id=3, iscrowd=1)
    source = folder.load()
    assert len(source) == 2
    assert [tuple(category) for category in source.categories] == [(3, "dog"), (7, "cat")]
    assert source.sizes.tolist() == [[40, 60], [50, 30]]
    assert list(source.image_ids) == [1, 2]
    assert source.file_name(1) == "2.img"
    assert source.read(1) == (folder.images / "2.img").read_bytes()
    boxes, classes, crowd = source.annotations(0)
    assert boxes.tolist() == [[5, 10, 35, 30], [0, 0, 40, 60]]
    assert boxes.dtype == np.float32
    assert classes.tolist() == [1, 0]
    assert crowd.tolist() == [False, True]


def test_an_image_may_have_no_objects(folder):
    source = two_images(folder).load()
    boxes, classes, crowd = source.annotations(1)
    assert boxes.shape == (0, 4)
    assert classes.shape == crowd.shape == (0,)


def test_ground_truth_is_that_of_the_file_with_area_and_iscrowd(folder):
    two_images(folder)
    folder.add_box(1, [10, 5, 20, 30], area=17.5, iscrowd=0, segmentation=[[1, 2, 3, 4, 5, 6]])
    folder.add_box(2, [1, 2, 3.5, 4])
    folder.add_box(2, [1, 2, 3, 4], area=None, iscrowd=None)
    folder.add_box(2, [1, 2, 0, 4])  # not trained on, but evaluation uses the official annotations
    expected = copy.deepcopy(folder.content)
    expected["annotations"][1] |= {"area": 14.0, "iscrowd": 0}
    expected["annotations"][2] |= {"area": 12, "iscrowd": 0}
    expected["annotations"][3] |= {"area": 0, "iscrowd": 0}
    expected["categories"].reverse()  # sorted by id
    assert box_fields(folder.load().ground_truth()) == box_fields(expected)


def test_file_names_may_have_subfolders(folder):
    folder.add_image(40, 60)
    (folder.images / "deep").mkdir()
    (folder.images / "1.img").rename(folder.images / "deep" / "1.img")
    folder.content["images"][0]["file_name"] = "./deep/1.img"
    assert folder.load().read(0)


def replace(section: str, index: int, **fields):
    """Return a function that replaces fields of an entry of the content; None removes a field."""

    def change(content):
        entry = content[section][index]
        entry.update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del entry[name]

    return change


INVALID = {
    "unknown category": (
        replace("annotations", 0, category_id=99),
        r"annotation id 101 \(1.img\) has category_id=99.*does not list",
    ),
    "missing image": (
        replace("annotations", 1, image_id=77),
        "annotation id 102 has image_id=77.*does not list",
    ),
    "repeated image": (replace("images", 1, id=1), "image id 1 occurs twice"),
    "repeated annotation": (replace("annotations", 1, id=101), "annotation id 101 occurs twice"),
    "repeated category": (replace("categories", 1, id=7), "category id 7 occurs twice"),
    "inverted width": (
        replace("annotations", 0, bbox=[9, 9, -3, 4]),
        r"101 \(1.img\) has bbox.*negative",
    ),
    "inverted height": (
        replace("annotations", 0, bbox=[9, 9, 3, -4]),
        r"101 \(1.img\) has bbox.*negative",
    ),
    "not a number": (replace("annotations", 0, bbox=[9, 9, float("nan"), 4]), "101 .*four finite"),
    "infinite": (replace("annotations", 0, bbox=[9, 9, float("inf"), 4]), "101 .*four finite"),
    "text": (replace("annotations", 0, bbox=[9, 9, "wide", 4]), "101 .*four finite"),
    "infinite corner": (replace("annotations", 0, bbox=[1e308, 9, 1e308, 4]), "101 .*four finite"),
    "infinite area of a box": (
        replace("annotations", 0, bbox=[0, 0, 1e200, 1e200]),
        "101 .*four finite",
    ),
    "true as number": (replace("annotations", 0, bbox=[True, 9, 3, 4]), "101 .*four finite"),
    "box as text": (replace("annotations", 0, bbox="9 9 3 4"), "101 .*four finite"),
    "area in a list": (replace("annotations", 0, area=[1]), r"101 \(1.img\) has area=\[1\], not a"),
    "area in words": (replace("annotations", 0, area="big"), "101 .*area='big', not a finite"),
    "infinite area": (replace("annotations", 0, area=float("inf")), "101 .*area=inf, not a finite"),
    "iscrowd of 2": (replace("annotations", 0, iscrowd=2), "101 .*iscrowd=2, neither 0 nor 1"),
    "iscrowd in a list": (replace("annotations", 0, iscrowd=[0]), "101 .*iscrowd=.0., neither"),
    "ignore in words": (replace("annotations", 0, ignore="maybe"), "101 .*ignore='maybe', neither"),
    "fraction of an id": (
        replace("annotations", 0, image_id=1.5),
        "101 .*image_id=1.5, not an int",
    ),
    "true as id": (replace("images", 0, id=True), "image id True has id=True, not an integer"),
    "huge side": (
        replace("images", 1, width=10**7),
        "image id 2 has width=10000000, not from 1 to",
    ),
    "text as annotation": (
        lambda content: content["annotations"].append("x"),
        "'x' is no JSON obj",
    ),
    "list as image": (
        lambda content: content["images"].append([]),
        r"image \[\] is no JSON object",
    ),
    "name in a list": (
        replace("categories", 0, name=["cat"]),
        "category id 7 has name=.'cat'., not",
    ),
    "ids of one value": (replace("images", 1, id="1"), "image id 1 occurs twice"),
    "empty box": (replace("annotations", 0, bbox=[]), "101 .*four finite"),
    "no box": (replace("annotations", 0, bbox=None), r"annotation id 101 \(1.img\) has no `bbox`"),
    "no category": (
        replace("annotations", 0, category_id=None),
        r"101 \(1.img\) has no `category_id`",
    ),
    "no annotation id": (replace("annotations", 0, id=None), "annotation .* has no `id`"),
    "no file name": (replace("images", 1, file_name=None), "image id 2 has no `file_name`"),
    "no height": (replace("images", 1, height=None), "image id 2 has no `height`"),
    "zero height": (replace("images", 1, height=0), "image id 2 has height=0, not from 1 to"),
    "no name": (replace("categories", 0, name=None), "category id 7 has no `name`"),
    "id as text": (replace("images", 0, id="one"), "image id 'one' has id='one', not an integer"),
    "repeated name": (
        lambda content: (
            replace("categories", 1, name="cat")(content),
            replace("annotations", 0, category_id=7)(content),
        ),
        "several categories, first 'cat'",
    ),
    "no image": (
        lambda content: (content["images"].clear(), content["annotations"].clear()),
        "has no images",
    ),
    "no categories": (
        lambda content: (content["categories"].clear(), content["annotations"].clear()),
        "has no categories",
    ),
    "no section": (lambda content: content.pop("annotations"), "has no list `annotations`"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_content_is_refused_by_name_in_one_line(folder, case):
    change, message = INVALID[case]
    two_images(folder)
    folder.add_box(1, [10, 5, 20, 30])
    folder.add_box(2, [10, 5, 10, 10])
    change(folder.content)
    with pytest.raises(ValueError, match=message) as caught:
        folder.load()
    assert "instances.json" in str(caught.value)
    assert "\n" not in str(caught.value)


USABLE = {
    "text": {"iscrowd": "0", "area": "600", "category_id": "7", "image_id": "1", "id": " 101 "},
    "floats": {"iscrowd": 0.0, "area": 600.0, "category_id": 7.0, "image_id": 1.0, "id": 101.0},
    "false": {"iscrowd": False, "ignore": False, "area": 600},
    "nothing": {"iscrowd": None, "ignore": None, "area": None},
    "words": {"iscrowd": "false", "ignore": "False", "area": "6e2"},
    "numbers in a box": {"bbox": ["10", "5.0", 20.0, " 30"]},
    "an area of nothing": {"area": 0},
    "a negative area": {"area": -1},
}


@pytest.mark.parametrize("fields", USABLE.values(), ids=USABLE)
def test_usable_values_of_another_type_have_one_meaning_in_training_and_ap(folder, fields):
    two_images(folder)
    folder.add_box(1, [10, 5, 20, 30], category_id=7)
    folder.content["annotations"][0] |= fields
    source = folder.load()
    boxes, classes, crowd = source.annotations(0)
    assert boxes.tolist() == [[5, 10, 35, 30]]
    assert classes.tolist() == [1]
    assert crowd.tolist() == [False]
    assert source.object_mask.tolist() == [True]
    (annotation,) = source.ground_truth()["annotations"]
    expected = {"id": 101, "image_id": 1, "category_id": 7, "iscrowd": 0, "area": 600}
    assert annotation == {**expected, "bbox": [10, 5, 20, 30]}
    perfect = [{"image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 30], "score": 0.9}]
    assert coco_metrics(source.ground_truth(), perfect)[0]["AP"] == pytest.approx(1)


@pytest.mark.parametrize("fields", [{"height": "40", "width": 60.0}, {"id": "1"}, {"id": 1.0}])
def test_sizes_and_ids_of_images_may_be_text_or_floats(folder, fields):
    two_images(folder).add_box(1, [10, 5, 20, 30])
    folder.content["images"][0] |= fields
    source = folder.load()
    assert source.sizes[0].tolist() == [40, 60]
    assert source.image_ids == [1, 2]
    assert len(source.annotations(0).boxes) == 1


def test_an_area_of_a_box_that_is_not_positive_is_replaced_and_counted(folder, caplog):
    two_images(folder)
    folder.add_box(1, [10, 5, 20, 30], area=0)
    folder.add_box(1, [10, 5, 20, 30], area=-5)
    folder.add_box(1, [10, 5, 20, 30], area=7)
    assert folder.load().objects.areas.tolist() == [600, 600, 7]
    assert "2 annotations have an `area` of 0 or less" in caplog.text
    assert "first: annotation id 101" in caplog.text


@pytest.mark.parametrize("value", [1, "1", True, "true", 1.0])
def test_ignore_and_iscrowd_both_mark_crowd_regions(folder, caplog, value):
    two_images(folder)
    folder.add_box(1, [10, 5, 20, 30], ignore=value)
    folder.add_box(2, [10, 5, 20, 30], iscrowd=value, ignore=value)
    source = folder.load()
    assert source.objects.crowd.tolist() == [True, True]
    assert not source.object_mask.any()
    assert [x["iscrowd"] for x in source.ground_truth()["annotations"]] == [1, 1]
    assert "1 annotations have `ignore`" in caplog.text


def test_annotation_ids_may_have_any_size(folder):
    two_images(folder)
    for annotation_id in (2**64 + 1, 2**63, 5, -(2**70)):
        folder.add_box(1, [10, 5, 20, 30])
        folder.content["annotations"][-1]["id"] = annotation_id
    source = folder.load()
    assert source.objects.ids.tolist() == [2**64 + 1, 2**63, 5, -(2**70)]


def test_of_categories_with_one_name_the_unused_ones_are_dropped(folder, caplog):
    two_images(folder).add_box(1, [10, 5, 20, 30], category_id=3)
    folder.content["categories"] = [
        {"id": 0, "name": "dog"},
        {"id": 3, "name": "dog"},
        {"id": 7, "name": "cat"},
        {"id": 8, "name": "cat"},
    ]
    source = folder.load()
    assert source.categories == ((3, "dog"), (8, "cat"))
    assert source.annotations(0).classes.tolist() == [0]
    assert "category id 0 is dropped" in caplog.text


def test_two_used_categories_with_one_name_are_refused(folder):
    two_images(folder)
    folder.add_box(1, [10, 5, 20, 30], category_id=3)
    folder.add_box(1, [10, 5, 20, 30], category_id="7")
    folder.content["categories"][0]["name"] = "dog"
    with pytest.raises(ValueError, match="several categories, first 'dog'"):
        folder.load()


@pytest.mark.parametrize("box", [[10, 5, 0, 30], [10, 5, 20, 0], [61, 5, 5, 5], [-9, 5, 9, 5]])
def test_a_box_without_area_inside_its_image_is_left_out_and_counted(folder, caplog, box):
    two_images(folder)
    folder.add_box(1, [10, 5, 20, 30])
    folder.add_box(1, box)
    folder.add_box(2, [10, 5, 0, 0])
    source = folder.load()
    assert source.annotations(0).boxes.tolist() == [[5, 10, 35, 30]]
    assert len(source.annotations(1).boxes) == 0
    assert len(caplog.messages) == 1
    assert "2 boxes have no area inside" in caplog.text
    assert "first: annotation id 102 (1.img)" in caplog.text


def test_a_box_beyond_its_image_is_clipped_and_counted(folder, caplog):
    two_images(folder)
    folder.add_box(1, [-5, 5, 20, 99])
    folder.add_box(1, [50.5, 5, 10, 10])  # half a pixel may be due to rounding
    source = folder.load()
    assert source.annotations(0).boxes.tolist() == [[5, 0, 40, 15], [5, 50.5, 15, 60]]
    assert len(caplog.messages) == 1
    assert "1 boxes extend beyond their image" in caplog.text
    assert "first: annotation id 101 (1.img)" in caplog.text


def test_valid_boxes_cause_no_warning(folder, caplog):
    two_images(folder).add_box(1, [0, 0, 60, 40])
    folder.load()
    assert not caplog.messages


def test_missing_images_are_counted_and_named(folder):
    for _ in range(5):
        folder.add_image(40, 60)
    for image_id in range(2, 6):
        (folder.images / f"{image_id}.img").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"4 of 5 .* missing \(first: image id 2 \(2\.img\)\); "
    ):
        folder.load()


def test_an_image_that_is_removed_later_is_named_with_its_id(folder):
    source = two_images(folder).load()
    (folder.images / "2.img").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.img: the image of id 2 is missing"):
        source.read(1)


def test_a_missing_folder_and_a_missing_or_invalid_json_are_refused(folder, tmp_path):
    two_images(folder).load()
    path = folder.path / "instances.json"
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder of images"):
        CocoSource(path, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"none\.json: there is no such annotation file"):
        CocoSource(tmp_path / "none.json", folder.images)
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances\.json: is not JSON"):
        CocoSource(path, folder.images)
    path.write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match="has no list `images`"):
        CocoSource(path, folder.images)


def test_images_of_coco(test_data, caplog):
    source = CocoSource(test_data / "coco21/instances.json", test_data / "coco21/images")
    annotations = [source.annotations(index) for index in range(len(source))]
    assert len(source) == 21
    assert len(source.categories) == 80
    assert [source.categories[k].id for k in (0, 11, 79)] == [1, 13, 90]
    assert sum(int(objects.crowd.sum()) for objects in annotations) == 1
    assert sum(int((~objects.crowd).sum()) for objects in annotations) == 101
    assert min(len(objects.boxes) for objects in annotations) == 0
    assert not caplog.messages
    official = json.loads((test_data / "coco21/instances.json").read_text())
    official["annotations"].sort(key=lambda x: source.image_ids.index(x["image_id"]))
    assert box_fields(source.ground_truth()) == box_fields(official)
