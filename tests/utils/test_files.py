"""Files are written completely or not at all."""

import json

import pytest

from retinanet_jax.utils import files
from retinanet_jax.utils.files import write_json


def test_a_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

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
