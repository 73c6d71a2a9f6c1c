"""keras-retinanet's CSV: read as it stands, and every bad line told by its number."""

import pathlib

import numpy as np
import pytest

from retinanet_jax.data.sources.csv import CsvSource


class Table:
    """Two CSV files and pictures a.jpg, b.jpg (40 x 60) beside them."""

    def __init__(self, folder: pathlib.Path, encode):
        self.folder = folder
        self.rows = ["a.jpg,10,5,30,35,dog", "b.jpg,1,2,3,4,cat"]
        self.classes = ["cat,0", "dog,1"]
        for name in ("a.jpg", "b.jpg"):
            data = encode(np.zeros((40, 60, 3), np.uint8), "JPEG")
            (folder / name).write_bytes(data)

    def load(self, images: str | pathlib.Path = "") -> CsvSource:
        boxes, classes = self.folder / "boxes.csv", self.folder / "classes.csv"
        boxes.write_text("\n".join(self.rows))
        classes.write_text("\n".join(self.classes))
        return CsvSource(boxes, classes, images)


@pytest.fixture
def table(tmp_path, encode) -> Table:
    return Table(tmp_path, encode)


def test_a_table_by_hand(table):
    table.rows = [
        "b.jpg,,,,,",
        "a.jpg,10,5,30,35,dog",
        "",
        "a.jpg,0,0.5,60,40,cat",
    ]
    source = table.load()
    assert source.name == str(table.folder / "boxes.csv")
    assert [tuple(category) for category in source.categories] == [(0, "cat"), (1, "dog")]
    assert [source.file_name(row) for row in range(len(source))] == ["b.jpg", "a.jpg"]
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
        "annotations": [  # numbered by their lines
            {"id": 2, "image_id": 2, "category_id": 1}
            | {"bbox": [10, 5, 20, 30], "area": 600, "iscrowd": 0},
            {"id": 4, "image_id": 2, "category_id": 0}
            | {"bbox": [0, 0.5, 60, 39.5], "area": 2370, "iscrowd": 0},
        ],
    }


def test_ids_are_kept_and_classes_sorted_by_them(table):
    table.classes = ["dog,7", "cat,3"]
    source = table.load()
    assert [tuple(category) for category in source.categories] == [(3, "cat"), (7, "dog")]
    assert [source.annotations(row).classes.tolist() for row in (0, 1)] == [[1], [0]]


def test_paths_are_relative_to_the_folder_or_the_csv_or_absolute(table, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "deep").mkdir()
    (table.folder / "a.jpg").rename(elsewhere / "deep/a.jpg")
    table.rows = ["./deep/a.jpg,1,2,3,4,cat", "deep/a.jpg,2,2,3,4,cat"]
    source = table.load(elsewhere)
    assert len(source) == 1  # however its path is written
    assert len(source.annotations(0).boxes) == 2
    table.rows = [f"{elsewhere}/deep/a.jpg,1,2,3,4,cat", "b.jpg,1,2,3,4,cat"]
    source = table.load()
    assert source.read(0) == (elsewhere / "deep/a.jpg").read_bytes()
    assert source.read(1) == (table.folder / "b.jpg").read_bytes()


def test_what_spreadsheets_write(table):
    table.rows = ["\ufeffa.jpg, 10 ,5,30,35,dog,further", ',,,,,,\r\n"b.jpg",1,2,3,4,"cat"\r']
    source = table.load()
    assert [source.file_name(row) for row in range(len(source))] == ["a.jpg", "b.jpg"]
    assert source.annotations(0).boxes.tolist() == [[5, 10, 35, 30]]
    assert [one["id"] for one in source.ground_truth()["annotations"]] == [1, 3]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_sizes_are_the_pictures_own_upright(table, encode, kind):
    pixels = np.zeros((40, 60, 3), np.uint8)
    (table.folder / "a.jpg").write_bytes(encode(pixels, kind, orientation=6))
    (table.folder / "b.jpg").write_bytes(encode(pixels, kind, orientation=3))
    source = table.load()
    assert source.sizes.tolist() == [[60, 40], [40, 60]]
    assert source.image(0).shape == (60, 40, 3)


