"""Files that grow are in a local working directory themselves, and copied to a remote one."""

import time

import object_store as stand_in
import pytest

from retinanet_jax.checkpoint import integrity
from retinanet_jax.utils import mirror
from retinanet_jax.utils.files import make_writable, open_atomically, write_atomically
from retinanet_jax.utils.mirror import GrowingFiles
from retinanet_jax.utils.paths import to_path
from retinanet_jax.utils.remote import list_files

KEY = "bucket/run/metrics.jsonl"


@pytest.fixture
def workdir(object_store):
    return to_path("gs://bucket/run")


def test_in_a_local_working_directory_the_files_are_written_in_place(tmp_path):
    files = GrowingFiles(tmp_path, "metrics.jsonl")
    assert files.folder == tmp_path
    files.update()
    files.close()
    assert list(tmp_path.iterdir()) == []


def test_a_remote_file_has_what_was_appended_after_update_and_close(workdir, object_store):
    files = GrowingFiles(workdir, "metrics.jsonl")
    with (files.folder / "metrics.jsonl").open("a") as file:
        for line in ("1\n", "2\n"):
            file.write(line)
            file.flush()
            files.update()
            assert object_store.file(KEY).read_text().endswith(line)
        file.write("3\n")
    (files.folder / "tensorboard").mkdir()
    (files.folder / "tensorboard/events").write_bytes(b"e")
    files.close()
    assert object_store.file(KEY).read_text() == "1\n2\n3\n"
    assert object_store.file("bucket/run/tensorboard/events").read_bytes() == b"e"
    assert not files.folder.exists()


def test_a_resumed_run_appends_to_the_remote_file(workdir, object_store):
    object_store.write(KEY, b"1\n")
    files = GrowingFiles(workdir, "metrics.jsonl")
    with (files.folder / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    files.close()
    assert object_store.file(KEY).read_bytes() == b"1\n2\n"


def test_an_unchanged_file_is_not_copied_again(workdir, object_store, monkeypatch):
    files = GrowingFiles(workdir)
    (files.folder / "metrics.jsonl").write_bytes(b"1\n")
    files.update()
    object_store.file(KEY).unlink()
    files.update()
    assert object_store.keys() == []
    files.close()


def test_files_are_also_copied_while_nobody_asks(workdir, object_store, monkeypatch):
    monkeypatch.setattr(mirror, "INTERVAL", 0.01)
    files = GrowingFiles(workdir)
    (files.folder / "metrics.jsonl").write_bytes(b"1\n")
    deadline = time.monotonic() + 10
    while not object_store.file(KEY).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert object_store.file(KEY).read_bytes() == b"1\n"
    files.close()


def test_what_cannot_be_copied_is_an_error_with_the_file(workdir, monkeypatch):
    def refuse(self, path, mode="rb", **_):
        raise RuntimeError("403")

    files = GrowingFiles(workdir)
    (files.folder / "metrics.jsonl").write_bytes(b"1\n")
    monkeypatch.setattr(stand_in.ObjectFileSystem, "_open", refuse)
    with pytest.raises(OSError, match=r"^gs://bucket/run/metrics.jsonl: cannot be written \(Run"):
        files.close()
    assert not files.folder.exists()


# ---- single files and checkpoints


def test_a_remote_file_is_written_completely_or_not_at_all(workdir, object_store):
    def write_half():
        with open_atomically(workdir / "a") as file:
            file.write(b"half")
            raise KeyError

    write_atomically(workdir / "a", "text")
    with pytest.raises(KeyError):
        write_half()
    assert object_store.file("bucket/run/a").read_bytes() == b"text"


def test_a_check_of_a_remote_folder_leaves_nothing_there(workdir, object_store, monkeypatch):
    make_writable(workdir)
    assert object_store.keys() == []
    monkeypatch.setattr(object_store, "write", lambda *_: 1 / 0)
    with pytest.raises(OSError, match=r"^gs://bucket/run: cannot be written .*credentials"):
        make_writable(workdir)


def test_a_remote_checkpoint_is_complete_with_its_digests(workdir, object_store):
    # Objects of a checkpoint appear one after the other, at their final place.
    object_store.write("bucket/run/checkpoints/4/variables/d/1", b"x")
    folder = workdir / "checkpoints/4"
    assert not integrity.is_complete(folder)
    assert list_files(folder) == ["variables/d/1"]
    integrity.write_digests(folder, integrity.compute_digests(folder))
    assert integrity.is_complete(folder)
    assert integrity.verify(folder)
    object_store.write("bucket/run/checkpoints/4/variables/d/1", b"y")
    with pytest.raises(integrity.DamagedError, match=r"^gs://bucket/run/.*/d/1 is damaged"):
        integrity.verify(folder)
