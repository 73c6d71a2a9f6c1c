"""Files are written completely or not at all, and replace only what was written before."""

import contextlib
import json
import os
import pathlib
import resource
import threading

import pytest

from retinanet_jax.utils import files, output_folder
from retinanet_jax.utils.files import check_absent, write_atomically, write_folder, write_json
from retinanet_jax.utils.output_folder import OutputFolder
from retinanet_jax.utils.run_lock import RunLock


def full_disk(*_):
    raise OSError(28, "No space left on device")


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Return the text of each file in a folder, without the record of what was written."""
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != output_folder.RECORD}


def test_a_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"AP": 0.5, "APs": None})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range float"):
            write_json(path, {"AP": value})
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {})
    assert json.loads(path.read_text()) == {"AP": 0.5, "APs": None}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_writing_a_file_touches_no_other_file(tmp_path):
    """Whatever the user calls it, and however long the file's name is."""
    long_name = "x" * 251 + ".jpg"
    others = {f"{name}{suffix}": "mine" for name in ("a", "b.jpg") for suffix in (".partial", "~")}
    for name, content in others.items():
        (tmp_path / name).write_text(content)
    for name in ("a", "b.jpg", long_name):
        write_atomically(tmp_path / name, "ours")
    assert contents(tmp_path) == others | {"a": "ours", "b.jpg": "ours", long_name: "ours"}
    mask = os.umask(0o022)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_output_folder_replaces_what_it_wrote_and_nothing_else(tmp_path):
    folder = tmp_path / "out"
    OutputFolder(folder).prepare("a", "b")
    assert contents(folder) == {}
    OutputFolder(folder).write("a", "first")
    OutputFolder(folder).write("a", b"second")  # in a later run
    (folder / "b").write_text("mine")
    (folder / "c").symlink_to(folder / "a")
    output = OutputFolder(folder)
    output.write("d", "third")
    (folder / "d").write_text("changed")
    (folder / "e").mkdir()
    (folder / "f").write_text("second")  # what was written, but under another name
    for name in "bcdef":
        message = rf"/out/{name} is not replaced, because .* give another folder\.$"
        for operation in (output.prepare, lambda name: output.write(name, "ours")):
            with pytest.raises(FileExistsError, match=message):
                operation(name)
    output.prepare("a", "g")
    (folder / "e").rmdir()
    assert contents(folder) == {
        "a": "second", "b": "mine", "c": "second", "d": "changed", "f": "second"
    }  # fmt: skip


def test_a_file_that_was_removed_or_restored_may_be_written(tmp_path):
    output = OutputFolder(tmp_path)
    output.write("a", "first")
    output.write("a", "second")
    (tmp_path / "a").write_text("first")  # from a backup
    output.write("a", "third")
    (tmp_path / "a").unlink()
    output.write("a", "fourth")
    assert contents(tmp_path) == {"a": "fourth"}


def test_a_file_that_was_moved_and_linked_is_not_replaced(tmp_path):
    output = OutputFolder(tmp_path)
    output.write("a", "first")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").symlink_to("b")
    with pytest.raises(FileExistsError, match="/a is not replaced"):
        output.write("a", "second")
    assert contents(tmp_path) == {"a": "first", "b": "first"}


def test_a_run_that_was_killed_while_it_wrote_can_be_repeated(tmp_path, monkeypatch):
    """Between the record and the file, and within a line of the record."""
    output = OutputFolder(tmp_path)
    output.write("a", "first")
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            output.write("a", "second")
    with (tmp_path / output_folder.RECORD).open("a") as record:
        record.write('\n{"file": "b", "sha2')
    output = OutputFolder(tmp_path)
    output.write("a", "third")
    OutputFolder(tmp_path).write("a", "fourth")
    assert contents(tmp_path) == {"a": "fourth"}


def test_a_subfolder_is_cleared_of_what_was_written_and_of_nothing_else(tmp_path):
    output = OutputFolder(tmp_path)
    output.clear("sub")
    for name in ("sub/a", "sub/deep/b", "c"):
        output.write(name, name)
    (tmp_path / "sub/mine").symlink_to(tmp_path / "sub/a")
    with pytest.raises(FileExistsError, match="/sub/mine is not replaced"):
        output.clear("sub")
    assert (tmp_path / "sub/deep/b").read_text() == "sub/deep/b"
    (tmp_path / "sub/mine").unlink()
    (tmp_path / "sub/.DS_Store").write_text("the system's")
    OutputFolder(tmp_path).clear("sub")
    remaining = sorted(path.name for path in tmp_path.rglob("*") if not path.is_dir())
    assert remaining == [".DS_Store", output_folder.RECORD, "c"]


def test_a_file_in_place_of_a_folder_is_an_error_before_any_work(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError, match="/taken is not replaced"):
        OutputFolder(tmp_path).clear("taken")
    for folder, name in (("taken", "a"), ("taken/deep", "a"), (".", "taken/a.txt")):
        with pytest.raises(NotADirectoryError, match=r"file in place of this folder.*/taken'$"):
            OutputFolder(tmp_path / folder).prepare(name)


