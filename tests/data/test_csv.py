"""CSV files are read unchanged, and invalid lines are refused by their number."""

import pathlib

import numpy as np
import pytest

from retinanet_jax.data.sources.csv_files import CsvSource


class Table:
    """Two CSV files, and the images a.jpg and b.jpg (40 x 60) in the same folder."""

    def __init__(self, folder: pathlib.Path, encode):
        self.folder = folder
        self.lines = ["a.jpg,10,5,30,35,dog", "b.jpg,1,2,3,4,cat"]
        self.classes = ["cat,0", "dog,1"]
        for name in ("a.jpg", "b.jpg"):
            data = encode(np.zeros((40, 60, 3), np.uint8), "JPEG")
            (folder / name).write_bytes(data)

    def load(self, images: str | pathlib.Path = "") -> CsvSource:
        boxes, classes = self.folder / "boxes.csv", self.folder / "classes.csv"
        boxes.write_text("\n".join(self.lines))
        classes.write_text("\n".join(self.classes))
        return CsvSource(boxes, classes, images)


@pytest.fixture
def table(tmp_path, encode) -> Table:
    return Table(tmp_path, encode)


def test_images_boxes_and_classes(table):
    table.lines = [
        "b.jpg,,,,,",
        "a.jpg,10,5,30,35,dog",
        "",
        "a.jpg,0,0.5,60,40,cat",
    ]
    source = table.load()
    assert source.name == str(table.folder / "boxes.csv")
    assert [tuple(category) for category in source.categories] == [(0, "cat"), (1, "dog")]
    assert [source.file_name(index) for index in range(len(source))] == ["b.jpg", "a.jpg"]
    assert list(source.image_ids) == [1, 2]
    assert source.sizes.tolist() == [[40, 60], [40, 60]]
    assert source.read(0) == (table.folder / "b.jpg").read_bytes()
    assert source.annotations(0).boxes.shape == (0, 4)
    boxes, classes, crowd = source.annotations(1)
    assert boxes.tolist() == [[5, 10, 35, 30], [0.5, 0, 40, 60]]
    assert classes.tolist() == [1, 0]
    assert not crowd.any()
    assert source.ground_truth() == {
        "images": [
            {"id": 1, "file_name": "b.jpg", "height": 40, "width": 60},
            {"id": 2, "file_name": "a.jpg", "height": 40, "width": 60},
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [  # ids are lines
            {"id": 2, "image_id": 2, "category_id": 1}
            | {"bbox": [10, 5, 20, 30], "area": 600, "iscrowd": 0},
            {"id": 4, "image_id": 2, "category_id": 0}
            | {"bbox": [0, 0.5, 60, 39.5], "area": 2370, "iscrowd": 0},
        ],
    }


def test_classes_are_sorted_by_their_ids(table):
    table.classes = ["dog,7", "cat,3"]
    source = table.load()
    assert [tuple(category) for category in source.categories] == [(3, "cat"), (7, "dog")]
    assert [source.annotations(index).classes.tolist() for index in (0, 1)] == [[1], [0]]


def test_paths_are_absolute_or_relative_to_the_folder_or_the_csv(table, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "deep").mkdir()
    (table.folder / "a.jpg").rename(elsewhere / "deep/a.jpg")
    table.lines = ["./deep/a.jpg,1,2,3,4,cat", "deep/a.jpg,2,2,3,4,cat"]
    source = table.load(elsewhere)
    assert len(source) == 1  # the two paths are equal when normalized
    assert len(source.annotations(0).boxes) == 2
    table.lines = [f"{elsewhere}/deep/a.jpg,1,2,3,4,cat", "b.jpg,1,2,3,4,cat"]
    source = table.load()
    assert source.read(0) == (elsewhere / "deep/a.jpg").read_bytes()
    assert source.read(1) == (table.folder / "b.jpg").read_bytes()


def test_the_variants_that_spreadsheets_write_are_read(table):
    table.lines = ["\ufeffa.jpg, 10 ,5,30,35,dog,further", ',,,,,,\r\n"b.jpg",1,2,3,4,"cat"\r']
    source = table.load()
    assert [source.file_name(index) for index in range(len(source))] == ["a.jpg", "b.jpg"]
    assert source.annotations(0).boxes.tolist() == [[5, 10, 35, 30]]
    assert [annotation["id"] for annotation in source.ground_truth()["annotations"]] == [1, 3]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_sizes_are_those_of_the_oriented_images(table, encode, file_format):
    pixels = np.zeros((40, 60, 3), np.uint8)
    (table.folder / "a.jpg").write_bytes(encode(pixels, file_format, orientation=6))
    (table.folder / "b.jpg").write_bytes(encode(pixels, file_format, orientation=3))
    source = table.load()
    assert source.sizes.tolist() == [[60, 40], [40, 60]]
    assert source.image(0).shape == (60, 40, 3)


def test_warnings_name_the_line(table, caplog):
    table.lines += ["b.jpg,5,5,5,9,cat", "a.jpg,50,5,70,9,cat", "a.jpg,-5,5,9,9,cat"]
    table.load()
    assert "1 boxes have no area inside" in caplog.text
    assert "(first: line 3 (b.jpg))" in caplog.text
    assert "2 boxes extend beyond their image" in caplog.text
    assert "(first: line 4 (a.jpg))" in caplog.text


INVALID_LINES = {
    "header": ("path,x1,y1,x2,y2,class", r"line 3 \(path\) has x1='x1', not a finite number"),
    "not finite": ("b.jpg,1,2,inf,4,cat", r"line 3 \(b.jpg\) has x2='inf', not a finite number"),
    "partly empty": ("b.jpg,1,2,,4,cat", r"line 3 \(b.jpg\) has x2='', not a finite number"),
    "no class": ("b.jpg,1,2,3,4,", r"line 3 \(b.jpg\) has the class '', which .*classes.csv"),
    "unknown class": ("b.jpg,1,2,3,4,cow", r"line 3 \(b.jpg\) has the class 'cow', which .*list"),
    "inverted in x": ("b.jpg,5,2,3,4,cat", r"line 3 \(b.jpg\) has x1=5 above x2=3; correct"),
    "inverted in y": ("b.jpg,1,4.5,3,4,cat", r"line 3 \(b.jpg\) has y1=4.5 above y2=4; correct"),
    "too few": ("b.jpg,1,2,3,4", r"line 3 is 'b.jpg,1,2,3,4'; write path,x1,y1,x2,y2,class, or"),
    "only a path": ("b.jpg", r"line 3 is 'b.jpg'; write path,x1"),
    "no path": (",1,2,3,4,cat", r"line 3 is ',1,2,3,4,cat'; write path,x1"),
}


@pytest.mark.parametrize("case", INVALID_LINES)
def test_an_invalid_box_is_refused_by_its_line(table, case):
    line, message = INVALID_LINES[case]
    table.lines.append(line)
    with pytest.raises(ValueError, match=r"boxes\.csv: " + message) as caught:
        table.load()
    assert "\n" not in str(caught.value)


INVALID_CLASSES = {
    "header": ("class,id", r"line 3 is 'class,id'; write class,id, with ids from 0"),
    "no id": ("cow", r"line 3 is 'cow'; write class,id"),
    "too many": ("cow,2,3", r"line 3 is 'cow,2,3'; write class,id"),
    "no name": (",2", r"line 3 is ',2'; write class,id"),
    "negative": ("cow,-1", r"line 3 is 'cow,-1'; write class,id, with ids from 0"),
    "repeated name": ("cat,2", r"line 3 repeats class 'cat'; make names and ids unique"),
    "repeated id": ("cow,1", r"line 3 repeats id 1; make names and ids unique"),
}


@pytest.mark.parametrize("case", INVALID_CLASSES)
def test_an_invalid_class_is_refused_by_its_line(table, case):
    line, message = INVALID_CLASSES[case]
    table.classes.append(line)
    with pytest.raises(ValueError, match=r"classes\.csv: " + message) as caught:
        table.load()
    assert "\n" not in str(caught.value)


def test_missing_empty_and_unreadable_files_are_refused(table):
    folder = table.folder
    table.load()
    boxes, classes = folder / "boxes.csv", folder / "classes.csv"
    with pytest.raises(FileNotFoundError, match=r"none\.csv: there is no such CSV file"):
        CsvSource(folder / "none.csv", classes, "")
    with pytest.raises(FileNotFoundError, match=r"none\.csv: there is no such CSV file"):
        CsvSource(boxes, folder / "none.csv", "")
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder of images"):
        CsvSource(boxes, classes, folder / "nowhere")
    boxes.write_bytes(b"a.jpg,,,,,\nb.jpg,1,2,3,4,c\xe4t\n")
    with pytest.raises(ValueError, match=r"boxes\.csv: is not CSV in UTF-8 after line 0"):
        CsvSource(boxes, classes, "")
    boxes.write_text("")
    with pytest.raises(ValueError, match=r"boxes\.csv: has no images"):
        CsvSource(boxes, classes, "")
    classes.write_text("\n")
    with pytest.raises(ValueError, match=r"classes\.csv: lists no classes"):
        CsvSource(boxes, classes, "")


def test_missing_and_invalid_images_are_refused(table):
    table.lines.append("c.jpg,,,,,")
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images of .*boxes\.csv .* \(c\.jpg\)"):
        table.load()
    (table.folder / "c.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"c\.jpg: the image's size cannot .*unknown image format"):
        table.load()