def test_warnings_name_the_line(table, caplog):
    table.rows += ["b.jpg,5,5,5,9,cat", "a.jpg,50,5,70,9,cat", "a.jpg,-5,5,9,9,cat"]
    table.load()
    assert "1 boxes have no area inside" in caplog.text
    assert "(first: line 3 (b.jpg))" in caplog.text
    assert "2 boxes stand out" in caplog.text
    assert "(first: line 4 (a.jpg))" in caplog.text


BAD_ROWS = {
    "header": ("path,x1,y1,x2,y2,class", r"line 3 \(path\) has x1='x1', not a finite number"),
    "not finite": ("b.jpg,1,2,inf,4,cat", r"line 3 \(b.jpg\) has x2='inf', not a finite number"),
    "half empty": ("b.jpg,1,2,,4,cat", r"line 3 \(b.jpg\) has x2='', not a finite number"),
    "no class": ("b.jpg,1,2,3,4,", r"line 3 \(b.jpg\) has the class '', which .*classes.csv"),
    "unknown class": ("b.jpg,1,2,3,4,cow", r"line 3 \(b.jpg\) has the class 'cow', which .*list"),
    "wrong way in x": ("b.jpg,5,2,3,4,cat", r"line 3 \(b.jpg\) has x1=5 above x2=3; correct"),
    "wrong way in y": ("b.jpg,1,4.5,3,4,cat", r"line 3 \(b.jpg\) has y1=4.5 above y2=4; correct"),
    "too few": ("b.jpg,1,2,3,4", r"line 3 is 'b.jpg,1,2,3,4'; write path,x1,y1,x2,y2,class, or"),
    "path alone": ("b.jpg", r"line 3 is 'b.jpg'; write path,x1"),
    "no path": (",1,2,3,4,cat", r"line 3 is ',1,2,3,4,cat'; write path,x1"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_refused_by_its_line(table, kind):
    row, message = BAD_ROWS[kind]
    table.rows.append(row)
    with pytest.raises(ValueError, match=r"boxes\.csv: " + message) as caught:
        table.load()
    assert "\n" not in str(caught.value)


BAD_CLASSES = {
    "header": ("class,id", r"line 3 is 'class,id'; write class,id, with ids from 0"),
    "no id": ("cow", r"line 3 is 'cow'; write class,id"),
    "too many": ("cow,2,3", r"line 3 is 'cow,2,3'; write class,id"),
    "no name": (",2", r"line 3 is ',2'; write class,id"),
    "negative": ("cow,-1", r"line 3 is 'cow,-1'; write class,id, with ids from 0"),
    "twin name": ("cat,2", r"line 3 gives class 'cat' a second time"),
    "twin id": ("cow,1", r"line 3 gives id 1 a second time"),
}


@pytest.mark.parametrize("kind", BAD_CLASSES)
def test_a_bad_class_is_refused_by_its_line(table, kind):
    row, message = BAD_CLASSES[kind]
    table.classes.append(row)
    with pytest.raises(ValueError, match=r"classes\.csv: " + message) as caught:
        table.load()
    assert "\n" not in str(caught.value)


def test_missing_empty_and_unreadable_files(table):
    folder = table.folder
    table.load()
    boxes, classes = folder / "boxes.csv", folder / "classes.csv"
    with pytest.raises(FileNotFoundError, match=r"none\.csv: there is no such CSV file"):
        CsvSource(folder / "none.csv", classes, "")
    with pytest.raises(FileNotFoundError, match=r"none\.csv: there is no such CSV file"):
        CsvSource(boxes, folder / "none.csv", "")
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder of pictures"):
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


def test_pictures_that_are_missing_or_none(table):
    table.rows.append("c.jpg,,,,,")
    with pytest.raises(FileNotFoundError, match=r"1 of 3 pictures of .*boxes\.csv .* \(c\.jpg\)"):
        table.load()
    (table.folder / "c.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"c\.jpg: the picture's size cannot .*no known picture"):
        table.load()
