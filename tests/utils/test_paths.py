"""Paths are local or in remote storage; lists of them are separated by commas."""

import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet_jax.utils.paths import cache_folder, is_remote, split_list, to_path

name = st.text("ab/. ", max_size=3).map(str.strip)
path = st.lists(name, min_size=1, max_size=3).map(", ".join).map(str.strip)


@given(st.lists(path, min_size=1, max_size=5), st.sampled_from((",", ", ", " ,")))
def test_paths_that_exist_are_separated_also_if_they_contain_commas(paths, separator):
    # Of other paths that exist, one might be the longer reading of the list.
    paths = [f"{position}{path}" for position, path in enumerate(paths)]
    assert split_list(separator.join(paths), set(paths).__contains__) == paths


@given(st.text("ab, /", max_size=9))
def test_without_existing_paths_every_comma_separates(text):
    assert split_list(text, lambda _: False) == [entry.strip() for entry in text.split(",")]


def test_a_path_with_commas_is_an_entry_only_if_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a, b").mkdir()
    (tmp_path / "c").mkdir()
    assert split_list("a, b") == ["a, b"]
    assert split_list("c,a, b,d") == ["c", "a, b", "d"]
    assert split_list("a, c") == ["a", "c"]
    assert split_list("") == [""]


def test_a_local_path_becomes_absolute_and_stays_a_pathlib_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    for text, expected in {
        "runs/a": tmp_path / "runs/a",
        "/data": pathlib.Path("/data"),
        "~/a": pathlib.Path("/home/someone/a"),
        "a:/b": tmp_path / "a:/b",
    }.items():
        assert to_path(text) == to_path(pathlib.Path(text)) == expected
        assert type(to_path(text)) is type(tmp_path)
        assert not is_remote(text)
    assert to_path("runs/a", absolute=False) == pathlib.Path("runs/a")


def test_a_url_keeps_its_scheme_also_if_pathlib_took_a_slash(object_store):
    for path in ("gs://bucket/run", pathlib.Path("gs://bucket/run")):
        assert is_remote(path)
        assert os.fspath(to_path(path)) == "gs://bucket/run"
    assert os.fspath(to_path("gs://bucket/run") / "x") == "gs://bucket/run/x"


@pytest.mark.parametrize("url", ["ftp://host/x", "gcs://bucket/x", "https://host/x"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(url):
    assert is_remote(url)
    with pytest.raises(ValueError, match=r"no known remote storage.* gs:// \(pip install gcsfs\)"):
        to_path(url)


def test_a_scheme_without_its_package_names_what_to_install():
    # The packages are optional, and no test requires them.
    message = r"az://box/x: az:// requires adlfs, .* `pip install .adlfs.`\."
    with pytest.raises(ValueError, match=message):
        to_path("az://box/x")


def test_a_url_without_a_bucket_is_refused():
    with pytest.raises(ValueError, match="names no bucket; give gs://BUCKET/FOLDER"):
        to_path("gs://")


def test_the_cache_is_in_the_user_s_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "retinanet_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_folder()) == "/home/someone/.cache/retinanet_jax"
