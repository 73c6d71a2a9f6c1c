"""What is unusual in files of annotations and images is named, or read as it is meant."""

import json

import numpy as np
import pytest
from PIL import Image

from retinanet_jax import datasets
from retinanet_jax.cli import predict
from retinanet_jax.data.image_files import read_image
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.detection import detect_dataset
from retinanet_jax.data.sources.split import split_by_groups
from retinanet_jax.data.sources.voc import VocSource

XML = (
    "<annotation><object><name>{name}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax>"
    "<ymax>20</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def warnings(caplog):
    """Return a function that returns the warnings that were logged as one text."""
    caplog.set_level("WARNING", logger="absl")
    return lambda: "\n".join(caplog.messages)


@pytest.fixture
def write_coco(tmp_path):
    """Return a function that writes images a.png, b.png, ... of an array, and a COCO file."""

    def write(count=3, categories=("cat",), file_name="{}.png", pixels=None):
        pixels = np.zeros((40, 50), np.uint8) if pixels is None else pixels
        letters = [chr(ord("a") + k) for k in range(count)]
        for letter in letters:
            Image.fromarray(pixels).save(tmp_path / f"{letter}.png")
        ids = range(1, count + 1)
        content = {
            "images": [
                {"id": k, "file_name": file_name.format(letter), "width": 50, "height": 40}
                for k, letter in zip(ids, letters, strict=True)
            ],
            "categories": [{"id": k, "name": name} for k, name in enumerate(categories, 1)],
            "annotations": [
                {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 2, 20, 30]} for k in ids
            ],
        }
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_categories_that_differ_in_letter_case_or_spaces_are_named(write_coco, tmp_path, warnings):
    CocoSource(write_coco(categories=("cat", "dog", "Cat", "c at")), tmp_path)
    assert "2 categories differ from another one only in letter case or spaces" in warnings()
    assert "'cat' and 'Cat'" in warnings()


def test_the_query_of_a_url_is_no_part_of_the_file_name(write_coco, tmp_path, warnings):
    path = write_coco(file_name="https://example.com/x/{}.png?width=50&v=2#top")
    assert CocoSource(path, tmp_path).file_names == ["a.png", "b.png", "c.png"]
    assert "3 file names match an image only" in warnings()


def test_a_run_names_images_that_are_nearly_black(write_coco, tmp_path, warnings):
    pixels = np.linspace(0, 4095, 2000).astype(np.uint16).reshape(40, 50)
    source = CocoSource(write_coco(pixels=pixels), tmp_path)
    datasets.check_images(source)
    assert "3 of 3 images of more than 8 bits a channel fill fewer than 7" in warnings()
    assert "set --config.data.value_range=0,4095" in warnings()


def test_predict_names_images_that_are_nearly_black(tmp_path, warnings):
    pixels = np.linspace(0, 4095, 2000).astype(np.uint16).reshape(40, 50)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    Image.new("RGB", (50, 40)).save(tmp_path / "plain.png")
    predict._warn_of_unfilled(sorted(tmp_path.glob("*.png")), "0,4095")
    assert warnings() == ""
    predict._warn_of_unfilled(sorted(tmp_path.glob("*.png")), "type")
    assert "1 of 1 images of more than 8 bits a channel fill fewer than 7" in warnings()
    assert "deep.png: values 0 to 4095, 4 bits" in warnings()


def test_images_that_are_all_alike_are_split_with_a_warning(write_coco, tmp_path, warnings):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    source = CocoSource(write_coco(count=4, pixels=pixels), tmp_path)
    parts = split_by_groups(source, 0.25, "auto", lambda done: None)
    assert [len(part) for part in parts] == [3, 1]
    assert "4 of 4 images are nearly identical to others" in warnings()


def test_categories_of_another_type_are_named(write_coco):
    path = write_coco()
    path.write_text(json.dumps({**json.loads(path.read_text()), "categories": None}))
    with pytest.raises(ValueError, match="not all of COCO's lists images, annotations and cat"):
        detect_dataset(path)


def test_orientations_that_nothing_shows_are_named(write_coco, tmp_path, warnings):
    path = write_coco()
    exif = Image.Exif()
    exif[274] = 3  # half a rotation, which exchanges no sides
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png", exif=exif)
    decoding = datasets.opening.Decoding(exif="auto")
    CocoSource(path, tmp_path, decoding=decoding)
    assert "1 with an orientation do not show it" in warnings()


def test_images_of_a_folder_without_xml_are_named(tmp_path, warnings):
    for letter in "abc":
        Image.new("RGB", (50, 40)).save(tmp_path / f"{letter}.png")
    (tmp_path / "a.xml").write_text(XML.format(name="cat"))
    assert len(VocSource(tmp_path, images=None, split="", categories=())) == 1
    assert "2 images have no XML file and are not read (first: b.png)" in warnings()


def test_xml_in_an_asian_encoding_is_detected(tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    text = '<?xml version="1.0" encoding="GBK"?>' + XML.format(name="猫")
    (tmp_path / "a.xml").write_bytes(text.encode("gbk"))
    assert detect_dataset(tmp_path).train["source"] == "voc"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"\0\0\0\x18ftypheic\0\0", "HEIF images require another package"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"<!doctype html><html>", "a web page"),
        (b"<svg/>", "SVG"),
        (b"\0\0\0\x1cftypqt  ", "is no image but a video"),
        (b"\x1aE\xdf\xa3\x01\0\0", "is no image but a video"),
    ],
)
def test_files_that_are_no_images_are_named(tmp_path, content, problem):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_image(path)
