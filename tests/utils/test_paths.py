"""Lists of paths are separated by commas, which paths may contain, too."""

from hypothesis import given
from hypothesis import strategies as st

from retinanet_jax.utils.paths import split_list

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
