"""CSV files are read unchanged, by their header, and invalid lines are refused by their number."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded_images import encode_image

from retinanet_jax.data.decoding import Decoding
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
    "too few": ("b.jpg,1,2,3,4", r"line 3 is 'b.jpg,1,2,3,4'; write path,x1,y1,x2,y2,class, with"),
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
    "repeated id with a zero": ("cow,01", r"line 3 repeats id 1; make names and ids unique"),
}


@pytest.mark.parametrize("case", INVALID_CLASSES)
def test_an_invalid_class_is_refused_by_its_line(table, case):
    line, message = INVALID_CLASSES[case]
    table.classes.append(line)
    with pytest.raises(ValueError, match=r"classes\.csv: " + message) as caught:
        table.load()
    assert "\n" not in str(caught.value)


# The same two boxes, of a dog in a.jpg and a cat in b.jpg, in the columns of several tools.
HEADERS = {
    "keras-retinanet": """path,x1,y1,x2,y2,class
        a.jpg,10,5,30,35,dog
        b.jpg,1,2,3,4,cat""",
    "other order and case, with spaces": """ Class , X1,x2,  Y1,Y2, Path
        dog, 10, 30, 5, 35, a.jpg
        cat, 1, 3, 2, 4, b.jpg""",
    "TensorFlow, Roboflow": """filename,width,height,class,xmin,ymin,xmax,ymax
        a.jpg,60,40,dog,10,5,30,35
        b.jpg,60,40,cat,1,2,3,4""",
    "DeepForest": """image_path,xmin,ymin,xmax,ymax,label
        a.jpg,10,5,30,35,dog
        b.jpg,1,2,3,4,cat""",
    "corner and sides": """image,x,y,w,h,label
        a.jpg,10,5,20,30,dog
        b.jpg,1,2,2,2,cat""",
    "makesense": """label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width
        dog,10,5,20,30,a.jpg,60
        cat,1,2,2,2,b.jpg,60""",
    "left and top": """file,left,top,width,height,category
        a.jpg,10,5,20,30,dog
        b.jpg,1,2,2,2,cat""",
    "OpenImages": """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf
        a,xclick,dog,1,0.16666666666666666,0.5,0.125,0.875,0,0
        b,xclick,cat,1,0.016666666666666666,0.05,0.05,0.1,-1,-1""",
    "index of pandas": """,path,x1,y1,x2,y2,class
        0,a.jpg,10,5,30,35,dog
        1,b.jpg,1,2,3,4,cat""",
    "semicolons and decimal commas": """path;x1;y1;x2;y2;class
        a.jpg;10,0;5;30;35,0;dog
        b.jpg;1;2;3;4;"cat"
        """,
    "semicolons without a header": "a.jpg;10;5;30;35;dog\nb.jpg;1;2;3;4;cat",
    "tabs": "path\tx1\ty1\tx2\ty2\tclass\na.jpg\t10\t5\t30\t35\tdog\nb.jpg\t1\t2\t3\t4\tcat",
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_columns_are_detected_by_the_header(table, case, encoding):
    lines = [line.strip(" ") for line in HEADERS[case].splitlines()]
    path = table.folder / "boxes.csv"
    path.write_bytes("\r\n".join(lines).encode(encoding))
    source = CsvSource(path)
    assert [tuple(category) for category in source.categories] == [(1, "cat"), (2, "dog")]
    assert list(source.file_names) == ["a.jpg", "b.jpg"]
    assert source.sizes.tolist() == [[40, 60], [40, 60]]
    np.testing.assert_allclose(source.annotations(0).boxes, [[5, 10, 35, 30]])
    np.testing.assert_allclose(source.annotations(1).boxes, [[2, 1, 4, 3]])
    assert source.objects.classes.tolist() == [1, 0]
    assert not source.objects.crowd.any()
    np.testing.assert_allclose(source.objects.areas, [600, 4])


def test_a_header_with_a_file_of_classes_has_the_ids_of_that_file(table):
    table.lines.insert(0, "path,x1,y1,x2,y2,class")
    source = table.load()
    assert [tuple(category) for category in source.categories] == [(0, "cat"), (1, "dog")]
    assert source.objects.ids.tolist() == [2, 3]  # lines


def test_names_of_openimages_come_from_its_class_descriptions(table):
    table.lines = [
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf",
        "a,/m/0bt9lr,0,0.5,0,0.25,1",
        "b,/m/01yrx,0,0.5,0,0.25,0",
    ]
    for first in ([], ["LabelName,DisplayName"]):
        table.classes = [*first, "/m/0bt9lr,Dog", '/m/01yrx,"Cat, or kitten"', "/m/0k4j,Car"]
        source = table.load()
        names = [tuple(category) for category in source.categories]
        assert names == [(1, "Dog"), (2, "Cat, or kitten"), (3, "Car")]
        assert source.objects.classes.tolist() == [0, 1]
        assert source.objects.crowd.tolist() == [True, False]
        assert source.objects.boxes.tolist() == [[0, 0, 10, 30], [0, 0, 10, 30]]


def test_given_categories_fix_the_ids(table):
    table.load()
    path = table.folder / "boxes.csv"
    source = CsvSource(path, categories=("dog", "cow", "cat"))
    assert [tuple(category) for category in source.categories] == [
        (1, "dog"),
        (2, "cow"),
        (3, "cat"),
    ]
    assert source.objects.classes.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"line 1 .* has the class 'dog', which data\.categories"):
        CsvSource(path, categories=("cow", "cat"))


def test_an_image_without_a_box_is_one_without_objects(table):
    table.lines = [
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        "a.jpg,,,,,,,",
        "b.jpg,60,40,,,,,",
    ]
    source = CsvSource(write_lines(table), categories=("cat",))
    assert list(source.file_names) == ["a.jpg", "b.jpg"]
    assert len(source.objects.ids) == 0
    assert source.sizes.tolist() == [[40, 60], [40, 60]]


def write_lines(table) -> pathlib.Path:
    path = table.folder / "boxes.csv"
    path.write_text("\n".join(table.lines))
    return path


def test_the_size_of_an_image_is_that_of_all_its_lines_and_of_the_image(table):
    table.lines = [
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        "a.jpg,40,60,cat,1,2,3,4",
        "a.jpg,60,40,cat,1,2,3,4",
    ]
    with pytest.raises(ValueError, match=r"line 3 \(a\.jpg\) has height and width 40 and 60, but"):
        CsvSource(write_lines(table))
    table.lines[2] = "b.jpg,60.0,40,cat,1,2,3,4"
    source = CsvSource(write_lines(table))
    assert source.sizes.tolist() == [[60, 40], [40, 60]]
    with pytest.raises(ValueError, match=r"a\.jpg: the image has height and width \(40, 60\), but"):
        source.image(0)


def test_exif_orientation_is_not_applied_to_sizes_where_it_is_ignored(table, encode):
    pixels = np.zeros((40, 60, 3), np.uint8)
    for file_format in ("JPEG", "PNG"):
        (table.folder / "a.jpg").write_bytes(encode(pixels, file_format, orientation=6))
        source = CsvSource(write_lines(table), decoding=Decoding(exif="ignored"))
        assert source.sizes.tolist() == [[40, 60], [40, 60]]
        assert source.image(0).shape == (40, 60, 3)


INVALID_HEADERS = {
    "without a class": ("image_id,width,height,bbox", "known are path,x1,y1,x2,y2,class; filename"),
    "center": ("image,x_center,y_center,width,height,label", "which is not known"),
    "four corners": ("image,x1,y1,x2,y2,x3,y3,x4,y4,label", "which is not known"),
    "rotated": ("image,x,y,w,h,angle,label", "which is not known"),
    "column twice": ("path,x1,y1,x1,y2,x2,class", "two columns x1"),
}


@pytest.mark.parametrize("case", INVALID_HEADERS)
def test_a_header_that_is_not_known_is_refused_with_those_that_are(table, case):
    header, message = INVALID_HEADERS[case]
    table.lines.insert(0, header)
    with pytest.raises(ValueError, match=r"boxes\.csv: line 1 has .*" + message) as caught:
        table.load()
    assert "\n" not in str(caught.value)


INVALID_ROWS = {
    "pixels": ("b,cat,10,30,0,1,0", r"line 2 \(b\) has XMin='10', not a fraction of the image"),
    "inverted": ("b,cat,0.5,0.2,0,1,0", r"has XMin=0.5 above XMax=0.2"),
    "no flag": ("b,cat,0,1,0,1,maybe", r"has IsGroupOf='maybe', neither 0 nor 1"),
    "short": ("b,cat,0,1,0", r"line 2 is 'b,cat,0,1,0'; write ImageID,LabelName,XMin,XMax"),
    "no class": ("b,,0,1,0,1,0", r"line 2 \(b\) has class='', not a name"),
    "quotation mark": ('b,"cat,0,1,0,1,0', r"line 2 is not CSV .*; correct its quotation marks"),
}


@pytest.mark.parametrize("case", INVALID_ROWS)
def test_an_invalid_line_after_a_header_is_refused_by_its_number(table, case):
    line, message = INVALID_ROWS[case]
    table.lines = ["ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf", line]
    with pytest.raises(ValueError, match=r"boxes\.csv: .*" + message) as caught:
        CsvSource(write_lines(table))
    assert "\n" not in str(caught.value)


def test_negative_sides_are_refused(table):
    table.lines = ["image,x,y,w,h,label", "a.jpg,10,5,-20,30,dog"]
    with pytest.raises(ValueError, match=r"line 2 \(a\.jpg\) has x,y,w,h=\[.* negative size"):
        CsvSource(write_lines(table))


FIELDS = st.sampled_from(
    ["", " ", "0", "-1", "1e3", "1e999", "nan", "1_0", "60,5", "0x10", "true", "cat", "a.jpg"]
)
FIELDS |= st.sampled_from(
    ["\u0661", "\u0130", "caf\u00e9", "cafe\u0301", "\0", '"', "'", ";", "\t"]
)
FIELDS |= st.sampled_from(["\r", "\n", "a;b"])
ROWS = [line.split(",") for line in ("path,x1,y1,x2,y2,class", "a.jpg,10,5,30,35,dog")]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_file_is_read_or_refused_in_one_line(table_of_examples, data):
    """Neither another exception nor a value that is not finite reaches the caller."""
    lines = [list(row) for row in [*ROWS, ROWS[1], ["b.jpg", "1", "2", "3", "4", "cat"]]]
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.sampled_from(lines))
        column = data.draw(st.integers(0, len(line)))
        line[column : column + data.draw(st.integers(0, 1))] = [data.draw(FIELDS)]
    table_of_examples.lines = [",".join(line) for line in data.draw(st.permutations(lines))]
    try:
        source = CsvSource(write_lines(table_of_examples))
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    else:
        message = ""
        assert np.isfinite(source.objects.boxes).all()
        assert all(category.name.strip() for category in source.categories)
    assert "\n" not in message
    assert len(message) < 700


@pytest.fixture(scope="module")
def table_of_examples(tmp_path_factory) -> Table:
    return Table(tmp_path_factory.mktemp("examples"), encode_image)


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
    with pytest.raises(ValueError, match=r"boxes\.csv: line 2 is not text in UTF-8"):
        CsvSource(boxes, classes, "")
    boxes.write_text("")
    with pytest.raises(ValueError, match=r"boxes\.csv: has no images"):
        CsvSource(boxes, classes, "")
    classes.write_text("\n")
    with pytest.raises(ValueError, match=r"classes\.csv: lists no classes"):
        CsvSource(boxes, classes, "")


def test_missing_and_invalid_images_are_refused(table):
    table.lines.append("c.jpg,,,,,")
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images of .*boxes\.csv .*c\.jpg"):
        table.load()
    (table.folder / "c.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"c\.jpg: .*unknown image format"):
        table.load()