def test_a_link_of_an_output_folder_is_replaced_and_one_of_the_user_is_not(tmp_path):
    """It leads to the file also where the folder itself is a link."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a").write_text("a")
    (tmp_path / "photos/b").symlink_to("a")
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to("elsewhere/deep")
    for name in "ab":
        OutputFolder(tmp_path / "out").link("sub/c", tmp_path / "photos" / name)
        target = pathlib.Path("../../../photos") / name
        assert (tmp_path / "elsewhere/deep/sub/c").readlink() == target
        assert (tmp_path / "out/sub/c").read_text() == "a"
    output = OutputFolder(tmp_path / "out")
    output.link("sub/c", tmp_path / "out/sub/c")  # the file itself
    assert (tmp_path / "out/sub/c").read_text() == "a"
    output.write("sub/c", "text")
    (tmp_path / "out/sub/c").unlink()
    (tmp_path / "out/sub/c").symlink_to(tmp_path / "photos/a")
    with pytest.raises(FileExistsError, match="/sub/c is not replaced"):
        output.link("sub/c", tmp_path / "photos/b")
    assert (tmp_path / "photos/a").read_text() == "a"


def test_a_draft_has_its_name_when_it_is_complete(tmp_path):
    folder = OutputFolder(tmp_path)
    for content in ("first", "second"):  # the second one replaces the first one
        with folder.draft("a") as path:
            path.write_text(content)
            assert path.name != "a"
        assert contents(tmp_path) == {"a": content}
    with folder.draft("b"):
        pass  # nothing is written
    assert contents(tmp_path) == {"a": "second"}


def fail_after(folder: OutputFolder, name: str, error: Exception) -> None:
    with folder.draft(name) as path:
        path.write_text("half")
        raise error


def test_a_draft_with_an_error_leaves_nothing_behind(tmp_path):
    message = rf"^\[Errno 28\] No space left on device: '{tmp_path / 'a'}'$"
    with pytest.raises(OSError, match=message):
        fail_after(OutputFolder(tmp_path), "a", OSError(28, "No space left on device"))
    assert contents(tmp_path) == {}
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError, match="a is not replaced"):
        fail_after(OutputFolder(tmp_path), "a", AssertionError("too late"))
    assert contents(tmp_path) == {"a": "mine"}


@pytest.mark.parametrize(
    "line", [b"\xff\x00", b"[1]", b"7", b'{"file": [], "sha256": {}}', b'{"file": "a"}', b"{"]
)
def test_a_damaged_line_of_the_record_is_ignored(tmp_path, line):
    output = OutputFolder(tmp_path)
    output.write("a", "first")
    with (tmp_path / output_folder.RECORD).open("ab") as record:
        record.write(b"\n" + line)
    (tmp_path / "b").write_text("of the user")
    output = OutputFolder(tmp_path)
    output.write("a", "second")
    with pytest.raises(FileExistsError, match="b is not replaced"):
        output.prepare("b")
    assert contents(tmp_path) == {"a": "second", "b": "of the user"}


@pytest.mark.parametrize("obstacle", ["folder", "link"])
def test_a_record_that_is_no_plain_file_is_an_error_before_any_work(tmp_path, obstacle):
    """Through a link, another file would grow."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("of the user")
    folder = tmp_path / "output"
    folder.mkdir()
    record = folder / output_folder.RECORD
    record.mkdir() if obstacle == "folder" else record.symlink_to(elsewhere)
    with pytest.raises(FileExistsError, match=r"\.retinanet_jax_files must be a file.*rename it"):
        OutputFolder(folder).prepare("a")
    assert elsewhere.read_text() == "of the user"


def test_threads_write_to_an_output_folder_at_once(tmp_path):
    names = ["\xe4\n\udcff", *map(str, range(20))]
    output = OutputFolder(tmp_path)
    threads = [threading.Thread(target=output.write, args=(name, name[:1])) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    OutputFolder(tmp_path).prepare(*names)
    num_bytes = (tmp_path / output_folder.RECORD).stat().st_size
    for name in names:  # the same content again: the record does not grow
        OutputFolder(tmp_path).write(name, name[:1])
    assert (tmp_path / output_folder.RECORD).stat().st_size == num_bytes


def test_a_new_file_or_folder_replaces_nothing(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    check_absent(tmp_path / "new", "file")
    for name in ("link", "folder"):
        with pytest.raises(FileExistsError, match=f"/{name} exists; give another folder"):
            check_absent(tmp_path / name, "folder")
    (tmp_path / "folder/a").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"/folder/a/b/c: /.*/folder/a is no folder; give"):
        check_absent(tmp_path / "folder/a/b/c", "folder")
    for name in ("link", "folder", "folder/a"):
        with pytest.raises(OSError, match=name):
            write_folder(tmp_path / name, lambda draft: None, is_written=lambda: False)
    assert contents(tmp_path / "folder") == {"a": "mine"}
    assert (tmp_path / "link").readlink() == pathlib.Path("nowhere")


@contextlib.contextmanager
def tiny_disk():
    """Let no file be larger than 10 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def lock(workdir: pathlib.Path) -> None:
    with RunLock(workdir):
        pass


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.json", lambda path: write_json(path, "a" * 100)),
        ("run.lock", lambda path: lock(path.parent)),
        (output_folder.RECORD, lambda path: OutputFolder(path.parent).write("x", "")),
        (
            "folder",
            lambda path: write_folder(
                path, lambda draft: (draft / "x").write_text("a" * 100), lambda: False
            ),
        ),
    ],
)
def test_a_full_disk_is_named(tmp_path, name, write):
    path = tmp_path / name
    with tiny_disk(), pytest.raises(OSError, match=rf"^\[Errno 27\] File too large: '{path}'$"):
        write(path)
    assert not list(tmp_path.glob("**/x*"))
