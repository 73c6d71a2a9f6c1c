"""XML files, splits and folders of Pascal VOC as tools write them; invalid ones are refused."""

import pathlib

import numpy as np
import pytest
from voc_files import voc_object, voc_xml

from retinanet_jax.data.sources.voc import VocSource


def write_folder(folder: pathlib.Path, image: bytes, file_names: dict[str, str], *images: str):
    """Write an XML file for each stem, with a <filename>, and images of these names."""
    for stem, file_name in file_names.items():
        xml = voc_xml(voc_object("cat", 1, 1, 9, 9), file_name=file_name)
        (folder / f"{stem}.xml").write_text(xml)
    for name in images:
        (folder / name).write_bytes(image)
    return VocSource(folder, images=None, split="", categories=())


def test_an_image_has_the_stem_of_its_xml_before_the_given_filename(tmp_path, image, caplog):
    """Tools that rename files leave <filename> unchanged, and it may be another image's name."""
    names = {"a": "b.jpeg", "b": "gone.jpg", "c": "", "d": "b.jpeg", "e": "other.png"}
    images = ("a.jpg", "b.jpeg", "b.txt", "c.JPG", "d.png", "other.png", "._a.jpg")
    source = write_folder(tmp_path, image, names, *images)
    assert source.file_names == ["a.jpg", "b.jpeg", "c.JPG", "d.png", "other.png"]
    assert caplog.messages == [
        f"{tmp_path}: 2 XML files name another existing image in <filename> than the one of their "
        "own name, which is read (first: a.xml: a.jpg, not b.jpeg)."
    ]


def test_of_two_images_with_the_stem_of_an_xml_the_filename_decides(tmp_path, image):
    assert write_folder(tmp_path, image, {"a": "a.png"}, "a.jpg", "a.png").file_names == ["a.png"]


def test_hidden_files_of_macos_are_no_xml(tmp_path, image):
    for name in ("._a.xml", ".hidden.xml"):
        (tmp_path / name).write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    assert write_folder(tmp_path, image, {"a": ""}, "a.jpg").file_names == ["a.jpg"]


def test_images_are_in_the_only_folder_next_to_the_xml_that_has_all(tmp_path, image, caplog):
    def load():
        return VocSource(tmp_path / "xml", images=None, split="", categories=("cat",))

    folders = {
        "xml": ("a.xml", "b.xml"),
        "photos": ("a.jpg", "b.jpg", "c.jpg"),
        "masks": ("a.png", "b.png"),
        "some": ("a.jpg",),
        "another dataset": ("a.jpg", "b.jpg", "a.xml"),
    }
    for folder, names in folders.items():
        (tmp_path / folder).mkdir()
        for name in names:
            stem, suffix = name.split(".")
            is_xml = suffix == "xml"
            content = voc_xml(file_name=f"{stem}.jpg").encode() if is_xml else image
            (tmp_path / folder / name).write_bytes(content)
    source = load()
    assert source.file_names == ["a.jpg", "b.jpg"]
    assert source.read(0) == image
    assert caplog.messages == [
        f"{tmp_path}/xml: has no images; those in {tmp_path}/photos are read."
    ]
    (tmp_path / "some/b.jpg").write_bytes(image)
    with pytest.raises(
        ValueError, match=r"xml: has no images, and both .*/photos and .*/some have"
    ):
        load()
    (tmp_path / "xml/a.jpg").write_bytes(image)
    with pytest.raises(FileNotFoundError, match=r"xml: 1 of 2 .*\(first: b\.xml \(b\.jpg\)\); the"):
        load()


def test_a_split_may_have_flags_of_a_class_suffixes_paths_and_line_ends_of_windows(devkit):
    for name in ("a", "b b", "c.d", "e", "f 1"):
        devkit.add(name, voc_xml(voc_object("cat", 1, 1, 9, 9)))
    lines = ("a  1", "b b -1", "c.d", "data/JPEGImages/e.jpg", "f 1")
    split = devkit.root / "ImageSets/Main/cat_train.txt"
    split.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    expected = [f"{name}.jpg" for name in ("a", "b b", "c.d", "e", "f 1")]
    assert devkit.load(split="cat_train").file_names == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("1e1", "5.0", " 3.05e1 ", "35"), [5, 10, 35, 30.5]),
        (("10", "5", "10", "35"), None),  # no area
    ],
)
def test_coordinates_may_be_written_as_any_number(tmp_path, image, given, expected):
    xml = voc_xml(voc_object("cat", *given), size=("40.0", " 60 "))
    (tmp_path / "a.xml").write_text(xml)
    (tmp_path / "a.jpg").write_bytes(image)
    source = VocSource(tmp_path, images=None, split="", categories=())
    assert source.sizes.tolist() == [[40, 60]]
    assert source.annotations(0).boxes.tolist() == ([expected] if expected else [])
    assert len(source.objects.boxes) == 1


