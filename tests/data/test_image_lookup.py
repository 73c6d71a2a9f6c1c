"""A name in annotations means the same image on every operating system and in every folder."""

import functools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_jax.data.sources import image_lookup
from retinanet_jax.data.sources.image_lookup import (
    check_used_once,
    find_image_files,
    show_path,
    walk_files,
)


@pytest.fixture
def find(tmp_path):
    """Return `find(files, names)`, which searches names in a folder "images" with these files."""

    def find(files: list[str], names: list[str]) -> list[str]:
        folder = tmp_path / "images"
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        return find_image_files("boxes.json", folder, names)

    return find


COMPOSED, DECOMPOSED = "caf\u00e9.png", "cafe\u0301.png"
# What is in the folder "images", the name in the annotations, the file that it means, and why.
SPELLINGS = {
    "backslashes": ("cats/a.png", r"cats\a.png", r"with / for \\"),
    "backslashes of a file that was unpacked as one": (r"cats\a.png", "cats/a.png", r"with / for"),
    "percent": ("a b.png", "a%20b.png", "percent-decoded"),
    "percent in the folder": ("a%20b.png", "a b.png", "percent-decoded"),
    "composed": (DECOMPOSED, COMPOSED, "in another Unicode form"),
    "decomposed": (COMPOSED, DECOMPOSED, "in another Unicode form"),
    "case": ("Cats/a.PNG", "cats/A.png", "in another letter case"),
    "folder's own name": ("a.png", "images/a.png", "without the beginning of the path"),
    "absolute": ("cats/a.png", "/home/me/job/cats/a.png", "without the beginning of the path"),
    "drive": ("cats/a.png", "D:/job/cats/a.png", "without the beginning of the path"),
    "address": ("a.png", "https://host/bucket/a.png", "without the beginning of the path"),
    "another place": ("a.png", "../train/a.png", "without the beginning of the path"),
    "subfolder": ("cats/a.png", "a.png", "by the name of the file, in another folder"),
    "another folder": ("cats/a.png", "dogs/a.png", "by the name of the file, in another folder"),
    "no folder": ("a.png", "dogs/a.png", "by the name of the file, in another folder"),
    "suffix": ("a.jpeg", "a.jpg", "with another suffix"),
    "no suffix": ("2007.v1.png", "2007.v1", "with another suffix"),
    "drive, backslashes, case and percent": (
        "Cats/a b.png",
        r"C:\Job\cats\A%20B.png",
        r"with / for \\, percent-decoded, in another letter case, without the beginning",
    ),
    "suffix in another folder": (
        "cats/a.jpeg",
        r"dogs\A.JPG",
        r"by the name of the file, in another folder, with another suffix",
    ),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_another_spelling_finds_the_image_with_a_warning_of_its_cause(find, caplog, case):
    file, name, cause = SPELLINGS[case]
    files = [file, "other.png", "._a.png", ".DS_Store", "Thumbs.db"]
    assert find(files, ["other.png", name]) == ["other.png", file]
    (message,) = caplog.messages
    expected = f"boxes.json: 1 file names match an image only {cause}".replace("\\\\", "\\")
    assert message.startswith(expected)
    assert f"(first: {show_path(name)} -> {show_path(file)})" in message


def test_names_that_exist_are_unchanged_whatever_they_are(find, tmp_path, caplog):
    (tmp_path / "other.png").touch()
    names = [
        "a.png",
        "./a.png",
        "x/../a.png",
        "../other.png",
        str(tmp_path / "other.png"),
    ]
    names += [r"b\c.png", "100%25.png", "sub/._a.png"]
    assert find(["a.png", r"b\c.png", "100%25.png", "sub/._a.png", "100%.png"], names) == names
    assert not caplog.messages


def test_the_nearest_spelling_is_meant(find):
    files = [
        "cats/A.png",
        "cats/a.png",
        "a b.png",
        "A B.png",
        "c.png",
        "sub/c.png",
        "d.jpg",
        "D.png",
    ]
    names = [r"cats\a.png", r"cats\A.png", "a%20b.png", "images/c.png", "d.PNG"]
    expected = ["cats/a.png", "cats/A.png", "a b.png", "c.png", "D.png"]
    assert find(files, names) == expected


def test_every_cause_has_one_line_with_a_count_and_the_first_example(find, caplog):
    files = [f"s/{k}.png" for k in range(9)]
    find(files, [f"s\\{k}.png" for k in range(4)] + [f"s/{k}.PNG" for k in range(4, 9)])
    assert caplog.messages == [
        r"boxes.json: 4 file names match an image only with / for \ (first: s\0.png -> s/0.png).",
        "boxes.json: 5 file names match an image only in another letter case (first: s/4.PNG -> "
        "s/4.png).",
    ]


MISSING = {
    "nothing similar": (["b.png"], "a.png", r"a\.png\); the folder has 2 images, such as b\.png"),
    "only other files": (["a.txt"], "b.png", r"b\.png\); the folder has 1 images, such as z\.png"),
    "another suffix of no image": (["a.txt"], "a.png", r"a\.png\); the folder has 1 images"),
    "hidden": (["._a.png", "Thumbs.db"], "thumbs.db", "the folder has 1 images, such as z"),
    "hidden folder": ([".trash/a.png"], "a.png", "the folder has 1 images, such as z"),
    "two folders": (["b/a.png", "c/a.png"], "a.png", r"which may be b/a\.png or c/a\.png\); write"),
    "two cases": (["A.png", "a.png"], "a.PNG", r"which may be A\.png or a\.png\); write"),
    "two suffixes": (["a.jpg", "a.bmp"], "a.png", r"which may be a\.bmp or a\.jpg\); write"),
    "three": ([f"{k}/a.png" for k in range(3)], "a.png", r"may be 0/a\.png or 1/a\.png, \.\.\.\)"),
    # An image of the same name in another split is another image.
    "in a folder that exists": (["train/1.png", "val/2.png"], "val/1.png", r"val/1\.png\); the"),
    "empty": ([], "", r"first: \.?\); the folder"),
    "folder": (["a.png/b.png"], "a.png", "first: a.png"),
    "control characters": ([], "a\n\0.png", r"first: a\\n\\x00\.png"),
    "long": ([], "a" * 5000, r"first: \.\.\.a{57}\); the"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_name_without_a_file_or_with_several_is_refused_in_one_short_line(find, case):
    files, name, message = MISSING[case]
    with pytest.raises(FileNotFoundError, match=message) as caught:
        find(["z.png", *files], ["z.png", name, name])
    line = str(caught.value)
    assert "2 of 3 images of boxes.json are missing" in line
    assert "\n" not in line
    assert len(line) < 400


def test_names_in_a_sibling_of_the_folder_do_not_mean_files_in_the_folder(find, tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"first: val/1\.png"):
        find(["1.png"], ["val/1.png"])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder of images"):
        find_image_files("boxes.json", tmp_path / "nowhere", ["a.png"])


def test_links_are_followed_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "data/a.png").touch()
    (tmp_path / "images/train").symlink_to(tmp_path / "data")
    (tmp_path / "images/b.png").symlink_to(tmp_path / "data/a.png")
    (tmp_path / "data/loop").symlink_to(tmp_path / "images")
    assert sorted(walk_files(tmp_path / "images")) == ["b.png", "train/a.png"]
    names = ["b.png", "train/a.png", r"train\a.png"]
    existing_names = find_image_files("boxes.json", tmp_path / "images", names)
    assert existing_names == ["b.png", "train/a.png", "train/a.png"]


def test_a_file_of_two_entries_is_named_with_both(tmp_path):
    def label(index: int) -> str:
        return f"entry {index}"

    check_used_once("boxes.json", tmp_path, ["a.png", "b.png", "sub/a.png"], label)
    for again in ("a.png", "./a.png", "sub/../a.png", str(tmp_path / "a.png")):
        with pytest.raises(ValueError, match=r"file a\.png belongs to entry 0 and to entry 2;"):
            check_used_once("boxes.json", tmp_path, ["a.png", "b.png", again], label)
    with pytest.raises(ValueError, match="entry 0 and to entry 1, and 8 further entries repeat"):
        check_used_once("boxes.json", tmp_path, ["a.png"] * 10, label)


name = st.text("aB\u00e9\u00df %", min_size=1, max_size=3)
paths = st.lists(st.lists(name, min_size=1, max_size=3), min_size=1, max_size=4)
rewrite = st.sampled_from(
    (
        lambda path: path.replace("/", "\\"),
        lambda path: path.replace("%", "%25").replace(" ", "%20"),
        lambda path: unicodedata.normalize("NFD", path),
        str.upper,
    )
)


@settings(deadline=None, max_examples=60)
@given(
    parts=paths,
    prefix=st.sampled_from(("", "images/", "C:/job/images/", "/data/")),
    rewrites=st.lists(rewrite, max_size=4, unique=True),
)
def test_any_combination_of_spellings_finds_the_image(tmp_path_factory, parts, prefix, rewrites):
    folder = tmp_path_factory.mktemp("spellings") / "images"
    files = [f"{k}/{'/'.join(path)}.png" for k, path in enumerate(parts)]
    names = []
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
        names.append(functools.reduce(lambda path, change: change(path), rewrites, prefix + file))
    assert find_image_files("boxes.json", folder, names) == files


def test_each_folder_is_listed_once_however_many_names_it_has(find, monkeypatch):
    """Asking for each of 118,000 files takes minutes on network disks."""
    files = [f"{k % 3}/{k}.png" for k in range(300)]
    listed = []
    scandir = image_lookup.os.scandir
    monkeypatch.setattr(
        image_lookup.os, "scandir", lambda path: listed.append(path) or scandir(path)
    )
    assert find(files, files) == files
    assert len(listed) == 3
