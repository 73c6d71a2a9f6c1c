"""Image files are found by path, in folders and by pattern, as in a shell."""

import pathlib

import pytest
from PIL import Image

from retinanet_jax.data.image_files import find_images


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
    assert matches(str(folder)) == ["a.png", "b.JPG", "deep/a.jpg", "odd[1].png"]
    with pytest.raises(FileNotFoundError, match=r"\*\.gif: no such image or folder"):
        matches(f"{folder}/*.gif")