@pytest.mark.parametrize(("flag", "expected"), [("true", True), (" 1 ", True), ("False", False)])
def test_difficult_may_be_written_as_a_word(tmp_path, image, flag, expected):
    more = f"<difficult>{flag}</difficult>"
    (tmp_path / "a.xml").write_text(voc_xml(voc_object("cat", 1, 1, 9, 9, more=more)))
    (tmp_path / "a.jpg").write_bytes(image)
    source = VocSource(tmp_path, images=None, split="", categories=())
    assert source.objects.crowd.tolist() == [expected]


OUTLINES = {
    # The diagonal of a square with the side 10 has the length 14.142.
    "robndbox": (
        f"<robndbox><cx>30</cx><cy>20</cy><w>10</w><h>10</h><angle>{np.pi / 4}</angle></robndbox>",
        [20 - 7.071, 30 - 7.071, 20 + 7.071, 30 + 7.071],
    ),
    "robndbox ": (
        f"<robndbox><cx>30</cx><cy>20</cy><w>10</w><h>4</h><angle>{np.pi / 2}</angle></robndbox>",
        [15, 28, 25, 32],
    ),
    "polygon": (
        "<polygon><x1>5</x1><y1>9</y1><x2>12</x2><y2>3</y2><x3>8</x3><y3>4</y3></polygon>",
        [3, 5, 9, 12],
    ),
    "polygon ": (
        "<polygon><pt><x>5</x><y>9</y></pt><pt><x>12</x><y>3</y></pt><user>me</user></polygon>",
        [3, 5, 9, 12],
    ),
}


@pytest.mark.parametrize("case", OUTLINES)
def test_the_box_around_a_rotated_box_or_a_polygon_is_read_with_a_warning(
    tmp_path, image, caplog, case
):
    outline, expected = OUTLINES[case]
    other = f"<object><name>cat</name>{outline}</object>"
    (tmp_path / "a.xml").write_text(voc_xml(voc_object("cat", 1, 1, 9, 9), other, other))
    (tmp_path / "a.jpg").write_bytes(image)
    source = VocSource(tmp_path, images=None, split="", categories=())
    np.testing.assert_allclose(source.annotations(0).boxes[1], expected, atol=1e-3)
    assert f"2 objects have a <{case.strip()}> and no <bndbox>" in caplog.text
    assert "(first: object 2 of a.xml)" in caplog.text


def test_a_polygon_next_to_a_box_is_not_read(tmp_path, image, caplog):
    polygon = "<polygon><x1>0</x1><y1>0</y1></polygon>"
    (tmp_path / "a.xml").write_text(voc_xml(voc_object("cat", 1, 2, 9, 8, more=polygon)))
    (tmp_path / "a.jpg").write_bytes(image)
    source = VocSource(tmp_path, images=None, split="", categories=())
    assert source.annotations(0).boxes.tolist() == [[2, 1, 8, 9]]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("gbk", "gbk"),  # which expat does not know
        ("utf-16", "utf-16"),
        ("UTF-16", "utf-8"),  # by tools that write strings of .NET
        ("utf-8", "utf-8-sig"),
        ("", "utf-8"),
    ],
)
def test_xml_of_any_encoding_is_read(tmp_path, image, declared, encoding):
    declaration = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else "\n"
    xml = declaration + voc_xml(voc_object("\u732b", 1, 2, 9, 8))
    (tmp_path / "a.xml").write_bytes(xml.encode(encoding))
    (tmp_path / "a.jpg").write_bytes(image)
    source = VocSource(tmp_path, images=None, split="", categories=())
    assert [category.name for category in source.categories] == ["\u732b"]


