"""What is read from remote storage is read from a local copy, which is kept up to date."""

import os
import pathlib
import shutil

import object_store as stand_in
import pytest

from retinanet_jax.utils import remote
from retinanet_jax.utils.paths import to_path
from retinanet_jax.utils.remote import copy_path, local_copy, local_folder, with_remote_names


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Return the keys of the objects that are read, in a list that grows."""
    keys, get_file = [], stand_in.ObjectFileSystem.get_file

    def record(self, key, *arguments, **options):
        keys.append(key)
        return get_file(self, key, *arguments, **options)

    monkeypatch.setattr(stand_in.ObjectFileSystem, "get_file", record)
    return keys


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_folder_is_copied_with_everything_in_it_and_nothing_else(object_store, capsys):
    object_store.write("bucket/set/a.txt", b"a")
    object_store.write("bucket/set/inner/b.txt", b"bb")
    object_store.write("bucket/set/inner/", b"")  # some tools write an object for a folder
    object_store.write("bucket/settings.txt", b"other")
    copy = local_copy("gs://bucket/set")
    assert copy == copy_path("gs://bucket/set")
    assert contents(copy) == {"a.txt": b"a", "inner/b.txt": b"bb"}
    assert capsys.readouterr().out == (f"copying 2 files (0.0 MB) of gs://bucket/set to {copy}\n")


def test_only_what_has_changed_is_copied_again_and_what_is_gone_is_removed(object_store, fetched):
    for name in "abc":
        object_store.write(f"bucket/set/{name}", b"old")
    copy = local_copy("gs://bucket/set")
    (copy / ".index").write_bytes(b"of this package")
    del fetched[:]
    assert local_copy("gs://bucket/set") == copy
    assert fetched == []
    object_store.write("bucket/set/b", b"new")  # of the same size
    os.utime(object_store.file("bucket/set/b"), ns=(0, 5_000_000_000))
    object_store.file("bucket/set/c").unlink()
    local_copy("gs://bucket/set")
    assert fetched == ["bucket/set/b"]
    assert contents(copy) == {"a": b"old", "b": b"new", ".index": b"of this package"}


def test_a_file_is_not_copied_again_after_its_folder(object_store, fetched):
    object_store.write("bucket/set/a", b"a")
    local_copy("gs://bucket/set")
    assert local_copy("gs://bucket/set/a").read_bytes() == b"a"
    assert fetched == ["bucket/set/a"]


def test_a_copy_that_ends_early_is_an_error_and_leaves_no_file(object_store, monkeypatch):
    object_store.write("bucket/a", b"abc")
    monkeypatch.setattr(
        stand_in.ObjectFileSystem,
        "get_file",
        lambda self, key, path: pathlib.Path(path).write_bytes(b"a"),
    )
    with pytest.raises(OSError, match="bucket/a has 3 bytes, and 1 arrived"):
        local_copy("gs://bucket/a")
    assert contents(copy_path("gs://bucket")) == {}


def test_a_local_path_is_returned_as_it_is():
    assert local_copy("some/path") == pathlib.Path("some/path")


def test_a_missing_folder_is_named(object_store):
    with pytest.raises(FileNotFoundError, match=r"^gs://bucket/none: there is no such file"):
        local_copy("gs://bucket/none")


def test_an_error_of_the_storage_names_the_path_and_what_to_check(object_store, monkeypatch):
    def refuse(self, path, **_):
        raise RuntimeError("401\nAnonymous caller")

    monkeypatch.setattr(stand_in.ObjectFileSystem, "info", refuse)
    with pytest.raises(
        OSError,
        match=r"^gs://bucket/a: cannot be read \(RuntimeError: 401 Anonymous caller\); check .*"
        "credentials",
    ):
        local_copy("gs://bucket/a")


def test_too_small_a_disk_is_an_error_before_anything_is_copied(object_store, fetched, monkeypatch):
    object_store.write("bucket/a", bytes(3_000_000))
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"copy of 3 MB .* only 1 MB .* XDG_CACHE_HOME"):
        local_copy("gs://bucket/a")
    assert fetched == []


def test_a_name_that_leads_out_of_the_folder_is_refused(object_store):
    object_store.write("bucket/set/../../../secret", b"x")
    with pytest.raises(ValueError, match="leads out of its folder"):
        local_copy("gs://bucket/set")


def test_an_object_that_only_stands_for_a_folder_is_not_copied(object_store, monkeypatch):
    object_store.write("bucket/set/a", b"a")
    objects = {"bucket/set/a": object_store.info("bucket/set/a")}
    objects["bucket/set/inner/"] = {"type": "file", "size": 0}  # as some file systems list it
    monkeypatch.setattr(stand_in.ObjectFileSystem, "find", lambda self, root, detail: objects)
    assert contents(local_copy("gs://bucket/set")) == {"a": b"a"}


def test_texts_name_the_remote_file_of_a_copy(object_store):
    copy = copy_path("gs://bucket/set/a.json")
    assert with_remote_names(f"COCO: {copy}, x") == "COCO: gs://bucket/set/a.json, x"
    assert with_remote_names("/data/a.json") == "/data/a.json"


def test_generated_files_of_a_remote_working_directory_are_local(object_store, tmp_path):
    assert local_folder(tmp_path / "run", "data") == tmp_path / "run/data"
    folder = local_folder(to_path("gs://bucket/run"), "data")
    assert folder == tmp_path / "cache/retinanet_jax/workdirs/gs/bucket/run/data"
