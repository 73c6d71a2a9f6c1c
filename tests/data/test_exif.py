"""Whether boxes were drawn with EXIF applied is decided by the images of a dataset that show it."""

import json

import numpy as np
import pytest

from retinanet_jax.data.decoding import Decoding
from retinanet_jax.data.sources import image_folder
from retinanet_jax.data.sources.base import subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.data.sources.exif import decide_exif
from retinanet_jax.data.sources.image_headers import ImageHeader, read_headers
from retinanet_jax.data.sources.merged import merge
from retinanet_jax.data.sources.objects import ObjectList
from retinanet_jax.data.sources.voc import VocSource

STORED = (20, 30)  # height and width
AUTO = Decoding(exif="auto")


def decide(*images: tuple[int, tuple[int, int]], boxes=()) -> tuple:
    """Return the decision about images of (orientation, declared size), all stored as STORED."""
    headers = {k: ImageHeader(STORED, orientation) for k, (orientation, _) in enumerate(images)}
    sizes = np.array([size for _, size in images], np.int32)
    objects = ObjectList()
    for k, box in boxes:
        objects.append(1, k, 0, box)
    return tuple(decide_exif(headers, sizes, objects.to_objects()))


def test_images_that_fit_only_one_way_decide():
    assert decide((6, (30, 20)), (8, (30, 20)), (1, STORED)) == ("applied", 2, 0, 0, 3)
    assert decide((6, STORED), (5, STORED), (1, STORED)) == ("ignored", 0, 2, 0, 3)


def test_half_rotations_square_images_and_other_sizes_show_nothing():
    unknown = [(orientation, STORED) for orientation in (2, 3, 4)] + [(6, (7, 7))]
    assert decide(*unknown) == ("applied", 0, 0, 4, 4)
    assert decide(*unknown, (7, STORED)) == ("ignored", 0, 1, 4, 5)
    square = {0: ImageHeader((20, 20), 6)}
    sizes, no_objects = np.full((1, 2), 20), ObjectList().to_objects()
    assert decide_exif(square, sizes, no_objects) == ("applied", 0, 0, 1, 1)


def test_the_majority_decides_and_applied_if_there_is_none():
    assert decide((6, STORED), (6, STORED), (6, (30, 20))) == ("ignored", 1, 2, 0, 3)
    assert decide((6, STORED), (6, (30, 20))) == ("applied", 1, 1, 0, 2)


def test_without_a_declared_size_boxes_that_fit_only_one_way_decide():
    wide, tall, small = (0.0, 0.0, 20.5, 30.5), (0.0, 0.0, 30.0, 20.0), (0.0, 0.0, 10.0, 10.0)
    unknown = (6, (0, 0))
    assert decide(unknown, boxes=[(0, wide), (0, small)]) == ("ignored", 0, 1, 0, 1)
    assert decide(unknown, unknown, boxes=[(1, tall)]) == ("applied", 1, 0, 1, 2)
    assert decide(unknown, boxes=[(0, small)]) == ("applied", 0, 0, 1, 1)
    assert decide(unknown, boxes=[(0, wide), (0, tall)]) == ("applied", 0, 0, 1, 1)


@pytest.fixture
def pixels() -> np.ndarray:
    """Return an image with a white corner."""
    image = np.zeros((*STORED, 3), np.uint8)
    image[:10, :10] = 255
    return image


def write_xml(folder, name, data, size, box=(1, 1, 9, 9)):
    """Write an image and its XML; without a size if it is None."""
    (folder / f"{name}.jpg").write_bytes(data)
    sized = f"<size><height>{size[0]}</height><width>{size[1]}</width></size>" if size else ""
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bndbox = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
    (folder / f"{name}.xml").write_text(
        f"<annotation>{sized}<object><name>cat</name><bndbox>{bndbox}</bndbox></object></annotation>"
    )


def load(folder, exif="auto") -> VocSource:
    decoding = Decoding(exif=exif)
    return VocSource(folder, images=None, split="", categories=(), decoding=decoding)


def is_rotated(source, index) -> bool:
    """Return whether the white corner is no more at the top left."""
    return source.image(index)[5, 5, 0] < 128


def test_half_rotations_are_read_as_the_other_images_of_the_dataset_show(
    tmp_path, encode, pixels, caplog
):
    for name, orientation in (("a", 1), ("b", 3), ("c", 6)):
        write_xml(tmp_path, name, encode(pixels, "JPEG", orientation=orientation), STORED)
    source = load(tmp_path)
    assert source.decoding == Decoding(exif="ignored")
    assert [is_rotated(source, index) for index in range(3)] == [False, False, False]
    assert source.exif_decisions == (("ignored", 0, 1, 1, 3),)
    assert caplog.messages == [
        f"{tmp_path}: boxes are read as drawn on images without their EXIF orientation: 0 images "
        "show that it was applied, 1 that it was not, and 1 with an orientation do not show it (of "
        "3 examined)."
    ]
    caplog.clear()
    write_xml(tmp_path, "c", encode(pixels, "JPEG", orientation=6), STORED[::-1])
    source = load(tmp_path)
    assert [is_rotated(source, index) for index in range(3)] == [False, True, True]
    assert source.exif_decisions == (("applied", 1, 0, 1, 3),)
    assert not caplog.messages