def replace_corner(corner: str, text: str) -> str:
    good = voc_object("cat", 11, 6, 30, 35)
    start, end = good.index(f"<{corner}>"), good.index(f"</{corner}>")
    return voc_xml(voc_object("cat", 1, 1, 9, 9), f"{good[:start]}<{corner}>{text}{good[end:]}")


def remove_element(name: str) -> str:
    good = voc_object("cat", 11, 6, 30, 35)
    start, end = good.index(f"<{name}>"), good.index(f"</{name}>") + len(name) + 3
    return voc_xml(good[:start] + good[end:])


def sized(width: str) -> str:
    size = f"<size><width>{width}</width><height>9</height></size>"
    return f"<annotation>{size}</annotation>"


INVALID = {
    "truncated": ("<annotation><object>", r"b\.xml: is not XML \(no element found"),
    "empty": ("", r"b\.xml: is not XML"),
    "another format": ("<annotations></annotations>", r"b\.xml: begins with <annotations>, not"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "is not XML"),
    "an external entity": (
        '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
        "<annotation><filename>&x;</filename></annotation>",
        r"b\.xml: is not XML \(undefined entity",
    ),
    "not a number": (
        replace_corner("xmin", "left"),
        r"b\.xml: object 2 has xmin='left', not a finite",
    ),
    "not finite": (replace_corner("ymax", "nan"), r"b\.xml: object 2 has ymax='nan', not a finite"),
    "no text": (replace_corner("ymin", " "), r"b\.xml: object 2 has no <bndbox><ymin>; correct"),
    "inverted in x": (replace_corner("xmax", "10"), r"object 2 has xmin=11 above xmax=10; correct"),
    "inverted in y": (
        replace_corner("ymax", "5.5"),
        r"object 2 has ymin=6 above ymax=5\.5; correct",
    ),
    "two boxes": (
        voc_xml(voc_object("cat", 1, 1, 9, 9, more="<bndbox><xmin>1</xmin></bndbox>")),
        r"b\.xml: object 1 has 2 <bndbox>, of which one is expected",
    ),
    "an incomplete rotated box": (
        "<annotation><object><name>cat</name><robndbox><cx>1</cx></robndbox></object></annotation>",
        r"b\.xml: object 1 has no <robndbox><cy>; correct",
    ),
    "an angle in degrees": (
        voc_xml(
            "<object><name>cat</name><robndbox><cx>9</cx><cy>9</cy><w>5</w><h>2</h>"
            "<angle>90</angle></robndbox></object>"
        ),
        r"object 1 has <robndbox> of w=5, h=2 and angle=90 in radians",
    ),
    "a polygon without points": (
        voc_xml("<object><name>cat</name><polygon><x1>3</x1></polygon></object>"),
        r"object 1 has <polygon> of 1 x and 0 y",
    ),
    "fraction of a pixel": (sized("60.5"), r"b\.xml has width='60\.5', not an integer"),
    "no name": (remove_element("name"), r"b\.xml: object 1 has no <name>; correct"),
    "no box": (remove_element("bndbox"), r"b\.xml: object 1 has no <bndbox><xmin>"),
    "no corner": (remove_element("xmax"), r"b\.xml: object 1 has no <bndbox><xmax>"),
    "difficult is neither 0 nor 1": (
        voc_xml(voc_object("cat", 1, 1, 9, 9, more="<difficult>maybe</difficult>")),
        r"b\.xml: object 1 has difficult='maybe', neither 0 nor 1",
    ),
    "size as text": (sized("wide"), r"b\.xml has width='wide', not an integer"),
    "negative size": (sized("-5"), r"b\.xml has width='-5', not from 1 to"),
    "unknown name": (
        voc_xml(voc_object("cow", 1, 1, 9, 9)),
        r"b\.xml: has an object 'cow', but the categories are cat, dog; correct it, or add it",
    ),
}


@pytest.mark.parametrize("layout", ["load", "load_side_by_side"])
@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_xml_is_refused_by_name_in_one_line(devkit, case, layout):
    xml, message = INVALID[case]
    devkit.add("a", voc_xml(voc_object("cat", 1, 1, 9, 9)))
    devkit.add("b", xml)
    with pytest.raises(ValueError, match=message) as caught:
        getattr(devkit, layout)(categories=("cat", "dog"))
    assert "\n" not in str(caught.value)
