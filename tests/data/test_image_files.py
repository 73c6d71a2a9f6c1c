"""Image files are found as in a shell; images of all types are read, others are errors."""

import io
import os
import pathlib
import re
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from retinanet_jax.data.image_files import find_images, image_name, is_single_image, read_image
from retinanet_jax.utils.output_folder import OutputFolder


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Return a folder with three images, one of which is in a subfolder, and a text file."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "deep/a.jpg"):
        Image.new("RGB", (60, 40)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_folders_are_searched_recursively(folder):
    paths = find_images([str(folder)])
    assert [str(p.relative_to(folder)) for p in paths] == ["a.png", "b.JPG", "deep/a.jpg"]
    # A path of a file may have any suffix.
    notes = folder / "notes.txt"
    assert find_images([str(notes), str(folder / "a.png")]) == [notes, folder / "a.png"]


def test_a_folders_images_are_those_that_can_be_read_whatever_their_suffix(folder):
    names = ("photo", "upload.bin", "scan.jp2", "b.webp")
    for name, file_format in zip(names, ("JPEG", "PNG", "JPEG2000", "WEBP"), strict=True):
        Image.new("RGB", (60, 40)).save(folder / name, file_format)
    taken = ["a.png", "b.JPG", "b.webp", "deep/a.jpg", "photo", "scan.jp2", "upload.bin"]
    assert [str(p.relative_to(folder)) for p in find_images([str(folder)])] == taken


def test_what_is_passed_over_in_a_folder_is_counted_and_named(folder):
    lines: list[str] = []
    images = find_images([str(folder)], report=lines.append)
    reasons = "hidden, written by an earlier run, or no image"
    assert lines == [f"passed over 1 file that is {reasons}: notes.txt"]
    # What an operating system adds is not worth a word, and hidden folders are not searched.
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "__MACOSX/a.png", ".cache/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    assert find_images([str(folder)], report=lines.append) == images
    assert lines.pop() == lines[0]
    for name in (".a.png", "labels.json", "manual.pdf", "raw.nef"):
        (folder / name).write_bytes((folder / "a.png").read_bytes()[:1])
    assert find_images([str(folder)] * 2, report=lines.append) == images
    others = f"passed over 5 files that are {reasons}: .a.png, labels.json, manual.pdf, ..."
    assert lines.pop() == others
    # A file that is given is always taken.
    hidden = folder / ".a.png"
    assert find_images([str(hidden), str(folder)]) == [hidden, *images]
    assert find_images([str(folder), str(hidden)]) == [hidden, *images]


def test_what_an_earlier_run_wrote_is_no_image_of_its_folder(folder):
    """But what the user put there or changed is one."""
    before = find_images([str(folder)])
    for output in (OutputFolder(folder), OutputFolder(folder / "out")):
        output.prepare()
        output.write("drawing.jpg", before[0].read_bytes())
        output.write("crops/dog/changed.jpg", before[0].read_bytes())
        output.link("links/link.png", before[0])
        (output.path / "crops/dog/changed.jpg").write_bytes(before[-1].read_bytes())
    changed = [folder / "crops/dog/changed.jpg", folder / "out/crops/dog/changed.jpg"]
    assert sorted(find_images([str(folder)])) == sorted([*before, *changed])
    assert len(find_images([str(folder / "out/*.jpg")])) == 1


def test_a_folder_without_an_image_names_what_it_contains(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(
        FileNotFoundError, match=r"no image in .* \(passed over 1 file .*: a\.txt\)"
    ):
        find_images([str(tmp_path)])


def test_patterns_are_expanded_as_in_a_shell(folder):
    def matches(*paths):
        return [str(p.relative_to(folder)) for p in find_images(paths)]

    assert matches(f"{folder}/*.png") == ["a.png"]
    assert matches(f"{folder}/*") == ["a.png", "b.JPG", "deep/a.jpg", "notes.txt"]
    # An image that matches several times is returned once.
    assert matches(f"{folder}/**/a.*", f"{folder}/a.png") == ["a.png", "deep/a.jpg"]
    (folder / "odd[1].png").write_bytes((folder / "a.png").read_bytes())
    assert matches(f"{folder}/odd[1].png") == ["odd[1].png"]
    (folder / "folder.png").mkdir()
    (folder / "folder.png/c.png").write_bytes((folder / "a.png").read_bytes())
    inside = ["a.png", "b.JPG", "deep/a.jpg", "folder.png/c.png", "odd[1].png"]
    assert matches(str(folder)) == inside
    with pytest.raises(FileNotFoundError, match=r"\*\.gif: no such image or folder"):
        matches(f"{folder}/*.gif")


def test_a_path_may_begin_with_a_tilde_and_no_users_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (4, 3)).save("~$a.png")
    assert find_images(["~$a.png"]) == [pathlib.Path("~$a.png")]
    assert find_images(["~/~$a.png"]) == [tmp_path / "~$a.png"]
    assert read_image("~$a.png").shape == read_image("~/~$a.png").shape == (3, 4, 3)
    with pytest.raises(ValueError, match=r"^~nobody/a\.png: cannot be read .No such file"):
        read_image("~nobody/a.png")


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def memory_map(folder: pathlib.Path, pixels: np.ndarray) -> np.memmap:
    """Return a memory map with the content of an array."""
    mapped = np.memmap(folder / "pixels.raw", pixels.dtype, "w+", shape=pixels.shape)
    mapped[:] = pixels
    return mapped


class PathOfBytes:
    """A path as some libraries return it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


class ArrayOnDevice:
    """An array that numpy cannot read, like a tensor of PyTorch on a GPU."""

    ndim = 3

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu()")


@pytest.fixture
def pixels_file(tmp_path) -> pathlib.Path:
    """Return the path of a PNG with PIXELS."""
    Image.fromarray(PIXELS).save(tmp_path / "pixels.png")
    return tmp_path / "pixels.png"


def test_all_image_types_have_the_same_pixels(pixels_file, tmp_path):
    read_only = PIXELS.copy()
    read_only.flags.writeable = False
    images = [
        *(str(pixels_file), pixels_file, PathOfBytes(pixels_file)),
        io.BytesIO(pixels_file.read_bytes()),
        *(Image.open(pixels_file), Image.open(os.fsencode(pixels_file)), Image.fromarray(PIXELS)),
        *(PIXELS, PIXELS[::-1, :, ::-1].copy()[::-1, :, ::-1], np.asfortranarray(PIXELS)),
        *(np.repeat(PIXELS, 2, axis=1)[:, ::2], read_only, memory_map(tmp_path, PIXELS)),
        *(np.ma.array(PIXELS), jnp.array(PIXELS), memoryview(PIXELS)),
    ]
    for image in images:
        np.testing.assert_array_equal(read_image(image), PIXELS)
    gray = np.stack([PIXELS[..., 0]] * 3, axis=-1)
    for image in (PIXELS[..., 0], memory_map(tmp_path, PIXELS[..., 0]), jnp.array(PIXELS[..., 0])):
        np.testing.assert_array_equal(read_image(image), gray)


def test_what_is_no_image_is_an_error_of_one_line_with_its_name(pixels_file, tmp_path):
    floats = np.zeros((4, 5, 3), np.float32)
    closed, closed_file = Image.fromarray(PIXELS), Image.open(pixels_file)
    closed.close()
    closed_file.close()
    with tempfile.TemporaryFile() as opened:
        opened.write(floats.tobytes())
        unnamed_map = np.memmap(opened, floats.dtype, "r", shape=floats.shape)
    no_file = "No such file or directory"
    errors = [
        (
            floats,
            "the image: this array of float32 (4, 5, 3) is not an image; give uint8 or uint16 (h",
        ),
        (memory_map(tmp_path, floats), f"{tmp_path}/pixels.raw: this array of float32 (4, 5, 3)"),
        (memory_map(tmp_path, floats)[0], f"{tmp_path}/pixels.raw: this array of float32 (5, 3)"),
        (unnamed_map, "the image: this array of float32"),
        (jnp.zeros((4, 5, 3)), "the image: this array of float32 (4, 5, 3)"),
        (np.zeros((2, 4, 5, 3), np.uint8), "the image: this array of uint8 (2, 4, 5, 3)"),
        (np.zeros((4, 5, 4), np.uint8), "the image: this array of uint8 (4, 5, 4)"),
        (np.zeros((4, 0, 3), np.uint8), "the image: this array of uint8 (4, 0, 3)"),
        (np.zeros((4, 5), "V3"), "the image: this array of |V3 (4, 5)"),
        (ArrayOnDevice(), "the image: numpy cannot convert this ArrayOnDevice to an array (can't"),
        ([[1, 2], [3]], "the image: numpy cannot convert this list to an array (setting an"),
        (["a.jpg", "b.jpg"], "the image: this list is not an image; give"),
        (None, "the image: this NoneType is not an image"),
        (pixels_file.read_bytes(), "the image: this bytes is not an image"),
        (io.BytesIO(), "the image: the file is empty"),
        (closed, "the image: cannot be read (Operation on closed image)."),
        (closed_file, f"{pixels_file}: cannot be read (Operation on closed image)."),
        (Image.new("RGB", (0, 5)), "the image: has no pixels (0 x 5)."),
        (Image.new("La", (4, 5)), "the image: has pixels of Pillow's mode La, which cannot be con"),
        (Image.new("F", (4, 5)), "the image: has floating-point pixels"),
        (tmp_path, f"{tmp_path}: cannot be read (Is a directory)."),
        ("", "the image: cannot be read (Is a directory)."),
        ("a\0b", "a\0b: cannot be read (embedded null byte)."),
        (PathOfBytes(tmp_path / "c.png"), f"{tmp_path}/c.png: cannot be read ({no_file})."),
    ]
    for image, message in errors:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
            read_image(image)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(f"{image_name(image)}: ")


def test_a_single_image_is_not_a_list_of_images(pixels_file, tmp_path):
    with pixels_file.open("rb") as opened, Image.open(pixels_file) as image:
        single = [
            *(str(pixels_file), pixels_file, os.fsencode(pixels_file), opened, io.BytesIO(), image),
            *(PIXELS, PIXELS[..., 0], jnp.array(PIXELS), memory_map(tmp_path, PIXELS)),
            *(ArrayOnDevice(), np.array("a.jpg"), memoryview(PIXELS), bytearray(b"a.jpg")),
        ]
        assert all(map(is_single_image, single))
    several = [[], [PIXELS], (pixels_file,), iter([image]), {"a.jpg": 0}, np.array(["a.jpg"])]
    several += [PIXELS[None], jnp.array(PIXELS)[None], memory_map(tmp_path, PIXELS[None])]
    assert not any(map(is_single_image, several))
