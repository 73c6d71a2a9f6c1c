"""A package that is not installed is named in one line, with the command that installs it."""

import configparser
import pathlib
import re

import pytest

from retinanet_jax.utils.packages import import_optional, not_installed

ROOT = pathlib.Path(__file__).parents[2]


def test_the_line_names_what_requires_it_and_what_to_do():
    with pytest.raises(ValueError, match=r"^the page requires no_such_package, which ") as error:
        import_optional("no_such_package.part", "the page", "retinanet-jax[analyze]", "leave it")
    assert "No module named 'no_such_package'" in str(error.value)
    assert str(error.value).endswith('; run `pip install "retinanet-jax[analyze]"`, or leave it.')
    assert str(not_installed("a://b", "c", "d")) == 'a://b requires c; run `pip install "d"`.'


def test_what_is_installed_is_imported():
    assert import_optional("json.decoder", "a test", "nothing").JSONDecoder


def test_each_extra_that_a_message_names_is_one_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [path.read_text() for path in (ROOT / "retinanet_jax").rglob("*.py")]
    named = {extra for text in texts for extra in re.findall(r"retinanet-jax\[(\w+)\]", text)}
    assert {"analyze", "fast", "inspect", "supervision"} <= named
    assert named <= set(setup["options.extras_require"])
    assert not any("retinanet_jax[" in text for text in texts)  # the other spelling