def test_an_image_that_contradicts_the_others_is_read_by_its_own_size(
    tmp_path, encode, pixels, caplog
):
    sizes = {"a": STORED, "b": STORED, "c": STORED[::-1]}
    for name, size in sizes.items():
        write_xml(tmp_path, name, encode(pixels, "JPEG", orientation=6), size)
    write_xml(tmp_path, "d", encode(pixels, "JPEG", orientation=3), STORED)
    source = load(tmp_path)
    assert source.exif_decisions == (("ignored", 1, 2, 1, 4),)
    assert [is_rotated(source, index) for index in range(4)] == [False, False, True, False]
    assert "1 images show that it was applied, 2 that it was not" in caplog.text


def test_the_config_decides_before_the_images(tmp_path, encode, pixels):
    for name, orientation in (("a", 3), ("b", 6)):
        write_xml(tmp_path, name, encode(pixels, "JPEG", orientation=orientation), STORED)
    for exif, rotated in (("applied", [True, False]), ("ignored", [False, False])):
        source = load(tmp_path, exif)
        assert source.exif_decisions == ()
        assert [is_rotated(source, index) for index in range(2)] == rotated


@pytest.mark.parametrize("exif", ["auto", "applied", "ignored"])
def test_a_size_in_no_annotation_is_that_of_the_decoded_image(tmp_path, encode, pixels, exif):
    write_xml(tmp_path, "a", encode(pixels, "JPEG", orientation=6), STORED)
    for k, file_format in enumerate(("JPEG", "PNG", "WEBP", "TIFF")):
        data = encode(pixels, file_format, orientation=8)
        write_xml(tmp_path, f"b{k}", data, None)
    source = load(tmp_path, exif)
    expected = STORED if exif != "applied" else STORED[::-1]
    # Pillow applies the orientation of TIFF itself.
    assert source.sizes.tolist() == [list(size) for size in (STORED, *[expected] * 3, (30, 20))]
    for index in range(5):
        assert source.image(index).shape[:2] == tuple(source.sizes[index])


def test_boxes_decide_for_images_without_a_declared_size(tmp_path, encode, pixels):
    write_xml(tmp_path, "a", encode(pixels, "JPEG", orientation=6), None, box=(1, 1, 29, 19))
    write_xml(tmp_path, "b", encode(pixels, "JPEG", orientation=3), None)
    source = load(tmp_path)
    assert source.exif_decisions == (("ignored", 0, 1, 1, 2),)
    assert source.sizes.tolist() == [list(STORED)] * 2
    assert source.annotations(0).boxes.tolist() == [[1, 1, 19, 29]]


def test_only_some_headers_of_a_large_dataset_are_read_and_evenly(tmp_path, encode, monkeypatch):
    (tmp_path / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for k in range(20):
        name = {"id": k, "file_name": f"{k}.jpg", "height": 20, "width": 30}
        content["images"].append(name)
        (tmp_path / f"images/{k}.jpg").touch()  # no image, which is reported later
    for k in (0, 19):
        data = encode(np.zeros((20, 30, 3), np.uint8), "JPEG", orientation=6)
        (tmp_path / f"images/{k}.jpg").write_bytes(data)
    (tmp_path / "a.json").write_text(json.dumps(content))
    read = []

    def record(folder, file_names):
        read.extend(file_names)
        return read_headers(folder, file_names)

    monkeypatch.setattr(image_folder, "read_headers", record)
    monkeypatch.setattr(image_folder, "MAX_EXAMINED", 4)
    source = CocoSource(tmp_path / "a.json", tmp_path / "images", decoding=AUTO)
    assert read == ["0.jpg", "6.jpg", "12.jpg", "19.jpg"]
    assert source.exif_decisions == (("ignored", 0, 2, 0, 2),)
    read.clear()
    CocoSource(tmp_path / "a.json", tmp_path / "images")
    assert read == []


def test_parts_and_unions_of_datasets_keep_the_decisions(tmp_path, encode, pixels):
    folders = [tmp_path / name for name in ("stored", "oriented")]
    for folder, size in zip(folders, (STORED, STORED[::-1]), strict=True):
        folder.mkdir()
        write_xml(folder, "a", encode(pixels, "JPEG", orientation=6), size)
        write_xml(folder, "b", encode(pixels, "JPEG", orientation=3), STORED)
    sources = [load(folder) for folder in folders]
    merged = merge(sources)
    assert [decision.exif for decision in merged.exif_decisions] == ["ignored", "applied"]
    assert [is_rotated(merged, index) for index in range(4)] == [False, False, True, True]
    part = subset(sources[0], [1])
    assert part.exif_decisions == sources[0].exif_decisions
    assert not is_rotated(part, 0)


@pytest.mark.parametrize("profile", [b"", np.random.default_rng(0).bytes(300_000)])
@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
def test_the_orientation_of_a_png_is_read_without_decoding(tmp_path, encode, profile, place):
    """Some tools write it at the end, and others after a color profile of any size."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    data = encode(noise, "PNG", orientation=6, icc_profile=profile or None)
    plain = encode(noise, "PNG", icc_profile=profile or None)
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + len(data) - len(plain)]
    if place == "after the pixels":
        data = plain[:-12] + chunk + plain[-12:]
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(plain)
    headers = list(read_headers(tmp_path, ["a.png", "b.png"]))
    assert headers == [ImageHeader((200, 300), 6), ImageHeader((200, 300), 1)]
